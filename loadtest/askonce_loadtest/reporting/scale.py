"""What a job costs along one axis."""

from __future__ import annotations

from typing import Any

from askonce_loadtest.bench.report import shown
from askonce_loadtest.reporting.content import Goal, Plot, Section, Series, Table
from askonce_loadtest.scale.document import COLUMNS

_PARTS = {
    "workers + store": "cost_us_per_job",
    "workers": "worker_cpu_us_per_job",
    "store": "store_cpu_us_per_job",
}
_LINEAR = frozenset({"hits"})
FIXED = "Every point has the same mix of tiers: this is about the system, not the workload."
NOT_FLAT = "Nothing says that it should be flat."


def scale_section(document: dict[str, Any]) -> Section:
    """The cost of a job at every point of an axis."""
    points: list[dict[str, float]] = document["points"]
    at = [point["at"] for point in points]
    axis, title = document["axis"], document["title"]
    plot = Plot(
        f"scale-{axis}",
        f"Cost of a job: {title[0].lower()}{title[1:]}",
        document["unit"],
        "µs of CPU a job",
        [
            Series(label, at, [point[name] for point in points], dashed=label != "workers + store")
            for label, name in _PARTS.items()
        ],
        x_log=axis not in _LINEAR,
        ticks=at,
    )
    headings = (document["unit"], *COLUMNS.values())
    rows = [[f"{point['at']:,g}", *(shown(point[name]) for name in COLUMNS)] for point in points]
    spread = f"{document['spread']:.2f}"
    goals = (
        [Goal(f"{title}: highest cost of a job over lowest", document["goal"], spread, met)]
        if (met := document["met"]) is not None
        else []
    )
    return Section(
        title,
        [f"Highest over lowest: {spread}. {FIXED if goals else NOT_FLAT}"],
        [plot],
        [Table("", headings, rows)],
        goals,
        document.get("machine", {}),
        command=f"scale --only {document['axis']}",
    )
