"""The memory tier against other caches."""

from __future__ import annotations

from typing import Any

from askonce_loadtest.reporting.content import Goal, Plot, Section, Series, Table
from askonce_loadtest.scale.hit_ratio.policies import BEST, OURS


def hit_ratio_section(document: dict[str, Any]) -> Section:
    """A plot a trace, all numbers in a table."""
    found: list[dict[str, Any]] = document["comparisons"]
    names = list(found[0]["ratios"])
    traces = list(dict.fromkeys(one["trace"] for one in found))
    plots = [
        _plot(number, trace, names, [one for one in found if one["trace"] == trace])
        for number, trace in enumerate(traces, 1)
    ]
    rows = [
        [
            one["trace"],
            f"{one['room']:,}",
            *(f"{one['ratios'][name] * 100:.2f}" for name in names),
            "" if one["behind_points"] is None else f"{one['behind_points']:+.2f}",
        ]
        for one in found
    ]
    worst = document["worst_behind_points"]
    goals = (
        [
            Goal(
                "memory tier: most points behind the best named package, on any trace",
                document["goal"],
                f"{worst:.2f}",
                document["met"],
            )
        ]
        if worst is not None
        else []
    )
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    missing = [f"Without {name}: {why}" for name, why in document["missing"].items()]
    return Section(
        "Hit ratio of the memory tier",
        [
            "Share of requests that hit, with room for so many entries of one size.",
            f"Belady knows the future: no cache can do better. {versions}".strip(),
            *missing,
        ],
        plots,
        [Table("Hit ratios, %", ("trace", "room", *names, "points behind"), rows)],
        goals,
        command="scale --only memory",
    )


def _plot(number: int, trace: str, names: list[str], found: list[dict[str, Any]]) -> Plot:
    rooms = [one["room"] for one in found]
    order = sorted(names, key=lambda name: (name != BEST, name != OURS, name))
    return Plot(
        f"hit-ratio-{number}",
        f"Hit ratio: {trace}",
        "entries there is room for",
        "%",
        [
            Series(name, rooms, [one["ratios"][name] * 100 for one in found], dashed=name != OURS)
            for name in order
        ],
        x_log=True,
        ticks=rooms,
    )
