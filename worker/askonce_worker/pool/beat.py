"""Heartbeats: one a shard, so that others can tell a slow worker from a dead one.

Liveness decides reclaim, not idleness. A worker fetches and reclaims only while its own heartbeat
is fresh, and after any failure of the store nobody reclaims for one heartbeat TTL: the others may
have been cut off just as well.
"""

from __future__ import annotations

import math

import anyio
import structlog
from redis.exceptions import RedisError

from askonce_queue import queue_scripts
from askonce_queue.store import Store
from askonce_worker.clock import Clock

log = structlog.get_logger("askonce.beat")


class Beat:
    """This worker's heartbeats on every shard."""

    def __init__(
        self,
        store: Store,
        pool: str,
        consumer: str,
        clock: Clock,
        ttl_s: float,
    ) -> None:
        self._store = store
        self._pool = pool
        self._clock = clock
        self.consumer = consumer
        self.ttl_s = ttl_s
        self._fresh_until = dict.fromkeys(store.tags, -math.inf)
        self._quiet_until = dict.fromkeys(store.tags, clock.monotonic() + ttl_s)
        self._beaten = anyio.Event()

    def fresh(self, shard_tag: str) -> bool:
        """Whether others must still take this worker for alive on a shard."""
        return self._clock.monotonic() < self._fresh_until[shard_tag]

    async def wait_fresh(self, shard_tag: str) -> None:
        """Wait for a heartbeat to arrive on a shard."""
        while not self.fresh(shard_tag):
            await self._beaten.wait()

    def may_reclaim(self, shard_tag: str) -> bool:
        """Whether a heartbeat TTL has passed since the start and the last failure of the shard."""
        return self._clock.monotonic() >= self._quiet_until[shard_tag]

    def note_failure(self, shard_tag: str) -> None:
        """A shard failed somebody here: give everyone time to beat again before reclaiming."""
        self._quiet_until[shard_tag] = self._clock.monotonic() + self.ttl_s

    async def run(self, shard_tag: str) -> None:
        """Beat on a shard every third of the TTL, for ever."""
        while True:
            try:
                await self.beat(shard_tag)
            except (RedisError, OSError) as error:
                self.note_failure(shard_tag)
                log.warning("heartbeat failed", shard=shard_tag, error=str(error))
            await anyio.sleep(self.ttl_s / 3)

    async def beat(self, shard_tag: str) -> None:
        """Beat once on a shard. Raises redis-py's errors."""
        sent_at = self._clock.monotonic()
        ttl_ms = int(self.ttl_s * 1000)
        await self._store.run(queue_scripts.beat(shard_tag, self._pool, self.consumer, ttl_ms))
        self._fresh_until[shard_tag] = sent_at + self.ttl_s
        self._beaten.set()
        self._beaten = anyio.Event()
