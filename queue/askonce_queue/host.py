"""Runs a context in a task of its own: what is built on it can be opened and closed anywhere.

A task group must be left by the task that entered it. Applications open clients in a start-up hook
and close them in a shut-down hook, which frameworks and test runners run in different tasks.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager


class Host:
    """Holds `context` open between `open()` and `close()`, whichever tasks call them."""

    def __init__(self, context: AbstractAsyncContextManager[object]) -> None:
        self._context = context
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> asyncio.Task[None]:
        """Enter the context; raises what that raises. Returns the task that ends with it."""
        entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(entered))
        try:
            await entered
        except asyncio.CancelledError:
            await self.close()
            raise
        return self._task

    async def close(self) -> None:
        """Leave the context and wait until it is left; raises what made it end before."""
        self._stop.set()
        if self._task is not None:
            await asyncio.shield(self._task)

    async def _run(self, entered: asyncio.Future[None]) -> None:
        try:
            async with self._context:
                if not entered.done():  # the caller may have been cancelled
                    entered.set_result(None)
                await self._stop.wait()
        except Exception as error:
            if entered.done():
                raise
            entered.set_exception(error)
