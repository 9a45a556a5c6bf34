"""`askonce stats`: what the fleet has done, and what waits."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from askonce_worker.cli import loop
from askonce_worker.cli.hits_shown import rates_table
from askonce_worker.cli.loop import Signals
from askonce_worker.cli.opened import opened
from askonce_worker.config import load_settings
from askonce_worker.hits.reviews import read_reviews
from askonce_worker.observe.totals import HIT_SOURCES, FleetState, TaskTotals, read_fleet


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line, parsed."""

    config: Path
    json: bool


def main(options: Options) -> int:
    """Run the command; return the exit code."""
    return loop.run(functools.partial(_run, options))


async def _run(options: Options, _signals: Signals) -> int:
    settings = load_settings(options.config)
    async with opened(settings) as store:
        state = await read_fleet(store, settings.worker.pool)
        reviews = (await read_reviews(store)).totals()
    if options.json:
        shown = msgspec.to_builtins(state) | {"reviews": msgspec.to_builtins(reviews)}
        typer.echo(msgspec.json.format(msgspec.json.encode(shown)))
        return loop.OK
    console = Console()
    console.print(_tasks_table(state))
    console.print(_fleet_table(state))
    if reviews.total.reviewed:
        console.print(rates_table(reviews))
    return loop.OK


def _tasks_table(state: FleetState) -> Table:
    """One row a task: where its answers came from and what they cost."""
    shown = [s for s in HIT_SOURCES if state.total.hits[s] or s not in ("semantic", "stale")]
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), title="Tasks", title_justify="left")
    table.add_column("task")
    for name in ("answered", *shown, "model", "hit rate", "calls", "errors"):
        table.add_column(name, justify="right")

    def row(name: str, totals: TaskTotals, style: str = "") -> None:
        table.add_row(
            name,
            f"{totals.answered:,}",
            *(f"{totals.hits[source]:,}" for source in shown),
            f"{totals.misses:,}",
            f"{totals.hit_rate:.1%}" if totals.hit_rate is not None else "-",
            f"{sum(totals.model_calls.values()):,}",
            f"{totals.errors:,}",
            style=style,
        )

    for task, totals in state.tasks.items():
        row(task, totals)
    row("all", state.total, style="bold")
    return table


def _fleet_table(state: FleetState) -> Table:
    table = Table(
        box=box.SIMPLE, show_header=False, padding=(0, 1, 0, 0), title="Now", title_justify="left"
    )
    table.add_column()
    table.add_column()
    table.add_row("live workers", f"{len(state.workers)} in pool {state.pool!r}")
    for lane, jobs in state.lanes.items():
        deferred = f", {jobs.deferred:,} deferred" if jobs.deferred else ""
        waits = jobs.backlog or jobs.deferred
        oldest = f", the oldest for {jobs.oldest_s:,.1f} s" if waits else ""
        about = f"{jobs.pending:,} pending{deferred}{oldest}"
        table.add_row(f"backlog {lane}", f"{jobs.backlog:,} ({about})")
    dropped = state.dead_letters_dropped
    older = f" ({dropped:,} older ones were dropped to make room)" if dropped else ""
    table.add_row("dead letters", f"{state.dead_letters:,}{older}")
    table.add_row("answers in the store", f"{state.answers:,}")
    most = state.store_max_bytes
    limit = f" of {most / 2**20:,.0f} MB" if most else ", no limit"
    table.add_row("store memory", f"{state.store_bytes / 2**20:,.1f} MB{limit}")
    for name, calls in (("model calls", state.total.model_calls), ("failed", state.total.failures)):
        if calls:
            text = ", ".join(f"{reason} {count:,}" for reason, count in calls.items())
            table.add_row(name, text)
    return table
