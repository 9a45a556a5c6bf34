"""What one run does: how long, how much, which faults. And the short times that it configures."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Count = Annotated[int, msgspec.Meta(gt=0)]
Positive = Annotated[float, msgspec.Meta(gt=0)]

HEARTBEAT_TTL_S = 1.5
LEASE_TTL_S = 2.0
LEASE_RENEW_S = 0.6
SWEEP_EVERY_S = 1.0
DRAIN_S = 5.0
STAMP_BOUND_S = 0.5
MODEL_TIMEOUT_S = 3.0
"""Longer than a lease: a call that stalls needs its lease renewed."""
MODEL_SLOTS = 32
MODEL_LATENCY_MS = 60.0
MODEL_SIGMA = 0.6
MAX_HELD = 2_000
MAX_WAITING = 200
"""Few enough that misses are deferred while the model is slow."""
ANSWER_TTL_S = 30.0
MEMORY_TTL_S = 5.0
REMEMBER_EXHAUSTED_S = 1.0
MAX_MEMORY = "256mb"

TASK = "question"
"""The task behind the stand-in model server."""
DEADLY_TASK = "deadly"
"""The task whose Python model ends its process on certain texts."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The amounts of one run. `kinds` are the kinds of faults, in the order of `schedule.RECIPES`.

    `rate_per_s` is of all producers together. With `appendfsync = "everysec"` a `kill -9` of the
    store may lose what it acknowledged in up to the last 2 s (when an fsync was in progress), and
    the run will say so; with "always" it may lose nothing.
    """

    minutes: Positive = 1.0
    seed: int = 1
    workers: Count = 3
    producers: Count = 2
    rate_per_s: Positive = 200.0
    shards: Count = 2
    cluster: bool = False
    """Three primaries and three replicas, with failovers, in place of one server."""
    kinds: tuple[str, ...] = ()
    appendfsync: Literal["always", "everysec"] = "always"

    @property
    def load_s(self) -> float:
        """How long there is load and faults; after it everybody gets time to finish."""
        return self.minutes * 60.0
