"""askonce and what a user would pick instead, in one run."""

from __future__ import annotations

from statistics import median
from typing import Any

from askonce_loadtest.bench.report import shown
from askonce_loadtest.reporting.content import Bars, Section, Table

_PLOTTED = {
    "jobs_per_s": ("Warm jobs/s", "jobs/s"),
    "worker_cpu_us_per_job": ("Worker CPU per warm job", "µs"),
    "store_commands_per_job": ("Store commands per warm job", "commands"),
    "cold_calls_above_one": ("Model calls above one per key, cold", "calls"),
    "latency_ms_p99": ("p99 latency", "ms"),
}
"""Figure → title and unit of its bars; the first two are logarithmic."""
_LOG = frozenset({"jobs_per_s", "worker_cpu_us_per_job", "store_commands_per_job"})
_KINDS = {"queue": "queues", "cache": "caches"}


def comparison_section(document: dict[str, Any]) -> Section:
    """Bars a figure and kind of peer, and all figures in a table."""
    rows: list[dict[str, Any]] = document.get("rows") or document["peers"]
    measured = [(row, figures) for row in rows if (figures := _figures(row))]
    plots: list[Bars] = []
    tables: list[Table] = []
    for kind in dict.fromkeys(str(row.get("kind", "")) for row, _ in measured):
        ours = [(row, figures) for row, figures in measured if str(row.get("kind", "")) == kind]
        name = _KINDS.get(kind, kind)
        plots += _bars(name, ours)
        tables.append(_table(name, ours))
    left_out = [
        f"{row['name']}: {row.get('status', 'left out')}, {row.get('reason', '')}"
        for row in rows
        if not _figures(row)
    ]
    return Section(
        "Compared with others",
        ["The same jobs, the same stand-in model, the same store, in one run.", *left_out],
        plots,
        tables,
        machine=document.get("machine", {}),
    )


def _figures(row: dict[str, Any]) -> dict[str, float]:
    figures: dict[str, float] | None = row.get("figures")
    if figures:
        return figures
    runs: list[dict[str, float]] = row.get("runs") or []
    return {
        name: median([run[name] for run in runs])
        for name in (runs[0] if runs else {})
        if all(name in run for run in runs)
    }


def _bars(kind: str, found: list[tuple[dict[str, Any], dict[str, float]]]) -> list[Bars]:
    plots: list[Bars] = []
    for figure, (title, unit) in _PLOTTED.items():
        has = [(str(row["name"]), values[figure]) for row, values in found if figure in values]
        if len(has) > 1:
            has.sort(key=lambda one: one[1], reverse=figure == "jobs_per_s")
            plots.append(
                Bars(
                    f"compare-{kind}-{figure.replace('_', '-')}",
                    f"{title}: {kind}",
                    unit,
                    [name for name, _ in has],
                    [value for _, value in has],
                    ours=next((name for name, _ in has if name.startswith("askonce")), ""),
                    x_log=figure in _LOG and min(value for _, value in has) > 0,
                )
            )
    return plots


def _table(kind: str, found: list[tuple[dict[str, Any], dict[str, float]]]) -> Table:
    names = list(dict.fromkeys(name for _, figures in found for name in figures))
    rows = [
        [str(row["name"]), *(shown(figures[name]) if name in figures else "" for name in names)]
        for row, figures in found
    ]
    return Table(kind, ("", *(name.replace("_", " ") for name in names)), rows)
