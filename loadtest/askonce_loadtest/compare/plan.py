"""How much a comparison asks."""

from __future__ import annotations

import msgspec

from askonce_loadtest.bench.plan import Count, Positive

LABELS = ("positive", "negative")
"""What the stand-in model's `/predict` answers."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The amounts for each peer and repeat."""

    jobs: Count = 1_000
    """The least number of jobs of the throughput run; it goes on until `seconds` have passed."""
    seconds: float = 3.0
    distinct: Count = 1_000
    """Distinct texts among them."""
    exponent: float = 1.05
    """Of their Zipf distribution."""
    callers: Count = 64
    """Coroutines or threads that ask at once, where a peer has no way of its own to ask for many;
    also the callers in each process of the caches' stampede.
    """
    paced_per_s: Positive = 50.0
    paced_jobs: Count = 200
    """Jobs of the latency run."""
    cold_keys: Count = 50
    cold_workers: Count = 2
    """Worker processes of a queue's cold run."""
    copies: Count = 20
    """How often a queue's producer asks every cold text."""
    askers: Count = 8
    """Processes of a cache's stampede."""
    model_latency_ms: Positive = 20.0
    limit_s: Positive = 120.0
    """Longest time for any one step of a peer; beyond it the peer is ended."""
    seed: int = 1


QUICK = Plan(
    jobs=200, seconds=0.2, distinct=50, paced_jobs=20, cold_keys=10, copies=10, askers=2, callers=16
)
"""A few seconds a peer: to see that it works, not for figures to quote."""
