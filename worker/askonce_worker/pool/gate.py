"""The gate before every fetch: open while this worker is alive, not pausing and not stopping."""

from __future__ import annotations

import anyio


class Gate:
    """Pauses intakes, and knows when all of them stand still."""

    def __init__(self) -> None:
        self.stopping = False
        self._paused = False
        self._open = anyio.Event()
        self._open.set()
        self._moving = 0
        self._still = anyio.Event()
        self._still.set()

    @property
    def paused(self) -> bool:
        """Whether fetching has to wait for a while."""
        return self._paused

    async def pass_through(self) -> bool:
        """Wait while the gate is closed; False when the worker stops. Pair with `stand_still`."""
        while self._paused and not self.stopping:
            await self._open.wait()
        if self.stopping:
            return False
        self._moving += 1
        return True

    def stand_still(self) -> None:
        """This intake is between two fetches."""
        self._moving -= 1
        if self._moving == 0:
            self._still.set()

    async def pause(self) -> None:
        """Close the gate, and return when no fetch is under way."""
        self._paused = True
        self._open = anyio.Event()
        await self.wait_still()

    def resume(self) -> None:
        """Open the gate again."""
        self._paused = False
        self._open.set()

    async def stop(self) -> None:
        """Close the gate for good, and return when no fetch is under way."""
        self.stopping = True
        self._open.set()
        await self.wait_still()

    async def wait_still(self) -> None:
        """Return when no fetch is under way."""
        while self._moving:
            self._still = anyio.Event()
            await self._still.wait()
