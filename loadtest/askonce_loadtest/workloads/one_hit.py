"""One-hit wonders: a share of all asks is of questions that nobody ever asks again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from random import Random

from askonce_loadtest.workloads.ask import Ask


def one_hit(
    next_time: Callable[[], float],
    next_rank: Callable[[], int],
    distinct: int,
    share: float,
    rng: Random,
) -> Iterator[Ask]:
    """Yield asks without end; keys from `distinct` on are asked once each."""
    fresh = count(distinct)
    while True:
        t = next_time()
        yield Ask(t, next(fresh) if rng.random() < share else next_rank())
