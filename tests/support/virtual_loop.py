"""An event loop whose time passes at once: it sleeps by moving its clock."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any

from askonce_worker.clock import SystemClock


class VirtualLoop(asyncio.SelectorEventLoop, SystemClock):
    """Also the clock of what runs on it. What it runs must not wait for sockets or threads."""

    def __init__(self) -> None:
        self._now = 1000.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now

    def sleep_s(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds


class _Jumping(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everybody waits for somebody else"
        if timeout > 0:
            self._loop.sleep_s(timeout)
        return super().select(0)


def run_virtually(main: Coroutine[Any, Any, None], loop: VirtualLoop) -> None:
    """Run on a virtual loop, which is closed at the end."""
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(main)
