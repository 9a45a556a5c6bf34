"""The sections of `askonce stats` about money and tokens."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from askonce_worker.cli.stats_view import ALL, View, amount, percent, table
from askonce_worker.observe.figures import TaskTotals, TenantTotals

MOST_ROWS = 10
"""Tenants shown; `--json` has them all."""
NO_PRICES = (
    "No money is counted: give models a price in the configuration, e.g. "
    "[models.NAME.price] input = 0.15, output = 0.60 (a million tokens)."
)


def money(view: View) -> RenderableType | None:
    """What was spent and avoided, and what an answer costs with the cache and without."""
    columns = view.columns()
    ever = columns[ALL]
    if not ever.answered:
        return None
    has_tokens = any((ever.tokens.input, ever.tokens.saved_input))
    has_money = bool(ever.cost.spent or ever.cost.avoided)
    if not has_money and not has_tokens:
        return Padding(Text(NO_PRICES, "dim"), (0, 1, 1, 1))
    made = table(
        f"Money, {view.state.currency}", *("", *(n if n != ALL else "all time" for n in columns))
    )

    def row(name: str, of: Callable[[TaskTotals], str], style: str = "") -> None:
        made.add_row(name, *map(of, columns.values()), style=style)

    if has_money:
        row("spent on calls", lambda t: amount(t.cost.spent))
        row("avoided by hits", lambda t: amount(t.cost.avoided))
        row("1,000 answers", lambda t: amount(t.cost.effective_per_1000), "bold")
        row("  C x (1 - h)", lambda t: amount(t.cost.calls_per_1000), "dim")
        row("  store", lambda t: amount(t.cost.store_per_1000), "dim")
        row("  uncached", lambda t: amount(t.cost.uncached_per_1000), "dim")
    if has_tokens:
        row("tokens in", lambda t: f"{t.tokens.input:,}")
        row("tokens out", lambda t: f"{t.tokens.output:,}")
        row("saved in", lambda t: f"{t.tokens.saved_input:,}")
        row("saved out", lambda t: f"{t.tokens.saved_output:,}")
    return made if has_money else Group(made, Padding(Text(NO_PRICES, "dim"), (0, 1, 1, 1)))


def accounts(view: View) -> RenderableType | None:
    """Spent and avoided by task and by tenant, where there is more than one, or any tenant."""
    tasks = view.tasks() if view.task is None else {}
    priced = {name: t for name, t in tasks.items() if t.cost.spent or t.cost.avoided}
    tenants = view.tenants() if view.task is None else {}
    lanes = view.total().by_lane
    # Where there is one only, it is in the other table.
    if max(len(priced), len(lanes)) <= 1 and not tenants:
        return None
    made = table(
        f"Accounts ({view.state.currency}), {view.since}",
        *("", "answers", "hit rate", "spent", "avoided", "per 1,000", "tokens saved"),
    )

    def row(name: str, answered: int, of: TaskTotals | TenantTotals) -> None:
        made.add_row(
            name,
            f"{answered:,}",
            percent(of.hit_rate),
            amount(of.cost.spent),
            amount(of.cost.avoided),
            amount(of.cost.effective_per_1000),
            f"{of.tokens.saved_input + of.tokens.saved_output:,}",
        )

    if len(priced) > 1:
        for name, totals in priced.items():
            row(f"task {name}", totals.answered, totals)
    if len(lanes) > 1:
        for name, lane in lanes.items():  # a hit costs the lane nothing, and is counted by task
            made.add_row(f"lane {name}", "", "", amount(lane.spent))
    for name, tenant in list(tenants.items())[:MOST_ROWS]:
        row(f"tenant {name}", tenant.hits + tenant.misses, tenant)
    if (more := len(tenants) - MOST_ROWS) > 0:
        made.add_row(f"{more:,} more: --json", style="dim")
    return made
