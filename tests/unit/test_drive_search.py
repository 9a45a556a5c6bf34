"""The search for the highest rate: it ends, and ends within its precision of the truth."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from askonce_loadtest.drive.search import LOWEST_PER_S, Search

RATES = st.floats(1, 1e6)


def searched(search: Search, limit: float) -> list[float]:
    """Run a search on something that meets its objective up to a rate of `limit`."""
    tried: list[float] = []
    while (rate := search.next_rate) is not None:
        tried.append(rate)
        search.tell(met=rate <= limit)
    return tried


@given(start=RATES, limit=RATES, precision=st.floats(0.01, 1))
def test_it_finds_the_limit(start: float, limit: float, precision: float) -> None:
    search = Search(start, highest_per_s=1e6, precision=precision)
    tried = searched(search, limit)
    assert search.met is not None
    assert search.met <= limit
    if search.missed is not None:
        assert search.met <= limit < search.missed <= search.met * (1 + precision)
    steps = abs(math.log2(limit / start)) + math.log2(1 / math.log2(1 + precision))
    assert len(tried) <= steps + 5
    assert len(set(tried)) == len(tried)


def test_it_ends_at_its_bounds() -> None:
    high = Search(100, highest_per_s=1_000, precision=0.05)
    assert searched(high, 1e9) == [100, 200, 400, 800, 1_000]
    assert (high.met, high.missed) == (1_000, None)
    low = Search(100, highest_per_s=1_000, precision=0.05)
    assert searched(low, 0)[-1] == LOWEST_PER_S
    assert (low.met, low.missed) == (None, LOWEST_PER_S)
