"""Deferred jobs: fetched again when this worker has room for what it cannot answer at once.

A miss for which the model has no free slot, in a worker that holds many already, is moved to a
stream of its own (`outbox.py`, `lua/defer.lua`), so that hits never wait behind misses. This loop
brings such jobs back, oldest first; they wait here then, however long.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import structlog
from redis.exceptions import RedisError

from askonce_worker.pool.gate import Gate
from askonce_worker.pool.held import Held

LOOK_EVERY_S = 0.5

log = structlog.get_logger("askonce.deferred")


class Deferred:
    """Fetches the deferred jobs of one shard. `fetch` takes how many, and returns how many came."""

    def __init__(self, gate: Gate, held: Held, fetch: Callable[[int], Awaitable[int]]) -> None:
        self._gate = gate
        self._held = held
        self._fetch = fetch

    async def run(self) -> None:
        """Fetch whenever there is room, until the gate is closed for good."""
        while True:
            await self._held.wait_until(lambda held: held.room_for_deferred > 0)
            if not await self._gate.pass_through():
                return
            came = 0
            try:
                came = await self._fetch(self._held.room_for_deferred)
            except (RedisError, OSError) as error:
                log.warning("deferred jobs cannot be fetched", error=str(error))
            finally:
                self._gate.stand_still()
            if not came:
                await anyio.sleep(LOOK_EVERY_S)
