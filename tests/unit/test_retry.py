"""The backoff between attempts: bounded, jittered, and never earlier than the API asked."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askonce_worker.models.retry import RetryPolicy

attempts = st.integers(min_value=-3, max_value=10**6)
rngs = st.builds(random.Random, st.integers())


@given(attempts, rngs)
def test_the_delay_stays_below_the_exponential_ceiling_and_the_cap(
    attempt: int, rng: random.Random
) -> None:
    delay_s = RetryPolicy(base_s=0.25, cap_s=8.0).delay_s(attempt, None, rng)
    ceiling_s = 0.25 * 2 ** min(max(attempt - 1, 0), 10)
    assert 0 <= delay_s <= min(8.0, ceiling_s)


@given(attempts, rngs, st.floats(min_value=0, max_value=60))
def test_it_is_never_earlier_than_retry_after(
    attempt: int, rng: random.Random, retry_after_s: float
) -> None:
    delay_s = RetryPolicy().delay_s(attempt, retry_after_s, rng)
    assert retry_after_s <= delay_s <= retry_after_s + 8.0


@given(rngs, st.floats(min_value=60, allow_infinity=True, allow_nan=False))
def test_an_api_cannot_make_us_wait_beyond_the_cap(
    rng: random.Random, retry_after_s: float
) -> None:
    assert 60 <= RetryPolicy().delay_s(1, retry_after_s, rng) <= 60 + 0.25


def test_a_negative_retry_after_counts_as_none_to_wait() -> None:
    assert 0 <= RetryPolicy().delay_s(1, -5.0, random.Random(1)) <= 0.25


def test_the_jitter_spreads_over_the_whole_range() -> None:
    rng = random.Random(7)
    delays = [RetryPolicy().delay_s(3, None, rng) for _ in range(2000)]
    assert min(delays) < 0.05
    assert max(delays) > 0.95
    assert abs(sum(delays) / len(delays) - 0.5) < 0.05


def test_callers_who_got_the_same_retry_after_do_not_come_back_together() -> None:
    rng = random.Random(7)
    assert len({RetryPolicy().delay_s(1, 2.0, rng) for _ in range(100)}) == 100


@pytest.mark.parametrize(
    "fields",
    [
        {"max_attempts": 0},
        {"base_s": 0.0},
        {"base_s": 9.0},
        {"cap_s": 0.1},
        {"retry_after_cap_s": -1.0},
    ],
)
def test_values_that_cannot_be_meant_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"max_attempts|base_s|retry_after_cap_s"):
        RetryPolicy(**fields)  # type: ignore[arg-type]  # one of them is an int
