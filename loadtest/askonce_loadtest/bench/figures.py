"""The figures of a run: what each of them is, and the goals of the design's last table."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

from askonce_loadtest.bench.child import Figures
from askonce_loadtest.bench.plan import Plan

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "≥": operator.ge,
    "≤": operator.le,
    "=": operator.eq,
}


class Goal(NamedTuple):
    """A goal: `sign` is ≥, ≤ or =."""

    sign: str
    limit: float

    def __str__(self) -> str:
        return f"{self.sign} {self.limit:,g}"

    def met(self, value: float) -> bool:
        """Whether `value` reaches the goal."""
        return _COMPARISONS[self.sign](value, self.limit)


class Figure(NamedTuple):
    """One figure of the report."""

    name: str
    meaning: str
    over_runs: Callable[[Sequence[float]], float] = median


FIGURES = (
    Figure("warm_jobs_per_s", "enqueue → reply; one worker, one producer, warm"),
    Figure("enqueue_jobs_per_s", "enqueue only, one producer, no worker"),
    Figure("worker_cpu_us_per_job", "user + system time of the worker, warm"),
    Figure("floor_cpu_us_per_job", "the same of the bare batched commands (floor.py)"),
    Figure("worker_to_floor", "the one divided by the other"),
    Figure("producer_cpu_us_per_job", "user + system time of the producer, warm"),
    Figure("store_cpu_us_per_job", "user + system time of the store, warm"),
    Figure("store_commands_per_job", "commandstats: all calls, in scripts and out"),
    Figure("store_client_commands_per_job", "of these: sent by worker and producer"),
    Figure("store_script_commands_per_job", "of these: made inside scripts"),
    Figure("worker_cpu_us_per_store_hit", "the worker, for a job that the store answers"),
    Figure("store_cpu_us_per_store_hit", "the store, for such a job"),
    Figure("worker_cpu_us_per_model_call", "the worker, for a job that the model answers"),
    Figure("store_cpu_us_per_model_call", "the store, for such a job"),
    Figure("worker_cpu_us_per_kib", "the worker, for each KiB of text"),
    Figure("store_cpu_us_per_kib", "the store, for each KiB of text"),
    Figure("store_net_bytes_per_job", "read and written by the store for a warm job"),
    Figure("text_bytes", "of these: the text, once"),
    Figure("worker_rss_mb", "most memory the worker used, MiB"),
    Figure("latency_ms_p50", "open loop, from the intended start, warm"),
    Figure("latency_ms_p99", "open loop, from the intended start, warm"),
    Figure("latency_ms_max", "open loop, from the intended start, warm"),
    Figure("latency_late_ms_p99", "of these: how late the busy machine let jobs be sent"),
    Figure("stampede_calls", "model calls for the cold keys", max),
    Figure("stampede_asks", "asks that they answered"),
    Figure("stampede_s", "first ask → last answer, s"),
    Figure("dead_model_ratio", "hits/s with 5 % misses while the model is dead, over hits/s alone"),
    Figure("dead_model_hits_per_s", "the former of these"),
    Figure("store_bytes_per_answer", "used_memory for distinct label answers, all in"),
)
"""In the order of the report."""


def goals(plan: Plan) -> dict[str, Goal]:
    """The goal of each figure that has one."""
    return {
        "warm_jobs_per_s": Goal("≥", 50_000),
        "worker_to_floor": Goal("≤", 2.5),
        "latency_ms_p99": Goal("≤", 5),
        "stampede_calls": Goal("=", plan.cold_keys),
        "dead_model_ratio": Goal("≥", 0.9),
        "store_bytes_per_answer": Goal("≤", 250),
    }


def over_runs(runs: Sequence[Mapping[str, float]]) -> Figures:
    """One figure for all runs: the median, but the worst stampede."""
    return {figure.name: figure.over_runs([run[figure.name] for run in runs]) for figure in FIGURES}
