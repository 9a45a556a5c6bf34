"""What a run did: counted while it runs, shown as a table, written as JSON."""

from __future__ import annotations

import time
from collections import Counter

import msgspec
from rich import box
from rich.table import Table

from askonce_queue.reply import ErrorInfo, Reply


class Tally:
    """The counts of a run under way. `offset`: how far in the input its output reaches, bytes."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.offset = 0
        self.sources: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()

    @property
    def jobs(self) -> int:
        """Lines that are answered or failed."""
        return self.sources.total() + self.errors.total()

    @property
    def hits(self) -> int:
        """Jobs that were answered without a model call of their own."""
        return self.sources.total() - self.sources["model"]

    def reply(self, reply: Reply) -> None:
        """Count a job that was answered or failed."""
        if reply.error is not None:
            self.errors[reply.error.code] += 1
        else:
            self.sources[reply.source or "model"] += 1

    def bad_line(self, error: ErrorInfo) -> None:
        """Count a line that was never asked."""
        self.errors[error.code] += 1

    def summary(self, *, model_calls: int, resumed: int, resumed_errors: int) -> Summary:
        """The summary, now. `model_calls` are those counted here."""
        wall_s = time.monotonic() - self.started
        # Workers elsewhere may have asked for us too: an answer from the model was at least a call.
        model_calls = max(model_calls, self.sources["model"])
        return Summary(
            jobs=self.jobs,
            errors=self.errors.total(),
            memory=self.sources["memory"],
            store=self.sources["store"],
            semantic=self.sources["semantic"],
            coalesced=self.sources["coalesced"],
            stale=self.sources["stale"],
            model=self.sources["model"],
            model_calls=model_calls,
            model_calls_avoided=max(0, self.sources.total() - model_calls),
            errors_by_code=dict(self.errors.most_common()),
            resumed=resumed,
            resumed_errors=resumed_errors,
            wall_s=round(wall_s, 3),
            jobs_per_s=round(self.jobs / wall_s, 1) if wall_s > 0 else 0.0,
        )


class Summary(msgspec.Struct):
    """What `askonce run --summary` writes; all counts are of this run.

    jobs = errors + memory + store + semantic + coalesced + stale + model. `resumed` are lines that
    an interrupted run had written before. `model_calls` counts retries too; without a worker in
    this process (`--no-worker`) it is the number of answers that came from the model.
    """

    jobs: int
    errors: int
    memory: int
    store: int
    semantic: int
    coalesced: int
    stale: int
    model: int
    model_calls: int
    model_calls_avoided: int
    errors_by_code: dict[str, int]
    resumed: int
    resumed_errors: int
    wall_s: float
    jobs_per_s: float

    @property
    def complete(self) -> bool:
        """Whether every line was answered."""
        return not (self.errors or self.resumed_errors)


_SOURCES = {
    "memory": "answered from memory",
    "store": "answered from the store",
    "semantic": "answered by a similar question",
    "coalesced": "coalesced with the same question",
    "stale": "answered stale, refreshed behind",
    "model": "answered by the model",
}
_ALWAYS = ("memory", "store", "coalesced", "model")


def table(summary: Summary) -> Table:
    """The summary for people."""
    rows = Table(box=box.SIMPLE_HEAD, show_header=False, padding=(0, 1, 0, 0))
    rows.add_column()
    rows.add_column(justify="right")
    rows.add_column(justify="right", style="dim")

    def row(name: str, count: int, *, of: int = 0, style: str = "") -> None:
        share = f"{count / of:.1%}" if of else ""
        rows.add_row(name, f"{count:,}", share, style=style)

    if summary.resumed:
        row("lines taken over (--resume)", summary.resumed)
    row("jobs", summary.jobs, style="bold")
    for name, text in _SOURCES.items():
        count: int = getattr(summary, name)
        if count or name in _ALWAYS:
            row(f"  {text}", count, of=summary.jobs)
    row("  errors", summary.errors, of=summary.jobs, style="red" if summary.errors else "")
    for code, count in summary.errors_by_code.items():
        row(f"    {code}", count)
    row("model calls", summary.model_calls)
    row("model calls avoided", summary.model_calls_avoided, of=summary.jobs, style="bold")
    rows.add_row("jobs/s", f"{summary.jobs_per_s:,.0f}", f"{summary.wall_s:,.1f} s")
    return rows
