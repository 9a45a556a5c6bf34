"""Deferred jobs: fetched again when this worker has room for what it cannot answer at once.

A miss for which the model has no free slot, in a worker that holds many already, is moved to a
stream of its own (`outbox.py`, `lua/defer.lua`), so that hits never wait behind misses. This loop
brings such jobs back, oldest first; they wait here then, however long. Those whose deadline passes
in the stream are taken out of their turn (`lua/take_overdue.lua`), to be told so.

While a model is down, what waits for it can leave no room for as long, and among the deferred jobs
are others: of models that are up, or whose answer was there and the store slow to say so. So a few
are looked at out of turn, from the front: what can be answered or asked is, the rest goes to the
end. That takes turns among all of them, and costs the same however many there are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import anyio
import structlog
from redis.exceptions import RedisError

from askonce_queue.queue_scripts import Lane
from askonce_worker.clock import Clock
from askonce_worker.pool.gate import Gate
from askonce_worker.pool.held import Held

LOOK_EVERY_S = 0.5
MOST_LOOKED_AT = 250
"""Deferred jobs of a lane that a worker looks at out of turn at once, on all shards."""
LONGEST_PAUSE_S = 5.0
"""Between two such looks, where each sees all there are."""

log = structlog.get_logger("askonce.deferred")


class Deferred:
    """Fetches the deferred jobs of one shard: `overdue` and `fetch` return how many came.

    While there is an `outage` of a model, `look` is told how many of each lane to look at out of
    turn, and returns whether there may be more.
    """

    def __init__(
        self,
        gate: Gate,
        held: Held,
        lanes: Sequence[Lane],
        *,
        overdue: Callable[[], Awaitable[int]],
        fetch: Callable[[], Awaitable[int]],
        look: Callable[[int], Awaitable[bool]],
        outage: Callable[[], bool],
        clock: Clock,
        shards: int,
    ) -> None:
        self._gate = gate
        self._held = held
        self._lanes = lanes
        self._overdue = overdue
        self._fetch = fetch
        self._look = look
        self._outage = outage
        self._clock = clock
        self._most_looked_at = max(1, MOST_LOOKED_AT // shards)
        self._look_due = 0.0
        self._pause_s = LOOK_EVERY_S

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
                if self._outage() and self._clock.monotonic() >= self._look_due:
                    await self._look_around()
            except (RedisError, OSError) as error:
                log.warning("deferred jobs cannot be fetched", error=str(error))
            finally:
                self._gate.stand_still()
            if not came:
                await anyio.sleep(LOOK_EVERY_S)

    async def _look_around(self) -> None:
        self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)
        if await self._look(self._most_looked_at):
            self._pause_s = LOOK_EVERY_S
        self._look_due = self._clock.monotonic() + self._pause_s

    def _has_room(self, held: Held) -> bool:
        return any(held.room_for_deferred(lane) for lane in self._lanes)
