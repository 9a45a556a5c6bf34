"""How much a run measures."""

from __future__ import annotations

from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(gt=0)]
Positive = Annotated[float, msgspec.Meta(gt=0)]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The amounts of one run; the defaults are those of the design's table."""

    jobs: Count = 200_000
    """Jobs of the warm run, of the enqueue run and of the floor."""
    texts: Count = 2_000
    """Distinct texts among them."""
    exponent: float = 1.05
    """Of their Zipf distribution."""
    paced_per_s: Positive = 500.0
    paced_jobs: Count = 15_000
    """Jobs of the latency run, about: at 500 a second, half a minute."""
    askers: Count = 8
    """Processes of the stampede."""
    callers: Count = 64
    """Callers in each of them; every one asks all cold keys."""
    cold_keys: Count = 50
    tier_jobs: Count = 10_000
    """Jobs of each round in which other tiers than the memory answer."""
    answers: Count = 100_000
    """Distinct answers stored to measure the store's memory."""
    model_latency_ms: Positive = 100.0
    """Of the stand-in model server."""
    limit_s: Positive = 600.0
    """Longest time for any one measurement; beyond it the run fails."""
    seed: int = 1


QUICK = Plan(jobs=20_000, paced_jobs=1_500, tier_jobs=1_500, answers=10_000)
"""Under half a minute: to see that it works, not for figures to quote."""
