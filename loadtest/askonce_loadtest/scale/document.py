"""What a run of an axis says: one JSON file an axis, and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from askonce_loadtest.bench.child import Figures
from askonce_loadtest.bench.report import shown
from askonce_loadtest.scale.axes import FLAT, Axis
from askonce_loadtest.scale.hit_ratio.comparing import GOAL_POINTS, Comparison, worst_behind
from askonce_loadtest.scale.hit_ratio.policies import BEST, OURS, PACKAGES

COLUMNS = {
    "cost_us_per_job": "µs/job",
    "worker_cpu_us_per_job": "workers",
    "store_cpu_us_per_job": "store",
    "jobs_per_s": "jobs/s",
    "store_client_commands_per_job": "commands",
    "memory_share": "memory",
    "store_share": "store",
    "model_share": "model",
}
"""Figure → heading. The cost is the CPU of all workers and of the store."""


class AxisDocument(msgspec.Struct, frozen=True, tag="scale", tag_field="kind"):
    """`scale-AXIS.json`."""

    axis: str
    title: str
    unit: str
    points: list[Figures]
    spread: float
    """The highest cost of a job over the lowest."""
    goal: str
    """What the spread is to be, or nothing."""
    met: bool | None
    machine: dict[str, str | float]
    plan: Any


class MemoryDocument(msgspec.Struct, frozen=True, tag="hit-ratio", tag_field="kind"):
    """`scale-memory.json`."""

    comparisons: list[Comparison]
    worst_behind_points: float | None
    goal: str
    met: bool | None
    missing: dict[str, str]
    """Cache → why it was left out."""
    versions: dict[str, str]


def axis_document(
    axis: Axis, points: list[Figures], machine: Mapping[str, str | float]
) -> AxisDocument:
    """The document of an axis that was measured."""
    costs = [point["cost_us_per_job"] for point in points]
    spread = max(costs) / min(costs)
    return AxisDocument(
        axis=axis.name,
        title=axis.title,
        unit=axis.unit,
        points=[{name: round(value, 4) for name, value in point.items()} for point in points],
        spread=round(spread, 3),
        goal=f"≤ {FLAT:g}" if axis.flat else "",
        met=spread <= FLAT if axis.flat else None,
        machine=dict(machine),
        plan=axis.points[0][1],
    )


def memory_document(
    comparisons: list[Comparison], missing: Mapping[str, str], versions: Mapping[str, str]
) -> MemoryDocument:
    """The document of the comparison of caches."""
    worst = worst_behind(comparisons)
    return MemoryDocument(
        comparisons=comparisons,
        worst_behind_points=None if worst is None else round(worst, 3),
        goal=f"≤ {GOAL_POINTS:g}",
        met=None if worst is None else worst <= GOAL_POINTS,
        missing=dict(missing),
        versions=dict(versions),
    )


def print_axis(console: Console, document: AxisDocument) -> None:
    """Print the points of an axis, and whether its cost is flat."""
    table = Table(title=f"{document.title}: cost of a job")
    table.add_column(document.unit, justify="right")
    for heading in COLUMNS.values():
        table.add_column(heading, justify="right")
    for point in document.points:
        table.add_row(f"{point['at']:,g}", *(shown(point[name]) for name in COLUMNS))
    console.print(table)
    verdict = _verdict(document.met)
    console.print(f"highest over lowest: {document.spread:.2f} {document.goal} {verdict}\n")


def print_memory(console: Console, document: MemoryDocument) -> None:
    """Print the hit ratios of all caches."""
    table = Table(
        title="Hit ratio of the memory tier against other caches, %",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("trace", no_wrap=True)
    table.add_column("room", justify="right", no_wrap=True)
    names = list(document.comparisons[0].ratios)
    for name in (*names, "behind"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in document.comparisons:
        behind = "" if one.behind_points is None else f"{one.behind_points:+.2f}"
        ratios = _ratios(one, names)
        table.add_row(one.trace, f"{one.room:,}", *ratios, behind)
    console.print(table)
    for name, why in document.missing.items():
        console.print(f"without {name}: {why}")
    if document.worst_behind_points is not None:
        verdict = _verdict(document.met)
        console.print(
            f"most points behind the better of {' and '.join(PACKAGES)}: "
            f"{document.worst_behind_points:.2f} {verdict}\n"
        )


def _ratios(one: Comparison, names: Sequence[str]) -> list[str]:
    best = max(ratio for name, ratio in one.ratios.items() if name != BEST)
    return [
        f"[bold]{one.ratios[name] * 100:.2f}[/]"
        if name == OURS or one.ratios[name] == best
        else f"{one.ratios[name] * 100:.2f}"
        for name in names
    ]


def _verdict(met: bool | None) -> str:
    return "" if met is None else "[green](goal met)[/]" if met else "[red](goal missed)[/]"
