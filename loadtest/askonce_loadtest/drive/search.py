"""The search for the highest rate that meets an objective: which rate to try next. No I/O.

First geometric (double while it is met, halve while it is not), then binary between the highest
rate that met it and the lowest that did not, until they are within `precision` of each other.
"""

from __future__ import annotations

import math

LOWEST_PER_S = 1.0


class Search:
    """Ask `next_rate`, try it, `tell` what came of it; over when there is no next rate."""

    def __init__(self, start_per_s: float, *, highest_per_s: float, precision: float) -> None:
        assert LOWEST_PER_S <= start_per_s <= highest_per_s
        assert precision > 0
        self.met: float | None = None
        """The highest rate that met the objective; None while none has."""
        self.missed: float | None = None
        """The lowest that did not."""
        self._highest = highest_per_s
        self._precision = precision
        self._next: float | None = start_per_s

    @property
    def next_rate(self) -> float | None:
        """The rate to try now, in requests a second; None: the search is over."""
        return self._next

    def tell(self, *, met: bool) -> None:
        """Say whether the rate that was next has met the objective."""
        assert self._next is not None
        if met:
            self.met = self._next
        else:
            self.missed = self._next
        self._next = self._choose()

    def _choose(self) -> float | None:
        if self.met is None:
            assert self.missed is not None
            return max(LOWEST_PER_S, self.missed / 2) if self.missed > LOWEST_PER_S else None
        if self.missed is None:
            return min(self._highest, 2 * self.met) if self.met < self._highest else None
        if self.missed / self.met <= 1 + self._precision:
            return None
        return math.sqrt(self.met * self.missed)
