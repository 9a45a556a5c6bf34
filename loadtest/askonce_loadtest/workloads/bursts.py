"""Bursts: from time to time the rate multiplies, and part of it is one new question (a meme)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

from askonce_loadtest.workloads.ask import Ask


class Bursts(NamedTuple):
    """The last `length_s` of every `every_s` seconds have `factor` times the rate.

    `hot` (0 to 1) is the share of a burst's asks that are of its own question, never asked before.
    """

    every_s: float
    length_s: float
    factor: float
    hot: float

    def time_at(self, quiet_s: float) -> float:
        """When as many asks have come as a time without bursts would have after `quiet_s`.

        This turns evenly or randomly spaced times into those of the bursts (time rescaling: the
        inverse of the cumulated rate).
        """
        calm_s = self.every_s - self.length_s
        period = calm_s + self.length_s * self.factor
        number, rest = divmod(quiet_s, period)
        within = rest if rest <= calm_s else calm_s + (rest - calm_s) / self.factor
        return number * self.every_s + within

    def burst_at(self, t: float) -> int | None:
        """Which burst there is at `t` seconds, counted from 0; None between bursts."""
        number, within = divmod(t, self.every_s)
        return int(number) if within >= self.every_s - self.length_s else None


def bursts(
    next_time: Callable[[], float],
    next_rank: Callable[[], int],
    distinct: int,
    plan: Bursts,
    rng: Random,
) -> Iterator[Ask]:
    """Yield asks without end. Keys from `distinct` on are those of the bursts."""
    while True:
        t = plan.time_at(next_time())
        burst = plan.burst_at(t)
        hot = burst is not None and rng.random() < plan.hot
        yield Ask(t, distinct + burst if hot and burst is not None else next_rank())
