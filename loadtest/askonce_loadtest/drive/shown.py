"""What was measured, for people."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from askonce_loadtest.drive.histogram import RELATIVE_ERROR
from askonce_loadtest.drive.session import Found, Try
from askonce_loadtest.drive.trial import Trial


def print_trial(console: Console, trial: Trial) -> None:
    """Print one run."""
    latency, late = trial.latency_ms, trial.late_ms
    table = Table(title="open loop", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    asked = "as in the workload" if trial.rate_per_s is None else f"{trial.rate_per_s:,.0f}/s"
    rows = [
        ("rate asked for", asked),
        (
            "intended · sent · answered",
            _rates(trial),
        ),
        ("requests", f"{trial.intended:,} in {trial.seconds:.1f} s"),
        ("answered", f"{trial.answered:,}"),
        ("errors", _counts(trial.errors) or "none"),
        ("without a reply", f"{trial.unanswered:,}"),
        ("hit rate", f"{trial.hit_rate:.2%}"),
        ("answers from", _counts(trial.sources) or "nowhere"),
        ("p50 · p90", f"{latency.p50:,.2f} · {latency.p90:,.2f} ms"),
        ("p99 · p99.9", f"{latency.p99:,.2f} · {latency.p99_9:,.2f} ms"),
        ("longest", f"{latency.max:,.2f} ms"),
        ("of these: sent late, p50 · p99", f"{late.p50:,.2f} · {late.p99:,.2f} ms"),
    ]
    if trial.workload_rounds:
        rows.append(("workload began anew", f"{trial.workload_rounds} times"))
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(
        "Latency: from when a request was due to its answer; percentiles are exact to "
        f"{RELATIVE_ERROR:.1%}."
    )
    if trial.interrupted:
        console.print("[yellow]Interrupted: these are the figures up to then.[/]")
    for doubt in trial.invalid:
        console.print(f"[red]INVALID: {doubt}.[/]")


def print_found(console: Console, found: Found) -> None:
    """Print every run of a search, and what it has found."""
    table = Table(title=f"p99 ≤ {found.objective.p99_ms:g} ms (latencies in ms)")
    for name in ("rate", "p50", "p99", "longest", "late p99", "hits"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("met")
    for one in found.tries:
        table.add_row(*_row(one))
    console.print(table)
    repeats = found.objective.repeats
    console.print(
        f"{len(found.tries)} runs"
        + (f", up to {repeats} a rate (the majority counts)" if repeats > 1 else ", one a rate")
    )
    if not found.complete:
        console.print("[yellow]Interrupted: the search is not complete.[/]")
    console.print(f"[bold]{conclusion(found)}[/]")


def conclusion(found: Found) -> str:
    """What a search has found, in a sentence or two."""
    objective = f"p99 ≤ {found.objective.p99_ms:g} ms"
    if found.rate_per_s is None:
        return f"No rate met {objective}, down to {found.missed_per_s or 0:,.0f}/s."
    text = f"Highest rate with {objective}: {found.rate_per_s:,.0f}/s"
    if found.missed_per_s is None:
        return f"{text}; higher ones were not tried."
    text += f" (missed at {found.missed_per_s:,.0f}/s)."
    if found.driver_bound:
        text += " The driver itself could not keep up beyond that: give it a core of its own."
    return text


def told(one: Try) -> str:
    """One run of a search, in a line."""
    verdict = "met" if not one.misses else "missed: " + ", ".join(one.misses)
    return f"{one.rate_per_s:,.0f}/s: p99 {one.trial.latency_ms.p99:,.1f} ms, {verdict}"


def _row(one: Try) -> tuple[str, ...]:
    latency = one.trial.latency_ms
    return (
        f"{one.rate_per_s:,.0f}/s",
        f"{latency.p50:,.1f}",
        f"{latency.p99:,.1f}",
        f"{latency.max:,.1f}",
        f"{one.trial.late_ms.p99:,.1f}",
        f"{one.trial.hit_rate:.1%}",
        "[green]yes[/]" if not one.misses else "[red]no:[/] " + ", ".join(one.misses),
    )


def _rates(trial: Trial) -> str:
    rates = (trial.intended_per_s, trial.sent_per_s, trial.answered_per_s)
    return " · ".join(f"{rate:,.1f}" for rate in rates) + " /s"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))
