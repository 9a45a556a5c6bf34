"""Pictures of a comparison: bars, one picture a question, as PNG and SVG.

matplotlib is imported when something is drawn: it comes with askonce[loadtest], and a comparison
without --out does without.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from askonce_loadtest.bench.report import shown
from askonce_loadtest.compare.catalogue import Kind
from askonce_loadtest.compare.figures import REFERENCE, Row

OURS, THEIRS = "#1f6feb", "#9aa4b2"
_DPI = 144
_WIDTH_IN, _ROW_IN, _HEAD_IN = 7.0, 0.34, 1.1


class Plot(NamedTuple):
    """One picture: a figure of all measured peers of a kind."""

    file: str
    kind: Kind
    figure: str
    title: str
    log: bool = False
    more_is_better: bool = False


PLOTS = (
    Plot("queues-jobs", "queue", "jobs_per_s", "warm jobs/s, one worker process", True, True),
    Plot("queues-cpu", "queue", "worker_cpu_us_per_job", "worker CPU per warm job, µs", True),
    Plot("queues-commands", "queue", "store_commands_per_job", "store commands per warm job"),
    Plot("queues-latency", "queue", "latency_ms_p99", "p99 of a single warm job, ms"),
    Plot("caches-lookups", "cache", "jobs_per_s", "warm look-ups/s, one process", True, True),
    Plot("caches-cpu", "cache", "worker_cpu_us_per_job", "CPU per warm look-up, µs", True),
    Plot("caches-stampede", "cache", "cold_calls", "model calls in a stampede"),
)


def draw_plots(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Draw what was measured; return the files. Raises `ImportError` without matplotlib."""
    drawn: list[Path] = []
    for plot in PLOTS:
        bars = [
            (row.name, row.figures[plot.figure], row.name == REFERENCE[plot.kind])
            for row in rows
            if row.kind == plot.kind and row.runs
        ]
        if bars:
            # The best on top.
            bars.sort(key=lambda bar: bar[1], reverse=not plot.more_is_better)
            drawn += _draw(folder, plot, bars)
    return drawn


def _draw(folder: Path, plot: Plot, bars: Sequence[tuple[str, float, bool]]) -> list[Path]:
    from matplotlib.figure import Figure  # noqa: PLC0415 -- see the module's docstring

    picture = Figure(figsize=(_WIDTH_IN, _HEAD_IN + _ROW_IN * len(bars)), layout="constrained")
    axes = picture.subplots()
    names, values, ours = zip(*bars, strict=True)
    shapes = axes.barh(names, values, color=[OURS if own else THEIRS for own in ours])
    axes.bar_label(shapes, labels=[shown(value) for value in values], padding=4, fontsize=9)
    log = plot.log and min(values) > 0
    if log:
        axes.set_xscale("log")
    better = "more is better" if plot.more_is_better else "less is better"
    axes.set_title(f"{plot.title} ({better}{', logarithmic' if log else ''})", fontsize=11)
    axes.margins(x=0.18)
    axes.spines[["top", "right"]].set_visible(False)
    paths = [folder / f"{plot.file}.{kind}" for kind in ("png", "svg")]
    for path in paths:
        picture.savefig(path, dpi=_DPI)
    return paths
