"""A circuit breaker for one shard: while it is unreachable, callers are told at once.

closed → open after a failure that outlasted its retries; open → half-open when its pause is over
(at once, the first time): one caller probes, the others are still refused; a success closes it, a
failure opens it for longer.
Source: Nygard, "Release It!", stability pattern Circuit Breaker.
"""

from __future__ import annotations

import random

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0


class Breaker:
    """One shard's state. Times are monotonic seconds, given by the caller."""

    def __init__(self, rng: random.Random) -> None:
        self.last_error: Exception | None = None
        """Why it is not closed; None while it is."""
        self._rng = rng
        self._pause_s = 0.0
        self._open_until = 0.0
        self._probing = False

    @property
    def closed(self) -> bool:
        """Whether the shard was reachable when it was last asked."""
        return self.last_error is None

    def admit(self, now: float) -> bool:
        """Whether a caller may ask the shard now; then report with `succeeded`, `failed`, or
        `abandoned`.
        """
        if self.last_error is None:
            return True
        if self._probing or now < self._open_until:
            return False
        self._probing = True
        return True

    def succeeded(self) -> None:
        """The shard answered, if only with a refusal."""
        self.last_error = None
        self._probing = False
        self._pause_s = 0.0

    def failed(self, now: float, error: Exception) -> None:
        """The shard could not be reached."""
        if self.last_error is not None and not self._probing:
            return  # one of several that were under way when it failed
        self._probing = False
        self.last_error = error
        self._open_until = now + self._pause_s * self._rng.uniform(0.5, 1.0)
        self._pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2 * self._pause_s))

    def abandoned(self) -> None:
        """A caller was cancelled before the shard answered: somebody else may probe."""
        self._probing = False
