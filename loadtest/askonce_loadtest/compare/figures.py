"""What each figure of a comparison is, and how repeats become one: medians, spreads, ratios."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median
from typing import Literal, NamedTuple

import msgspec

from askonce_loadtest.bench.child import Figures
from askonce_loadtest.compare.catalogue import Kind


class Figure(NamedTuple):
    """One column: `heading` is for the table, `better` says which way."""

    name: str
    heading: str
    meaning: str
    better: Literal["more", "less"] = "less"
    over_runs: Callable[[Sequence[float]], float] = median


FIGURES = (
    Figure("jobs_per_s", "jobs/s", "warm: from the first job handed in to the last result", "more"),
    Figure(
        "worker_cpu_us_per_job",
        "worker CPU, µs",
        "user + system time of the worker's processes; of a cache, of the caller's",
    ),
    Figure("producer_cpu_us_per_job", "producer CPU, µs", "the same of the producer"),
    Figure("store_cpu_us_per_job", "store CPU, µs", "the same of the store"),
    Figure("store_commands_per_job", "commands a job", "all calls in the store's commandstats"),
    Figure(
        "store_reads_per_job",
        "reads a job",
        "the store's reads from sockets: each brings a command or a pipeline",
    ),
    Figure("latency_ms_p50", "p50 ms", "one job at a time, open loop, from the intended start"),
    Figure("latency_ms_p99", "p99 ms", "the same"),
    Figure(
        "cold_calls_above_one",
        "calls above 1 a key",
        "cold: model calls that were not the first of their key; the worst repeat",
        over_runs=max,
    ),
    Figure("cold_calls", "model calls", "cold: all of them; the worst repeat", over_runs=max),
    Figure("cold_asks", "asks", "cold: how often the keys were asked"),
    Figure("cold_s", "cold s", "first ask to last answer"),
    Figure("cold_commands_per_ask", "commands a cold ask", "all calls in the store's commandstats"),
    Figure("worker_rss_mb", "RSS MiB", "resident memory of worker (of a cache, caller) after it"),
    Figure(
        "store_bytes_per_answer",
        "bytes an answer",
        "used_memory after asking every distinct text once, less before, by texts",
    ),
    Figure(
        "store_bytes_left_per_job",
        "bytes left a job",
        "used_memory after the warm run, less before, by jobs",
    ),
)
"""In the order of the report."""

REFERENCE: dict[Kind, str] = {"queue": "askonce", "cache": "askonce library"}
"""What the peers of a kind are compared with."""


class Row(msgspec.Struct, kw_only=True):
    """What became of one peer. Without runs, `reason` says why it was skipped or failed."""

    name: str
    kind: Kind
    settings: str
    versions: dict[str, str] = {}
    runs: list[Figures] = []
    status: Literal["measured", "skipped", "failed"] = "measured"
    reason: str = ""

    @property
    def figures(self) -> Figures:
        """One figure for all runs; those that the peer has none of are left out."""
        named = {figure.name: figure for figure in FIGURES}
        return {
            name: named[name].over_runs([run[name] for run in self.runs])
            for name in named
            if self.runs and all(name in run for run in self.runs)
        }

    def spread(self, name: str) -> tuple[float, float]:
        """The lowest and highest value of a figure."""
        values = [run[name] for run in self.runs]
        return min(values), max(values)


def ratios(rows: Sequence[Row]) -> dict[str, Figures]:
    """Peer → figure → how many times better (above 1) or worse askonce is, of the same kind.

    Figures that are 0 on either side have no ratio, and are left out.
    """
    measured = {row.name: row.figures for row in rows if row.runs}
    found: dict[str, Figures] = {}
    for row in rows:
        ours = measured.get(REFERENCE[row.kind])
        theirs = measured.get(row.name)
        if ours is None or theirs is None or row.name == REFERENCE[row.kind]:
            continue
        found[row.name] = {
            figure.name: _times_better(figure, ours[figure.name], theirs[figure.name])
            for figure in FIGURES
            if ours.get(figure.name) and theirs.get(figure.name)
        }
    return found


def _times_better(figure: Figure, ours: float, theirs: float) -> float:
    return ours / theirs if figure.better == "more" else theirs / ours


def to_best_queue(rows: Sequence[Row]) -> float:
    """Our jobs/s by those of the best other queue; NaN if either was not measured."""
    queues = {row.name: row.figures for row in rows if row.kind == "queue" and row.runs}
    ours = queues.pop(REFERENCE["queue"], {})
    best = max((figures["jobs_per_s"] for figures in queues.values()), default=math.nan)
    return ours.get("jobs_per_s", math.nan) / best
