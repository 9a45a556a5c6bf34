from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askonce_worker.observe.wilson import wilson


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (0, 0, 0, 1),
        (0, 10, 0, 0.2775),
        (10, 10, 0.7225, 1),
        (1, 10, 0.0179, 0.4042),
        (50, 100, 0.4038, 0.5962),
        (4, 1000, 0.0016, 0.0102),
    ],
)
def test_known_intervals(hits: int, n: int, low: float, high: float) -> None:
    assert wilson(hits, n) == pytest.approx((low, high), abs=0.0001)


@given(st.integers(1, 10**9), st.data())
def test_the_share_is_inside(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    low, high = wilson(hits, n)
    assert 0 <= low <= hits / n <= high <= 1
