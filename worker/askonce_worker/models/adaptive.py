"""The adaptive limit: how many calls a model can take, found out by additive increase and
multiplicative decrease.

Algorithm: D. Chiu, R. Jain, "Analysis of the Increase and Decrease Algorithms for Congestion
Avoidance in Computer Networks", 1989 (of such rules this one ends up fair between workers that know
nothing of each other), in the form that TCP gave it (RFC 5681): congestion halves the limit, at
most once a round trip, and brings it down to what is in flight; below the half of the limit that
was too much it grows by one a call ("slow start"), above by one a round trip. It grows only while
it is used (RFC 7661). Congestion is a 429 or a timeout.
"""

from __future__ import annotations

from askonce_queue.reply import Answer
from askonce_worker.models.protocol import ModelFailure, TransientFailure

DECREASE = 0.5
CONGESTION = frozenset({"rate_limited", "timeout"})


class AdaptiveLimit:
    """At most `most` calls at once, fewer after congestion, at least one. Implements `Limit`."""

    def __init__(self, most: int) -> None:
        self._most = float(most)
        self._limit = self._most
        self._slow_below = self._most
        self._in_flight = 0
        self._old = 0
        """Calls in flight that began before the last decrease: they prove nothing about it. Which
        they are is not known; that many ends are let pass."""

        self._used = 0
        """How many ends of calls prove that the limit is used: those in flight when it was met."""

    @property
    def limit(self) -> int:
        """How many calls may be under way."""
        return int(self._limit)

    @property
    def down(self) -> bool:
        """Never: it is for busy models."""
        return False

    def room(self, in_flight: int) -> int:
        """How many more may begin; negative while more are under way than it allows by now."""
        return int(self._limit) - in_flight

    def began(self) -> None:
        """A call begins."""
        self._in_flight += 1
        if self._in_flight >= int(self._limit):
            self._used = self._in_flight

    def ended(self, outcome: Answer | ModelFailure | None) -> None:
        """A call has ended; None: cancelled."""
        in_flight = self._in_flight
        self._in_flight -= 1
        old = self._old > 0
        self._old -= old
        if isinstance(outcome, TransientFailure):
            if outcome.code in CONGESTION and not old:
                self._shrink(in_flight)
        elif outcome is not None and self._used:
            self._used -= 1
            step = 1.0 if self._limit < self._slow_below else 1.0 / self._limit
            self._limit = min(self._most, self._limit + step)

    def restart(self) -> None:
        """The model was down: begin with one call."""
        self._shrink(1)

    def _shrink(self, in_flight: int) -> None:
        self._slow_below = max(1.0, self._limit * DECREASE)
        self._limit = min(self._slow_below, max(1.0, float(in_flight)))
        self._old = self._in_flight
