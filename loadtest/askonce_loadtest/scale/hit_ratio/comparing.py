"""Every cache on every trace, with room for several shares of its keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from askonce_loadtest.scale.hit_ratio.policies import OURS, PACKAGES, available_policies
from askonce_loadtest.scale.hit_ratio.traces import Trace

SHARES = (0.01, 0.05, 0.1, 0.25, 0.5)
"""Room for so many of a trace's distinct keys."""
LEAST_ROOM = 64
"""Some 80 kB of a worker's memory; with less, chance decides."""
GOAL_POINTS = 1.0
"""How far we may be behind the best of the packages, in points of a hundred."""


class Comparison(msgspec.Struct, frozen=True):
    """Hit ratios (0 to 1) of all caches on one trace at one size."""

    trace: str
    requests: int
    distinct: int
    room: int
    """Entries there is room for."""
    ratios: dict[str, float]
    behind_points: float | None
    """How far we are behind the best package, in points; below 0: ahead. None: none is here."""


def compare(traces: Sequence[Trace], tell: Callable[[str], None]) -> list[Comparison]:
    """Compare the caches that are here on all traces."""
    policies, _ = available_policies()
    found: list[Comparison] = []
    for trace in traces:
        distinct = trace.distinct
        for room in sorted({max(LEAST_ROOM, round(distinct * share)) for share in SHARES}):
            ratios: dict[str, float] = {}
            for name, policy in policies.items():
                tell(f"memory: {trace.name}, room for {room:,}: {name}")
                ratios[name] = policy(trace.requests, room) / len(trace.requests)
            rivals = [ratios[name] for name in PACKAGES if name in ratios]
            behind = (max(rivals) - ratios[OURS]) * 100 if rivals else None
            found.append(
                Comparison(trace.name, len(trace.requests), distinct, room, ratios, behind)
            )
    return found


def worst_behind(comparisons: Sequence[Comparison]) -> float | None:
    """The most points that we are behind the best package anywhere."""
    known = [one.behind_points for one in comparisons if one.behind_points is not None]
    return max(known, default=None)
