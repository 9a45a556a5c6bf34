"""The circuit breaker of a model: after a run of failures it is not asked, but for single probes.

    closed ── a run of failures that proves an outage ──▶ open ── its time is over ──▶ half-open
       ▲                                                   ▲                             │
       └────────────── a probe is answered ────────────────┼─────────────────────────────┤
                                                           └──────── a probe fails ──────┘

Pattern: M. Nygard, "Release It!", 2007, "Circuit Breaker". What proves an outage is a run of
failures, with no answer between, of several *different* questions: one question that always fails
says nothing about its model. A connection that could not be made says nothing about the question,
so two of those will do. The time it stays open doubles with every probe that fails, with "equal
jitter" (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015), so that workers
do not probe together. A model that breaks down again soon after a probe was answered is left alone
for longer than the last time.

Not to be confused with `askonce_queue.breaker`, which is about the servers of the store.
"""

from __future__ import annotations

import enum
import random
from typing import NamedTuple

from askonce_queue.reply import Answer
from askonce_worker.clock import Clock
from askonce_worker.models.protocol import ModelFailure, TransientFailure

NO_LIMIT = 1 << 30
QUESTIONS = 3
"""How many different questions must be among the failures."""
_MOST_DOUBLINGS = 64


class Circuit(enum.Enum):
    """What a breaker lets through."""

    CLOSED = "closed"
    """All calls."""
    HALF_OPEN = "half_open"
    """Probes: if one is answered, it closes."""
    OPEN = "open"
    """None."""


class CircuitPolicy(NamedTuple):
    """When a breaker opens, and for how long; times in seconds.

    `failures` in a row open it, `unreachable` if no connection could be made. It stays open for
    between half and all of `open_s`, doubled up to `longest_open_s` as long as probes fail.
    """

    failures: int = 8
    unreachable: int = 2
    open_s: float = 1.0
    longest_open_s: float = 30.0
    probes: int = 1


class CircuitBreaker:
    """Decides, from how calls end, whether a model may be asked. No I/O, no timers."""

    def __init__(self, policy: CircuitPolicy, clock: Clock, rng: random.Random) -> None:
        self._policy = policy
        self._clock = clock
        self._rng = rng
        self._closed = True
        self._generation = 0
        """Of calls: what began before the last change of state proves nothing about now."""
        self._failed: set[bytes] = set()
        self._failures = 0
        self._unreachable = 0
        self._doublings = 0
        self._open_s = 0.0
        self._probing = 0
        self._changed_at = clock.monotonic()
        self.until = 0.0
        """When it is half-open, monotonic; means nothing while it is closed."""
        self.openings = 0
        """How often it has opened, failed probes not counted."""
        self.probes = 0
        """How many probes have begun."""

    @property
    def state(self) -> Circuit:
        """What it lets through now."""
        if self._closed:
            return Circuit.CLOSED
        return Circuit.OPEN if self._clock.monotonic() < self.until else Circuit.HALF_OPEN

    @property
    def room(self) -> int:
        """How many calls may begin now."""
        match self.state:
            case Circuit.CLOSED:
                return NO_LIMIT
            case Circuit.HALF_OPEN:
                return max(0, self._policy.probes - self._probing)
            case Circuit.OPEN:
                return 0

    def began(self) -> int:
        """A call begins; to be given back to `ended`."""
        if self._closed:
            return self._generation
        if self._clock.monotonic() < self.until:
            return -1  # it should not have; what comes of it is not looked at
        self._probing += 1
        self.probes += 1
        return self._generation

    def ended(self, outcome: Answer | ModelFailure | None, key: bytes, ticket: int) -> bool:
        """A call about `key` has ended; whether that has opened or closed the breaker, or kept
        it open. None: it was cancelled.
        """
        if ticket != self._generation:
            return False
        if self._closed:
            return self._counted(outcome, key)
        self._probing -= 1
        if outcome is None:
            return False
        if is_outage(outcome):
            self._open(outcome)
        else:
            self._close()
        return True

    def _counted(self, outcome: Answer | ModelFailure | None, key: bytes) -> bool:
        """Count how a call ended while it is closed; whether that has opened it."""
        if outcome is None:
            return False
        if not is_outage(outcome):
            if not isinstance(outcome, TransientFailure):
                self._forget_run()
            return False
        self._failures += 1
        if len(self._failed) < QUESTIONS:
            self._failed.add(key)
        if isinstance(outcome, TransientFailure) and not outcome.reached:
            self._unreachable += 1
        policy = self._policy
        several = len(self._failed) >= min(QUESTIONS, policy.failures)
        if self._unreachable >= policy.unreachable or (
            several and self._failures >= policy.failures
        ):
            now = self._clock.monotonic()
            # It was closed for no longer than it was open before: the same outage.
            again = self._open_s > 0 and now - self._changed_at <= self._open_s
            self._doublings = self._doublings if again else -1
            self.openings += 1
            self._changed_at = now
            self._open(outcome)
            return True
        return False

    def _open(self, outcome: Answer | ModelFailure) -> None:
        """Let nothing through for a time that is twice the last one, or as long as it was told."""
        policy = self._policy
        self._closed = False
        self._generation += 1
        self._probing = 0
        self._doublings = min(self._doublings + 1, _MOST_DOUBLINGS)
        longest_s = min(policy.longest_open_s, policy.open_s * 2.0**self._doublings)
        open_s = longest_s * self._rng.uniform(0.5, 1.0)
        if isinstance(outcome, TransientFailure) and outcome.retry_after_s is not None:
            open_s = max(open_s, min(outcome.retry_after_s, policy.longest_open_s))
        self._open_s = open_s
        self.until = self._clock.monotonic() + open_s
        self._forget_run()

    def _close(self) -> None:
        self._closed = True
        self._generation += 1
        self._probing = 0
        self._changed_at = self._clock.monotonic()
        self._forget_run()

    def _forget_run(self) -> None:
        self._failed.clear()
        self._failures = self._unreachable = 0


def is_outage(outcome: Answer | ModelFailure) -> bool:
    """Whether that is how calls of a dead model end. One that says "not now" (429) is alive."""
    return isinstance(outcome, TransientFailure) and outcome.code != "rate_limited"
