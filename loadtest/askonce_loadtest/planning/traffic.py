"""How often each tier is asked: exact sums over Zipf's law, in steps of ranks.

Key i is asked λᵢ times a second, as a Poisson process. An answer that lives T seconds from when it
was made, hits or not, is made anew every T + 1/λᵢ seconds: so a tier with that TTL misses
λᵢ / (1 + λᵢT) times a second for key i, and holds its answer λᵢT / (1 + λᵢT) of the time (Jung,
Berger, Balakrishnan, "Modeling TTL-based Internet caches", INFOCOM 2003).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from askonce_loadtest.planning.target import Target

_EXACT = 1_000
"""Ranks that are summed one by one; after these a step is a hundredth of the rank."""
_STEP = 100


class Band(NamedTuple):
    """So many keys that are all asked `rate` times a second; popular ones first."""

    keys: int
    rate: float


class Traffic(NamedTuple):
    """Requests a second by who answers them, and how many answers the store holds."""

    memory: float
    store: float
    model: float
    stored: float

    @property
    def rate(self) -> float:
        """All of them."""
        return self.memory + self.store + self.model


def bands(distinct: int, exponent: float, rate: float) -> list[Band]:
    """The popularity of all keys: Zipf, the k-th is asked in proportion to 1 / k**exponent."""
    weights = [(count, middle**-exponent) for count, middle in _ranks(distinct)]
    total = sum(count * weight for count, weight in weights)
    return [Band(count, rate * weight / total) for count, weight in weights]


def misses(popularity: Sequence[Band], ttl_s: float) -> float:
    """How often a second a tier that keeps everything for `ttl_s` has no answer."""
    return sum(band.keys * band.rate / (1 + band.rate * ttl_s) for band in popularity)


def held(popularity: Sequence[Band], ttl_s: float) -> float:
    """How many answers such a tier holds, on average."""
    return sum(band.keys * band.rate * ttl_s / (1 + band.rate * ttl_s) for band in popularity)


def memory_misses(popularity: Sequence[Band], workers: int, entries: int, ttl_s: float) -> float:
    """How often a second the memories of all workers have no answer.

    Each sees its part of every key's requests, and keeps the `entries` most popular answers, which
    is what S3-FIFO comes close to.
    """
    missed, room = 0.0, float(entries)
    for count, rate in popularity:
        kept = min(float(count), room)
        room -= kept
        missed += kept * rate / (1 + rate / workers * ttl_s) + (count - kept) * rate
    return missed


def traffic_of(target: Target, workers: int, memory_entries: int) -> Traffic:
    """Who answers how many requests a second, with so many worker processes."""
    popularity = bands(target.distinct, target.exponent, target.rate)
    if target.hit_rate is None:
        model = misses(popularity, target.ttl_s)
    else:
        model = target.rate * (1 - target.hit_rate)
    if target.memory_hit_rate is None:
        missed = memory_misses(popularity, workers, memory_entries, target.memory_ttl_s)
    else:
        missed = target.rate * (1 - target.memory_hit_rate)
    missed = min(target.rate, max(model, missed))
    stored = min(held(popularity, target.ttl_s), float(target.distinct))
    return Traffic(target.rate - missed, missed - model, model, stored)


def _ranks(distinct: int) -> Iterator[tuple[int, float]]:
    """How many ranks are taken together, and the one in their middle."""
    first = 1
    while first <= distinct:
        count = 1 if first <= _EXACT else min(first // _STEP, distinct - first + 1)
        yield count, first + (count - 1) / 2
        first += count
