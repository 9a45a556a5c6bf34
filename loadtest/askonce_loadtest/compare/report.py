"""The report of a comparison: JSON for programs, tables for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

import msgspec
from rich.console import Console
from rich.table import Table

from askonce_loadtest.bench.child import Figures
from askonce_loadtest.bench.report import shown
from askonce_loadtest.compare.catalogue import BY_NAME, Kind
from askonce_loadtest.compare.figures import FIGURES, REFERENCE, Row, ratios, to_best_queue
from askonce_loadtest.compare.plan import Plan
from askonce_loadtest.compare.running import Outcome

TITLES: dict[Kind, str] = {
    "queue": "queues: jobs through a worker process, with the get-or-call recipe",
    "cache": "caches: look-ups in the caller's process",
}
# Two tables a kind, so that they fit a terminal of 80 columns.
_SPEED = (
    "jobs_per_s",
    "worker_cpu_us_per_job",
    "store_cpu_us_per_job",
    "store_commands_per_job",
)
_REST = (
    "latency_ms_p50",
    "latency_ms_p99",
    "cold_calls_above_one",
    "cold_commands_per_ask",
    "worker_rss_mb",
    "store_bytes_per_answer",
)
_DIGITS = 3


def as_json(plan: Plan, outcome: Outcome) -> bytes:
    """Return all that was measured as one JSON object: figures, ratios, runs, plan, machine."""
    better = ratios(outcome.rows)
    best = to_best_queue(outcome.rows)
    report = {
        "kind": "compare",
        "jobs_per_s_to_best_queue": None if math.isnan(best) else round(best, _DIGITS),
        "peers": [
            {
                "name": row.name,
                "kind": row.kind,
                "status": row.status,
                "reason": row.reason,
                "settings": row.settings,
                "versions": row.versions,
                "figures": _rounded(row.figures),
                "askonce_times_better": _rounded(better.get(row.name, {})),
                "runs": row.runs,
            }
            for row in outcome.rows
        ],
        "meanings": {figure.name: figure.meaning for figure in FIGURES},
        "plan": plan,
        "machine": outcome.machine,
        "noise_ms": [round(value, _DIGITS) for value in outcome.noise],
    }
    return msgspec.json.format(msgspec.json.encode(report), indent=2)


def _rounded(figures: Figures) -> Figures:
    return {name: round(value, _DIGITS) for name, value in figures.items()}


def print_tables(console: Console, plan: Plan, outcome: Outcome) -> None:
    """Print a table for queues and one for caches, what was not measured, and on what."""
    for kind, title in TITLES.items():
        rows = [row for row in outcome.rows if row.kind == kind]
        if rows:
            console.print(_table(title, kind, rows, _SPEED))
            console.print(_table(f"{kind}s: latency, cold keys, memory", kind, rows, _REST))
    for row in outcome.rows:
        if row.status != "measured":
            console.print(f"{row.name} {row.status}: {row.reason}", markup=False)
    best = to_best_queue(outcome.rows)
    if not math.isnan(best):
        console.print(
            f"askonce does {best:.1f} times the jobs/s of the best other queue (goal: ≥ 25)"
        )
    _print_conditions(console, plan, outcome)


def _table(title: str, kind: Kind, rows: Sequence[Row], names: Sequence[str]) -> Table:
    runs = max(len(row.runs) for row in rows)
    table = Table(title=title + (f", medians of {runs} runs" if runs > 1 else ""))
    table.add_column("peer", no_wrap=True)
    figures = [figure for figure in FIGURES if figure.name in names]
    for figure in figures:
        table.add_column(figure.heading, justify="right")
        if figure.name == "jobs_per_s":
            if runs > 1:
                table.add_column("lowest … highest", justify="right")
            table.add_column("ratio", justify="right")
    better = ratios(rows)
    for row in rows:
        cells: list[str] = []
        for figure in figures:
            value = row.figures.get(figure.name)
            cells.append("-" if value is None else shown(value))
            if figure.name == "jobs_per_s":
                if runs > 1:
                    cells.append(
                        " … ".join(map(shown, row.spread(figure.name))) if row.runs else ""
                    )
                ratio = better.get(row.name, {}).get(figure.name)
                cells.append("" if ratio is None else f"{ratio:.1f}")
        table.add_row(_label(row), *cells, style="bold" if row.name == REFERENCE[kind] else None)
    return table


def _label(row: Row) -> str:
    version = row.versions.get(BY_NAME[row.name].shows[0], "")
    return f"{row.name} {version}".strip() + ("" if row.status == "measured" else " *")


def _print_conditions(console: Console, plan: Plan, outcome: Outcome) -> None:
    for row in outcome.rows:
        if row.runs:
            also = BY_NAME[row.name].shows[1:]
            versions = [f"{name} {row.versions[name]}" for name in also if name in row.versions]
            said = ", ".join([row.settings, *versions])
            console.print(f"{row.name}: {said}", markup=False, highlight=False)
    if outcome.noise:
        low, middle, high = min(outcome.noise), median(outcome.noise), max(outcome.noise)
        console.print(
            f"noise: the same bit of Python took {low:.1f} … {high:.1f} ms, median {middle:.1f}, "
            "before each measurement; the more these differ, the less the figures say"
        )
    console.print(
        f"{plan.jobs:,} jobs or more, {plan.seconds:g} s or longer, of {plan.distinct:,} texts; "
        f"latency at {plan.paced_per_s:g}/s; {plan.cold_keys} cold keys, by {plan.askers} processes"
        f" of {plan.callers} callers (caches) or {plan.copies} times (queues, {plan.cold_workers}"
        " workers)"
    )
    console.print(", ".join(f"{name} {value}" for name, value in outcome.machine.items()))
