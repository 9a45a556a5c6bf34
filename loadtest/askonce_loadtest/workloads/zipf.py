"""Zipf popularity, with drift: a few questions make most of the traffic, and not for ever the same.

The k-th most popular of `distinct` questions is asked with a chance of exactly
k**-exponent / Σ j**-exponent (Zipf's law; the inverse of the cumulative distribution is searched,
nothing is approximated or rejected).
"""

from __future__ import annotations

import functools
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate
from random import Random
from typing import NamedTuple

from askonce_loadtest.workloads.ask import Ask

MAX_DISTINCT = 10_000_000
"""The table of the distribution takes 8 bytes for each."""


@functools.lru_cache(maxsize=2)
def _cumulated(distinct: int, exponent: float) -> array[float]:
    return array("d", accumulate(rank**-exponent for rank in range(1, distinct + 1)))


def zipf_ranks(distinct: int, exponent: float, rng: Random) -> Callable[[], int]:
    """A function that returns ranks, 0 the most popular. About 0.6 µs each, for a million too."""
    reached = _cumulated(distinct, exponent)
    total, last, point = reached[-1], distinct - 1, rng.random
    # The product may round up to the total, which no rank is beyond.
    return lambda: min(last, bisect_right(reached, point() * total))


class Drift(NamedTuple):
    """Every `every_s` seconds, `step` of the least asked questions become the most asked ones.

    The others move `step` ranks down, so that the head ages and leaves. No drift if either is 0.
    """

    every_s: float = 0.0
    step: int = 0

    def key(self, rank: int, t: float, distinct: int) -> int:
        """The question that has `rank` at `t` seconds."""
        if not self.every_s:
            return rank
        return (rank - int(t / self.every_s) * self.step) % distinct


def zipf(
    next_time: Callable[[], float], next_rank: Callable[[], int], distinct: int, drift: Drift
) -> Iterator[Ask]:
    """Yield asks without end; keys from 0 to `distinct` − 1."""
    while True:
        t = next_time()
        yield Ask(t, drift.key(next_rank(), t, distinct))
