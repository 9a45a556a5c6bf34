"""How late the event loop is: what a timer that is due has to wait for."""

from __future__ import annotations

from collections import deque

import anyio

from askonce_worker.clock import Clock
from askonce_worker.observe.histogram import LAG_BOUNDS_S, Histogram

MEASURE_EVERY_S = 0.5
SUSTAINED = 3
"""Measurements in a row. One pause (the machine slept, the process was stopped) makes one of them
late, and is over when it is noticed; a loop that is too busy makes all of them late."""


class LoopLag:
    """Measures the lag of the loop on which `run` runs."""

    def __init__(self, clock: Clock) -> None:
        self.histogram = Histogram(LAG_BOUNDS_S)
        self._clock = clock
        self._recent: deque[float] = deque(maxlen=SUSTAINED)

    @property
    def sustained_s(self) -> float:
        """By how much every one of the last three measurements was late; 0 before there are so
        many.
        """
        return min(self._recent) if len(self._recent) == SUSTAINED else 0.0

    def record(self, lag_s: float) -> None:
        """Take a measurement."""
        self._recent.append(lag_s)
        self.histogram.observe(lag_s)

    async def run(self) -> None:
        """Measure for ever."""
        while True:
            due = self._clock.monotonic() + MEASURE_EVERY_S
            await anyio.sleep(MEASURE_EVERY_S)
            self.record(max(0.0, self._clock.monotonic() - due))
