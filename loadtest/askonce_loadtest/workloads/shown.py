"""The description of a workload for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from askonce_loadtest.workloads.describe import Description

_BLOCKS = " ▁▂▃▄▅▆▇█"
_COLUMNS = 60


def print_description(console: Console, name: str, found: Description) -> None:
    """Print a table, and the rate over time as a row of bars."""
    table = Table(title=f"workload {name}", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    rows = [
        ("requests", f"{found.requests:,}"),
        ("seconds", f"{found.seconds:,.1f}"),
        ("rate", f"{found.rate_per_s:,.1f}/s"),
        (f"busiest {found.bin_s:g} s", f"{found.busiest_per_s:,.1f}/s"),
        ("distinct questions", f"{found.distinct:,}"),
        ("asked only once", f"{found.one_hit_share:.1%} of requests"),
        *(
            (f"the {most:,} asked most", f"{share:.1%} of requests")
            for most, share in found.top_share.items()
            if most < found.distinct
        ),
        ("best possible hit rate", f"{found.best_hit_rate:.2%}"),
    ]
    if found.best_hit_rate_ttl is not None:
        rows.append((f"… with a TTL of {found.ttl_s:g} s", f"{found.best_hit_rate_ttl:.2%}"))
    if found.best_hit_rate_by_meaning is not None:
        rows.append(("… for who knows paraphrases", f"{found.best_hit_rate_by_meaning:.2%}"))
    rows += [(f"task {task}", f"{count:,} requests") for task, count in found.tasks.items()]
    rows += [(f"lane {lane}", f"{count:,} requests") for lane, count in found.lanes.items()]
    rows.append(("mean text", f"{found.mean_text_bytes:.0f} bytes"))
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if len(found.rates_per_s) > 1:
        width_s, bars = _bars(found)
        console.print(f"rate over time, {width_s:g} s a column, 0 to {found.busiest_per_s:,.0f}/s:")
        console.print(bars, highlight=False)


def _bars(found: Description) -> tuple[float, str]:
    """The rate over time in at most `_COLUMNS` columns, and how many seconds a column is."""
    group = -(-len(found.rates_per_s) // _COLUMNS)
    parts = [found.rates_per_s[i : i + group] for i in range(0, len(found.rates_per_s), group)]
    rates = [sum(part) / len(part) for part in parts]
    top = max(rates) or 1.0
    bars = "".join(_BLOCKS[round(rate / top * (len(_BLOCKS) - 1))] for rate in rates)
    return found.bin_s * group, bars
