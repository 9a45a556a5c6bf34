"""The bench's figures."""

from __future__ import annotations

from typing import Any

from askonce_loadtest.bench.figures import FIGURES
from askonce_loadtest.bench.report import shown
from askonce_loadtest.reporting.content import Bars, Goal, Section, Table

_TIERS = {
    "memory": ("worker_cpu_us_per_job", "store_cpu_us_per_job"),
    "store": ("worker_cpu_us_per_store_hit", "store_cpu_us_per_store_hit"),
    "model": ("worker_cpu_us_per_model_call", "store_cpu_us_per_model_call"),
}

_GOALS = {
    "warm_jobs_per_s": "warm jobs/s from enqueue to reply, one worker, one producer",
    "worker_to_floor": "worker CPU per warm job, over that of the bare batched commands",
    "latency_ms_p99": "p99 of a warm job at 500/s, open loop, ms",
    "stampede_calls": "model calls for cold keys that 8 processes with 64 callers each ask at once",
    "dead_model_ratio": "hits/s with a dead model and 5 % misses, over those without both",
    "store_bytes_per_answer": "store memory per cached label, all in, bytes",
}
"""Figure with a goal → what it is, for people."""


def bench_section(document: dict[str, Any]) -> Section:
    """Every figure, and what a job costs by who answers it."""
    runs = document["runs"]
    several = len(runs) > 1
    rows = [
        [
            figure.name,
            shown(document[figure.name]),
            *([_spread([run[figure.name] for run in runs])] if several else []),
            figure.meaning,
        ]
        for figure in FIGURES
        if figure.name in document
    ]
    headings = ["figure", "value", *(["lowest … highest"] if several else []), "what it is"]
    goals = [
        Goal(_GOALS[name], verdict["goal"], shown(document[name]), verdict["met"])
        for name, verdict in document["goals"].items()
        if name in _GOALS
    ]
    tiers = {tier: names for tier, names in _TIERS.items() if all(n in document for n in names)}
    plots = [
        Bars(
            "cost-by-tier",
            "CPU of worker and store per job, by who answers",
            "µs of CPU a job",
            [f"{tier} ({who})" for tier in tiers for who in ("worker", "store")],
            [float(document[name]) for names in tiers.values() for name in names],
            x_log=True,
        )
    ]
    runs_text = "one run" if len(runs) == 1 else f"medians of {len(runs)} runs"
    return Section(
        "Bench",
        [f"One worker, one producer, one embedded store: {runs_text}."],
        plots if tiers else [],
        [Table("Figures", headings, rows, (len(headings) - 1,))],
        goals,
        document.get("machine", {}),
        command=f"bench --json --repeat {len(runs)}",
    )


def _spread(values: list[float]) -> str:
    return f"{shown(min(values))} … {shown(max(values))}"
