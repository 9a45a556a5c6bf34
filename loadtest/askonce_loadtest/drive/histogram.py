"""A histogram of durations in whole microseconds, exact to 0.8 %, as HdrHistogram counts them.

Values below 256 µs have a bucket each; above, every power of two is cut into 128 buckets of one
width, so a bucket is at most 1/128 of its lowest value wide. (The layout of Gil Tene's HdrHistogram
with 7 bits. Its Python port takes 2 µs a value, and setuptools at run time.) Histograms of several
runs or processes can be added up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Self

import msgspec

RELATIVE_ERROR = 1 / 128
"""The width of a bucket, as a share of its lowest value; below 256 µs values are exact."""
MAX_US = 3_600_000_000
"""Longer durations count as one hour in the buckets; `max_us` is what they were."""
_BITS = 7


class Histogram:
    """Counts of durations. A percentile is never less than the true one, and at most 0.8 % more."""

    def __init__(self) -> None:
        self.count = 0
        self.max_us = 0
        self.sum_us = 0
        self._counts = [0] * (_index(MAX_US) + 1)

    def record(self, us: int, times: int = 1) -> None:
        """Count a duration in µs; one below 0 (the clock was read in between) counts as 0."""
        us = max(0, us)
        self._counts[_index(min(us, MAX_US))] += times
        self.count += times
        self.sum_us += us * times
        self.max_us = max(self.max_us, us)

    def add(self, other: Self) -> None:
        """Add all that another histogram has counted."""
        self._counts = [a + b for a, b in zip(self._counts, other._counts, strict=True)]
        self.count += other.count
        self.sum_us += other.sum_us
        self.max_us = max(self.max_us, other.max_us)

    def percentile_us(self, percent: float) -> int:
        """The duration that `percent` (0 to 100) of all are not above (nearest rank); 0 if none."""
        rank = max(1, math.ceil(percent / 100 * self.count))
        seen = 0
        for index, count in enumerate(self._counts):
            seen += count
            if seen >= rank:
                return min(_highest(index), self.max_us)
        return 0

    def over(self, us: int) -> int:
        """How many were certainly longer than `us`: those in buckets beyond its own."""
        return sum(self._counts[_index(min(max(0, us), MAX_US)) + 1 :])

    def summary(self) -> Summary:
        """The usual percentiles."""
        return Summary(
            count=self.count,
            mean=self.sum_us / self.count / 1e3 if self.count else 0.0,
            p50=self.percentile_us(50) / 1e3,
            p90=self.percentile_us(90) / 1e3,
            p99=self.percentile_us(99) / 1e3,
            p99_9=self.percentile_us(99.9) / 1e3,
            max=self.max_us / 1e3,
        )

    def export(self) -> Buckets:
        """All of it, for JSON."""
        filled = [(_highest(i), count) for i, count in enumerate(self._counts) if count]
        return Buckets(max_us=self.max_us, sum_us=self.sum_us, counts=filled)

    @classmethod
    def of(cls, buckets: Iterable[Buckets]) -> Self:
        """The sum of exported histograms."""
        total = cls()
        max_us = sum_us = 0
        for one in buckets:
            for us, times in one.counts:
                total.record(us, times)
            max_us, sum_us = max(max_us, one.max_us), sum_us + one.sum_us
        # A bucket says neither exactly.
        total.max_us, total.sum_us = max_us, sum_us
        return total


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Percentiles in milliseconds, exact to 0.8 % upwards."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    p99_9: float
    max: float


class Buckets(msgspec.Struct, frozen=True, kw_only=True):
    """A histogram as JSON: `counts` has pairs of a bucket's highest value in µs and its count."""

    max_us: int
    sum_us: int
    counts: list[tuple[int, int]]


def _index(us: int) -> int:
    shift = max(0, us.bit_length() - _BITS - 1)
    return (shift << _BITS) + (us >> shift)


def _highest(index: int) -> int:
    """The longest duration that bucket `index` counts."""
    shift = max(0, (index >> _BITS) - 1)
    return ((index - (shift << _BITS) + 1) << shift) - 1
