"""Deferred jobs: fetched again when this worker has room for what it cannot answer at once.

A miss for which the model has no free slot, in a worker that holds many already, is moved to a
stream of its own (`outbox.py`, `lua/defer.lua`), so that hits never wait behind misses. This loop
brings such jobs back, oldest first; they wait here then, however long. Those whose deadline passes
in the stream are taken out of their turn (`lua/take_overdue.lua`), to be told so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import anyio
import structlog
from redis.exceptions import RedisError

from askonce_queue.queue_scripts import Lane
from askonce_worker.pool.gate import Gate
from askonce_worker.pool.held import Held

LOOK_EVERY_S = 0.5

log = structlog.get_logger("askonce.deferred")


class Deferred:
    """Fetches the deferred jobs of one shard: `overdue` and `fetch` return how many came."""

    def __init__(
        self,
        gate: Gate,
        held: Held,
        lanes: Sequence[Lane],
        *,
        overdue: Callable[[], Awaitable[int]],
        fetch: Callable[[], Awaitable[int]],
    ) -> None:
        self._gate = gate
        self._held = held
        self._lanes = lanes
        self._overdue = overdue
        self._fetch = fetch

    async def run(self) -> None:
        """Fetch whenever there is room, until the gate is closed for good."""
        while True:
            with anyio.move_on_after(LOOK_EVERY_S):
                await self._held.wait_until(self._has_room)
            if not await self._gate.pass_through():
                return
            came = 0
            try:
                came = await self._overdue()
                came += await self._fetch()
            except (RedisError, OSError) as error:
                log.warning("deferred jobs cannot be fetched", error=str(error))
            finally:
                self._gate.stand_still()
            if not came:
                await anyio.sleep(LOOK_EVERY_S)

    def _has_room(self, held: Held) -> bool:
        return any(held.room_for_deferred(lane) for lane in self._lanes)
