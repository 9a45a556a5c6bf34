"""Deadlines of those who wait: one heap and one loop for all, no timer and no task of their own."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

import anyio

from askonce_worker.clock import Clock
from askonce_worker.flights import Flight

TICK_S = 0.01
"""The least time between two looks: how late an ask may be told that its time is up."""
LONGEST_S = 0.25
"""The longest: for a clock that jumps, as after a machine was suspended."""
MOST_OVER = 1024
"""How many flights that have landed may stand in the heap before they are looked for."""


class Deadlines:
    """When to look at which flight. `expire` tells those on it whose deadline has passed."""

    def __init__(self, clock: Clock, expire: Callable[[Flight], None]) -> None:
        self._clock = clock
        self._expire = expire
        self._heap: list[tuple[float, int, Flight]] = []
        self._sequence = itertools.count()
        self._most = MOST_OVER
        self._bell = anyio.Event()

    def __len__(self) -> int:
        return len(self._heap)

    def watch(self, flight: Flight, deadline: float) -> None:
        """Look at a flight at `deadline`, monotonic. One that moves to another is watched there."""
        heap = self._heap
        heapq.heappush(heap, (deadline, next(self._sequence), flight))
        if heap[0][2] is flight:
            self._bell.set()
        if len(heap) > self._most:  # most flights land long before
            self._heap = [one for one in heap if not one[2].landed]
            heapq.heapify(self._heap)
            self._most = MOST_OVER + 2 * len(self._heap)

    async def run(self) -> None:
        """Look at flights when they are due, for ever."""
        while True:
            now = self._clock.monotonic()
            while self._heap and self._heap[0][0] <= now:
                flight = heapq.heappop(self._heap)[2]
                if not flight.landed:
                    self._expire(flight)
            await anyio.sleep(TICK_S)
            self._bell = anyio.Event()
            if not self._heap:
                await self._bell.wait()
                continue
            wait_s = min(LONGEST_S, self._heap[0][0] - self._clock.monotonic())
            with anyio.move_on_after(max(0.0, wait_s)):
                await self._bell.wait()
