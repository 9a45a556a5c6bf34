"""Whether a model may be asked now: its breaker, its hold and its adaptive limit, put together.

Those decide; here is what follows: the timer that wakes who waits, the news for flights between two
attempts, the log lines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from askonce_queue.reply import Answer
from askonce_worker.clock import Clock, SystemClock
from askonce_worker.models.adaptive import AdaptiveLimit
from askonce_worker.models.circuit import NO_LIMIT, Circuit, CircuitBreaker
from askonce_worker.models.hold import Hold
from askonce_worker.models.protocol import ModelFailure
from askonce_worker.observe.health import ModelVitals

log = structlog.get_logger("askonce.models")


class Availability:
    """What a model is known to be fit for. Each part may be missing; without any, for all.

    `opened` is called whenever there may be room that there was not.
    """

    def __init__(
        self,
        model: str = "",
        *,
        clock: Clock | None = None,
        breaker: CircuitBreaker | None = None,
        adaptive: AdaptiveLimit | None = None,
        hold: Hold | None = None,
    ) -> None:
        self._model = model
        self._clock = clock or SystemClock()
        self._breaker = breaker
        self._adaptive = adaptive
        self._hold = hold
        self._broke = asyncio.Event()
        self._down_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.opened: Callable[[], None] = _nobody

    @property
    def circuit(self) -> Circuit:
        """What the breaker lets through."""
        return self._breaker.state if self._breaker is not None else Circuit.CLOSED

    @property
    def outage(self) -> bool:
        """Whether the model is held for dead, be it that it is being probed."""
        return self.circuit is not Circuit.CLOSED

    @property
    def down(self) -> bool:
        """Whether it is held for dead, and no probe is wanted either."""
        return self.outage and not self._calls

    @property
    def _calls(self) -> int:
        """How many calls may begin now, whoever has a slot."""
        if self._hold is not None and self._hold.holds:
            return 0
        return self._breaker.room if self._breaker is not None else NO_LIMIT

    def admits(self, *, again: bool = False) -> bool:
        """Whether one more call may begin now, of a flight that has its slot.

        `again`: it is the rest of one that has begun, which may be the probe.
        """
        if again and self.circuit is Circuit.HALF_OPEN:
            return self._hold is None or not self._hold.holds
        return self._calls > 0

    def room(self, in_flight: int) -> int:
        """How many more flights may take off."""
        room = self._calls
        # Calls that hang since before an outage must not keep a probe from being made.
        if self._adaptive is not None and room == NO_LIMIT:
            room = self._adaptive.room(in_flight)
        return room

    def began(self) -> int:
        """A call begins; to be given back to `ended`."""
        if self._adaptive is not None:
            self._adaptive.began()
        return self._breaker.began() if self._breaker is not None else 0

    def ended(self, outcome: Answer | ModelFailure | None, key: bytes, ticket: int) -> None:
        """A call about `key` has ended; None: cancelled."""
        limit = 0
        if self._adaptive is not None:
            limit = self._adaptive.limit
            self._adaptive.ended(outcome)
        if self._hold is not None:
            self._hold.ended(outcome)
        if self._breaker is not None:
            self._tell_breaker(self._breaker, outcome, key, ticket)
        self._set_timer()
        if self._adaptive is not None and self._adaptive.limit > limit:
            self.opened()

    async def pause(self, delay_s: float) -> bool:
        """Wait between two attempts; whether the breaker has opened meanwhile."""
        try:
            async with asyncio.timeout(delay_s):
                await self._broke.wait()
        except TimeoutError:
            return False
        return True

    def vitals(self, slots: int) -> ModelVitals:
        """What is to be seen of it, of a model with so many slots."""
        breaker = self._breaker
        return ModelVitals(
            circuit=self.circuit.value,
            openings=breaker.openings if breaker is not None else 0,
            probes=breaker.probes if breaker is not None else 0,
            limit=slots if self._adaptive is None else min(slots, self._adaptive.limit),
        )

    def _tell_breaker(
        self,
        breaker: CircuitBreaker,
        outcome: Answer | ModelFailure | None,
        key: bytes,
        ticket: int,
    ) -> None:
        openings = breaker.openings
        if not breaker.ended(outcome, key, ticket):
            return
        now = self._clock.monotonic()
        if breaker.openings > openings:
            self._down_since = now
            log.warning(
                "model is down",
                model=self._model,
                error=str(outcome),
                probe_in_s=round(breaker.until - now, 2),
            )
            if self._adaptive is not None:
                self._adaptive.restart()
            self._broke.set()
            self._broke = asyncio.Event()
        elif self.outage:
            probe_in_s = round(breaker.until - now, 2)
            log.info("model is still down", model=self._model, probe_in_s=probe_in_s)
        else:
            log.warning("model is back", model=self._model, down_s=round(now - self._down_since, 2))
            self.opened()

    def _set_timer(self) -> None:
        """Have those who wait woken when the breaker half-opens and the hold is over."""
        until = self._hold.until if self._hold is not None else 0.0
        if self._breaker is not None and self.outage:
            until = max(until, self._breaker.until)
        left_s = until - self._clock.monotonic()
        if left_s > 0 and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(left_s, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._set_timer()  # it may be later by now
        if self.admits():
            self.opened()


def _nobody() -> None:
    """Nobody wants to know."""
