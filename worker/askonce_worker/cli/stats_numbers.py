"""The sections of `askonce stats` about answers: windows, verdict, tasks, and what waits now."""

from __future__ import annotations

import functools
from collections.abc import Callable

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from askonce_worker.cli.prompts import volatile_parts
from askonce_worker.cli.stats_view import ALL, NOTHING, View, percent, table
from askonce_worker.observe.figures import HIT_SOURCES, TaskTotals
from askonce_worker.observe.verdict import ADVICE, LEAST_ANSWERS

RARE_SOURCES = ("semantic", "stale")
"""Shown only where there was such a hit."""


def windows(view: View) -> RenderableType:
    """The rolling windows, side by side."""
    columns = view.columns()
    made = table(
        f"Task {view.task}" if view.task is not None else "All tasks",
        *("", *(name if name != ALL else "all time" for name in columns)),
    )

    def row(name: str, of: Callable[[TaskTotals], str], style: str = "") -> None:
        made.add_row(name, *map(of, columns.values()), style=style)

    row("answers", lambda totals: f"{totals.answered:,}")
    spans = [window.span_s for window in view.state.windows.values()]
    answered = [totals.answered for totals in columns.values()]
    rates = [_rate(n, span) for n, span in zip(answered, [*spans, 0.0], strict=True)]
    made.add_row("  a second", *rates, style="dim")
    row("hit rate", lambda totals: percent(totals.hit_rate), "bold")
    for source in HIT_SOURCES:
        if source not in RARE_SOURCES or columns[ALL].hits[source]:
            row(f"  {source}", functools.partial(_share_of, source), "dim")
    row("misses", lambda totals: f"{totals.misses:,}")
    row("waits per miss", lambda totals: _two_digits(totals.stampede_rate))
    row("never read", lambda t: percent(t.never_read.rate) if t.never_read else NOTHING)
    row(
        "  not read yet",
        lambda t: f"{t.never_read.not_read_yet:,}" if t.never_read else NOTHING,
        "dim",
    )
    row("errors", lambda totals: f"{totals.errors:,}")
    return made


def verdict(view: View) -> RenderableType | None:
    """Whether the cache is worth having, and what to do where it is not."""
    total = view.total()
    if total.verdict is None:
        if not total.answered:
            return None
        few = (
            f"No verdict yet: {total.answered:,} answers, {LEAST_ANSWERS} would do ({view.since})."
        )
        return Padding(Text(few, "dim"), (0, 1, 1, 1))
    tasks = view.tasks()
    lines = [_judged("The cache is", total, view.since)]
    if len(tasks) > 1:
        lines += [
            _judged(f"  {name}:", totals, "") for name, totals in tasks.items() if totals.verdict
        ]
    worst = min((t for t in (total, *tasks.values()) if t.verdict), key=lambda t: t.hit_rate or 0.0)
    assert worst.verdict is not None, "the total has one"
    advice = list(ADVICE[worst.verdict])
    if advice:
        advice += [
            f"{name}: its system prompt has {finding.what}: {finding.text!r}"
            for name in tasks
            for finding in volatile_parts(view.prompts.get(name, ""))
        ]
    if not advice:
        return Padding(Group(*lines), (0, 1, 1, 1))
    points = Table.grid(padding=(0, 1))
    for line in advice:
        points.add_row("  -", Text(line))
    return Padding(Group(*lines, points), (0, 1, 1, 1))


def tasks(view: View) -> RenderableType | None:
    """One row a task: where its answers came from and what they cost."""
    rows = view.tasks()
    if not rows and view.window != ALL:
        return None
    total = view.total()
    sources = [s for s in HIT_SOURCES if total.hits[s] or s not in RARE_SOURCES]
    made = table(
        f"Tasks, {view.since}",
        *("task", "answers", *sources, "model", "hit rate", "calls", "errors"),
    )

    def row(name: str, totals: TaskTotals, style: str = "") -> None:
        made.add_row(
            name,
            f"{totals.answered:,}",
            *(f"{totals.hits[source]:,}" for source in sources),
            f"{totals.misses:,}",
            percent(totals.hit_rate),
            f"{sum(totals.model_calls.values()):,}",
            f"{totals.errors:,}",
            style=style,
        )

    for task, totals in rows.items():
        row(task, totals)
    if view.task is None:
        row("all", total, style="bold")
    return made


def now(view: View) -> RenderableType:
    """Who works, what waits, what the store holds."""
    state = view.state
    made = Table(
        box=box.SIMPLE, show_header=False, padding=(0, 1, 0, 0), title="Now", title_justify="left"
    )
    made.add_column()
    made.add_column()
    made.add_row("live workers", f"{len(state.workers)} in pool {state.pool!r}")
    for lane, jobs in state.lanes.items():
        deferred = f", {jobs.deferred:,} deferred" if jobs.deferred else ""
        waits = jobs.backlog or jobs.deferred
        oldest = f", the oldest for {jobs.oldest_s:,.1f} s" if waits else ""
        about = f"{jobs.pending:,} pending{deferred}{oldest}"
        made.add_row(f"backlog {lane}", f"{jobs.backlog:,} ({about})")
    dropped = state.dead_letters_dropped
    older = f" ({dropped:,} older ones were dropped to make room)" if dropped else ""
    made.add_row("dead letters", f"{state.dead_letters:,}{older}")
    gone = f"{state.answers_expired:,} expired, {state.answers_evicted:,} evicted"
    made.add_row("answers in the store", f"{state.answers:,} ({gone} since its start)")
    most = state.store_max_bytes
    limit = f" of {most / 2**20:,.0f} MB" if most else ", no limit"
    made.add_row("store memory", f"{state.store_bytes / 2**20:,.1f} MB{limit}")
    for name, calls in (("model calls", state.total.model_calls), ("failed", state.total.failures)):
        if calls:
            text = ", ".join(f"{reason} {count:,}" for reason, count in calls.items())
            made.add_row(name, text)
    return made


def _judged(who: str, totals: TaskTotals, when: str) -> Text:
    style = {"paying": "green", "paying, barely": "yellow"}.get(totals.verdict or "", "red")
    hits = (
        f" ({percent(totals.hit_rate)} hits, {when})" if when else f" ({percent(totals.hit_rate)})"
    )
    return Text.assemble(f"{who} ", (str(totals.verdict), f"bold {style}"), hits)


def _rate(answered: int, span_s: float) -> str:
    return f"{answered / span_s:,.1f}" if span_s else NOTHING


def _share_of(source: str, totals: TaskTotals) -> str:
    return percent(totals.hits[source] / totals.answered if totals.answered else None)


def _two_digits(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.2f}"
