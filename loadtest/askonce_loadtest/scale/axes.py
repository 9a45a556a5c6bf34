"""The axes: which one thing varies, over which values, and what is to stay as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from askonce_loadtest.scale.point import Point

FLAT = 1.5
"""By how much a job's cost may differ along an axis that is to be flat (DESIGN's last table)."""
PRIMARIES = 4
"""Of the cluster on which shards are varied."""
STORE_OF_HITS = 0.29
"""Of the jobs that hit: answered by the store."""
LONG = 1_000
"""Bytes of a message from which on a job costs much more than a short one."""
COSTLY_JOBS = 10_000
"""Jobs of a run whose jobs cost much more than others."""


class Axis(NamedTuple):
    """One thing that varies. `unit` is what its values count; `flat`: cost is to stay the same."""

    name: str
    title: str
    unit: str
    points: Sequence[tuple[float, Point]]
    flat: bool = True
    cluster: bool = False


def make_axes(base: Point, *, most_keys: int) -> Mapping[str, Axis]:
    """Every axis by its name, varied from `base`."""
    costly = min(base.jobs, COSTLY_JOBS)
    keys = [10**power for power in range(3, 8) if 10**power <= most_keys]
    hits = (1.0, 0.99, 0.95, 0.9, 0.75, 0.5)
    sizes = (75, 300, 1_000, 4_000, 16_000)
    axes = (
        Axis(
            "keys",
            "Distinct keys in the store",
            "keys",
            [(count, replace(base, keys=count)) for count in keys],
        ),
        Axis(
            "workers",
            "Worker processes",
            "workers",
            [(count, replace(base, workers=count)) for count in (1, 2, 4, 8)],
        ),
        Axis(
            "shards",
            f"Shards, on a cluster of {PRIMARIES} primaries",
            "shards",
            [(count, replace(base, shards=count)) for count in (1, 2, 4, 8, 16)],
            cluster=True,
        ),
        Axis(
            "size",
            "Message size",
            "bytes",
            [
                (size, replace(base, text_bytes=size, jobs=costly if size >= LONG else base.jobs))
                for size in sizes
            ],
            flat=False,
        ),
        Axis(
            "hits",
            "Hit rate",
            "share of jobs",
            [(rate, _with_hits(base, rate, costly)) for rate in hits],
            flat=False,
        ),
    )
    return {axis.name: axis for axis in axes}


def _with_hits(base: Point, rate: float, costly: int) -> Point:
    return replace(
        base,
        store_share=round(STORE_OF_HITS * rate, 6),
        model_share=round(1 - rate, 6),
        jobs=base.jobs if rate >= 0.99 else costly,  # noqa: PLR2004  at 1 % the model is no burden
    )
