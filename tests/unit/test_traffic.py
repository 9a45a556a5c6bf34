"""The sums behind a plan, against simulations and against what must hold whatever the numbers."""

from __future__ import annotations

import heapq
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askonce_loadtest.planning.target import Target
from askonce_loadtest.planning.traffic import bands, held, memory_misses, misses, traffic_of

rates = st.floats(0.01, 1e7)
keys = st.integers(1, 10**9)
exponents = st.floats(0, 3)
ttls = st.floats(0.01, 1e8)


@given(distinct=keys, exponent=exponents, rate=rates)
def test_the_bands_are_all_keys_and_all_requests(
    distinct: int, exponent: float, rate: float
) -> None:
    found = bands(distinct, exponent, rate)
    assert sum(band.keys for band in found) == distinct
    assert sum(band.keys * band.rate for band in found) == pytest.approx(rate)
    assert [band.rate for band in found] == sorted((b.rate for b in found), reverse=True)
    assert len(found) < 4_000


def test_many_ranks_at_once_are_nearly_exact() -> None:
    exact = [rank**-1.0 for rank in range(1, 200_001)]
    top = sum(exact[:5_000]) / sum(exact)
    found = bands(200_000, 1.0, 1.0)
    seen, mass = 0, 0.0
    for band in found:
        if seen >= 5_000:
            break
        seen += band.keys
        mass += band.keys * band.rate
    assert mass == pytest.approx(top, rel=0.01)


@given(distinct=keys, exponent=exponents, rate=rates, ttl=ttls, workers=st.integers(1, 1_000))
def test_tiers_get_what_there_is(
    distinct: int, exponent: float, rate: float, ttl: float, workers: int
) -> None:
    target = Target(rate=rate, distinct=distinct, exponent=exponent, ttl_s=ttl)
    found = traffic_of(target, workers, 50_000)
    assert min(found.memory, found.store, found.model) >= -1e-9 * rate
    assert found.rate == pytest.approx(rate)
    assert 0 <= found.stored <= distinct
    assert found.model <= rate


@given(distinct=keys, exponent=exponents, rate=rates, ttl=ttls)
def test_longer_lives_and_fewer_workers_miss_less(
    distinct: int, exponent: float, rate: float, ttl: float
) -> None:
    popularity = bands(distinct, exponent, rate)
    assert misses(popularity, ttl * 2) <= misses(popularity, ttl) <= rate * 1.000001
    assert held(popularity, ttl * 2) >= held(popularity, ttl)
    one = memory_misses(popularity, 1, 1_000, ttl)
    assert one <= memory_misses(popularity, 8, 1_000, ttl) * 1.000001


def test_misses_are_those_of_a_simulated_cache_with_a_ttl() -> None:
    distinct, rate, ttl_s, seconds = 500, 100.0, 20.0, 2_000.0
    popularity = bands(distinct, 1.0, rate)
    per_key = [band.rate for band in popularity for _ in range(band.keys)]
    rng = random.Random(1)
    arrivals = [(rng.expovariate(one), key) for key, one in enumerate(per_key)]
    heapq.heapify(arrivals)
    until = dict.fromkeys(range(distinct), 0.0)
    missed = 0
    while arrivals[0][0] < seconds:
        now, key = arrivals[0]
        if now >= until[key]:
            missed += 1
            until[key] = now + ttl_s
        heapq.heapreplace(arrivals, (now + rng.expovariate(per_key[key]), key))
    assert misses(popularity, ttl_s) == pytest.approx(missed / seconds, rel=0.05)
