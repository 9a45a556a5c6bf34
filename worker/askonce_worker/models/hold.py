"""The hold: a model that says "not before" (429 with Retry-After, RFC 9110, 10.2.3) is taken at its
word by all flights, not only by the one that was told.
"""

from __future__ import annotations

from askonce_queue.reply import Answer
from askonce_worker.clock import Clock
from askonce_worker.models.protocol import ModelFailure, TransientFailure


class Hold:
    """Lets no call begin until the time that a 429 asked for, at most `longest_s` from then."""

    def __init__(self, clock: Clock, longest_s: float) -> None:
        self._clock = clock
        self._longest_s = longest_s
        self.until = 0.0
        """Until when, monotonic."""

    @property
    def holds(self) -> bool:
        """Whether no call may begin now."""
        return self._clock.monotonic() < self.until

    def ended(self, outcome: Answer | ModelFailure | None) -> None:
        """A call has ended; None: cancelled."""
        if not isinstance(outcome, TransientFailure) or outcome.code != "rate_limited":
            return
        if outcome.retry_after_s:
            hold_s = min(outcome.retry_after_s, self._longest_s)
            self.until = max(self.until, self._clock.monotonic() + hold_s)
