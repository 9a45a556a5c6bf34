"""The Wilson interval, against published values and what an interval has to be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askonce_worker.observe.wilson import wilson


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        # Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I,
        # method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_intervals(hits: int, n: int, low: float, high: float) -> None:
    assert wilson(hits, n) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_share_is_inside_and_the_interval_within_bounds(some: int, more: int) -> None:
    low, high = wilson(some, some + more)
    assert 0.0 <= low <= high <= 1.0
    if some + more:
        assert low - 1e-12 <= some / (some + more) <= high + 1e-12


def test_without_a_sample_nothing_is_known() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
