"""What waits in the waiting room: flights by when they are due, and slots kept for a look-up."""

from __future__ import annotations

import heapq
import itertools
import math

import anyio

from askonce_worker.backend import Backend
from askonce_worker.flights import Flight


class KeptSlots:
    """Slots that are kept for the leases that a look-up may bring."""

    def __init__(self, backend: Backend, count: int) -> None:
        self.backend = backend
        self._count = count

    def take(self) -> bool:
        """Take one for a lease: of those that are kept or, were they given up, a free one."""
        if self._count:
            self._count -= 1
            return True
        if self.backend.free_slots > 0:
            self.backend.in_flight += 1
            return True
        return False

    def give_up(self) -> int:
        """Keep none any more; return how many there were."""
        given_up, self._count = self._count, 0
        return given_up


class DueQueue:
    """The flights of one shard that the store is to be asked about, now or later."""

    def __init__(self) -> None:
        self.due_now: list[Flight] = []
        self.silent = False
        """Whether the shard has not answered a look-up for some time."""
        self.bell = anyio.Event()
        self._later: list[tuple[float, int, Flight]] = []
        self._sequence = itertools.count()

    @property
    def next_due(self) -> float:
        """When the next backoff ends, monotonic; infinite when none is under way."""
        return self._later[0][0] if self._later else math.inf

    def put_later(self, flight: Flight, due: float) -> None:
        """Ask about `flight` at `due`, monotonic."""
        heapq.heappush(self._later, (due, next(self._sequence), flight))

    def take_due(self, now: float) -> list[Flight]:
        """The flights to ask about now, each once."""
        due, self.due_now = self.due_now, []
        while self._later and self._later[0][0] <= now:
            due.append(heapq.heappop(self._later)[2])
        # A flight can be due twice (its backoff ended and a slot was freed).
        return [
            flight
            for flight in dict.fromkeys(due)
            if not (flight.landed or flight.flying or flight.waits_alone)
        ]
