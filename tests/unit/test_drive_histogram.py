"""The driver's histogram: as exact as it says, and the same whether counted here or there."""

from __future__ import annotations

import math

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from askonce_loadtest.drive.histogram import MAX_US, RELATIVE_ERROR, Buckets, Histogram

DURATIONS = st.lists(st.integers(0, MAX_US), min_size=1, max_size=200)


def counted(durations: list[int]) -> Histogram:
    histogram = Histogram()
    for us in durations:
        histogram.record(us)
    return histogram


@given(DURATIONS, st.sampled_from([0.0, 1.0, 50.0, 90.0, 99.0, 99.9, 100.0]))
def test_a_percentile_is_at_most_the_stated_error_above_the_true_one(
    durations: list[int], percent: float
) -> None:
    rank = max(1, math.ceil(percent / 100 * len(durations)))
    true = sorted(durations)[rank - 1]
    told = counted(durations).percentile_us(percent)
    assert true <= told <= true * (1 + RELATIVE_ERROR)


@given(st.integers(0, 255))
def test_short_durations_are_exact(us: int) -> None:
    assert counted([us, MAX_US]).percentile_us(50) == us


@given(DURATIONS, DURATIONS)
def test_histograms_of_several_runs_add_up(one: list[int], other: list[int]) -> None:
    together = counted(one + other)
    sum_ = counted(one)
    sum_.add(counted(other))
    encoded = [msgspec.json.encode(counted(part).export()) for part in (one, other)]
    read = Histogram.of(msgspec.json.decode(part, type=Buckets) for part in encoded)
    assert sum_.export() == read.export() == together.export()
    assert sum_.summary() == read.summary() == together.summary()
    assert together.summary().max == max(one + other) / 1e3
    assert math.isclose(together.summary().mean, sum(one + other) / len(one + other) / 1e3)


@given(DURATIONS, st.integers(0, MAX_US))
def test_over_counts_what_is_certainly_longer(durations: list[int], limit_us: int) -> None:
    over = counted(durations).over(limit_us)
    assert over <= sum(us > limit_us for us in durations)
    assert over >= sum(us > limit_us * (1 + RELATIVE_ERROR) for us in durations)


def test_what_is_out_of_range_is_counted_at_its_end() -> None:
    histogram = counted([-5, MAX_US * 3])
    assert histogram.percentile_us(50) == 0
    assert histogram.max_us == MAX_US * 3
    assert Histogram().summary().p99 == Histogram().percentile_us(100) == 0
