"""Runs a measurement so that Ctrl-C and SIGTERM cancel it, and it ends its children itself."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")

INTERRUPTED = 130
"""The exit code after a signal."""


def run_until_signal(work: Coroutine[Any, Any, T]) -> T:
    """Run `work`. Raises `CancelledError` after a signal, once it has cleaned up."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_cancelled_by_signals(work))


async def _cancelled_by_signals(work: Coroutine[Any, Any, T]) -> T:
    running = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, running.cancel)
    return await running
