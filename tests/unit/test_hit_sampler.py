"""Which hits are logged: a share of distinct questions, the same for all workers, by the hour."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askonce_worker.hits.sampler import MOST_SEEN, PERIOD_S, Sampler, window

HOUR_MS = PERIOD_S * 1000
KEYS = [hashlib.sha256(b"%d" % n).digest() for n in range(20_000)]


@pytest.mark.parametrize("share", [0.001, 0.01, 0.3, 0.9])
def test_the_share_of_questions_is_chosen(share: float) -> None:
    for period in range(20):
        one = window(share, period)
        chosen = sum(map(one.has, KEYS))
        spread = 6 * (len(KEYS) * share * (1 - share)) ** 0.5
        assert abs(chosen - share * len(KEYS)) < spread


def test_all_and_none() -> None:
    keys = [*KEYS[:100], b"\xff" * 32, bytes(32)]
    assert all(map(window(1.0, 3).has, keys))
    assert not any(map(window(0.0, 3).has, keys))


def test_every_question_has_its_turn() -> None:
    often = [sum(window(0.25, period).has(key) for period in range(100)) for key in KEYS[:300]]
    assert min(often) > 5
    assert max(often) < 60


@given(st.integers(0, 10**6), st.floats(0, 1), st.binary(min_size=32, max_size=32))
def test_the_first_byte_tells_of_most_keys_that_they_are_not_chosen(
    period: int, share: float, key: bytes
) -> None:
    one = window(share, period)
    assert key[0] in one.first_bytes() or not one.has(key)
    assert len(one.first_bytes()) <= 256 * share + 3


def test_a_question_is_taken_once_a_period() -> None:
    sampler = Sampler({"t": 1.0, "u": 0.0}, wall_ms=5 * HOUR_MS)
    assert sampler.take(KEYS[0])
    assert not sampler.take(KEYS[0])
    sampler.turn(6 * HOUR_MS - 1)
    assert not sampler.take(KEYS[0])
    sampler.turn(6 * HOUR_MS)
    assert sampler.take(KEYS[0])
    assert sampler.windows["t"].has(KEYS[1])
    assert not sampler.windows["u"].has(KEYS[1])


def test_it_is_bounded() -> None:
    sampler = Sampler({"t": 1.0}, wall_ms=0)
    assert sum(map(sampler.take, KEYS)) == MOST_SEEN == len(sampler.seen)
