"""Time as a constructor argument: monotonic for durations, wall only for what people read."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where a component takes its time from."""

    def monotonic(self) -> float:
        """Seconds, never going back."""
        ...

    def wall_ms(self) -> float:
        """Unix time in milliseconds."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        """Seconds, never going back."""
        return time.monotonic()

    def wall_ms(self) -> float:
        """Unix time in milliseconds."""
        return time.time() * 1000
