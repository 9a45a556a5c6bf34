"""What a kind of workload yields: which question is asked when, before it has a text."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Literal, NamedTuple

Arrivals = Literal["poisson", "even"]


class Ask(NamedTuple):
    """One ask: at `t` seconds from the start, of question `key`.

    `phrasing` 0 is its text as it is, others are paraphrases. `text` is there when the source of
    the workload has texts of its own.
    """

    t: float
    key: int
    phrasing: int = 0
    text: str | None = None


def steady(rate_per_s: float, arrivals: Arrivals, rng: Random) -> Callable[[], float]:
    """A function that returns one time after the other, in seconds, at a mean of `rate_per_s`.

    `poisson`: independent users, exponential gaps. `even`: all gaps alike.
    """
    t = 0.0

    def next_poisson() -> float:
        nonlocal t
        t += rng.expovariate(rate_per_s)
        return t

    def next_even() -> float:
        nonlocal t
        t += 1 / rate_per_s
        return t

    return next_poisson if arrivals == "poisson" else next_even
