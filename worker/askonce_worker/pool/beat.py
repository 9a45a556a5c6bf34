"""Heartbeats: one a shard, so that others can tell a slow worker from a dead one.

Liveness decides reclaim, not idleness. A worker fetches and reclaims only while its own heartbeat
is fresh, and after any failure of the store nobody reclaims for one heartbeat TTL: the others may
have been cut off just as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import anyio
import structlog
from redis.exceptions import RedisError

from askonce_queue import queue_scripts
from askonce_queue.scripts import AsyncStore, run_many
from askonce_worker.clock import Clock

log = structlog.get_logger("askonce.beat")


class Beat:
    """This worker's heartbeats on every shard."""

    def __init__(
        self,
        store: AsyncStore,
        shard_tags: Sequence[str],
        pool: str,
        consumer: str,
        clock: Clock,
        ttl_s: float,
    ) -> None:
        self._store = store
        self._shard_tags = shard_tags
        self._pool = pool
        self._clock = clock
        self.consumer = consumer
        self.ttl_s = ttl_s
        self._fresh_until = dict.fromkeys(shard_tags, -math.inf)
        self._quiet_until = clock.monotonic() + ttl_s
        self._beaten = anyio.Event()

    def fresh(self, shard_tag: str) -> bool:
        """Whether others must still take this worker for alive on a shard."""
        return self._clock.monotonic() < self._fresh_until[shard_tag]

    async def wait_fresh(self, shard_tag: str) -> None:
        """Wait for a heartbeat to arrive on a shard."""
        while not self.fresh(shard_tag):
            await self._beaten.wait()

    @property
    def may_reclaim(self) -> bool:
        """Whether a heartbeat TTL has passed since the start and the last failure of the store."""
        return self._clock.monotonic() >= self._quiet_until

    def note_failure(self) -> None:
        """The store failed somebody here: give everyone time to beat again before reclaiming."""
        self._quiet_until = self._clock.monotonic() + self.ttl_s

    async def run(self) -> None:
        """Beat every third of the TTL, for ever."""
        while True:
            try:
                await self.beat()
            except (RedisError, OSError) as error:
                self.note_failure()
                log.warning("heartbeat failed", error=str(error))
            await anyio.sleep(self.ttl_s / 3)

    async def beat(self) -> None:
        """Beat once on every shard. Raises redis-py's connection errors."""
        sent_at = self._clock.monotonic()
        ttl_ms = int(self.ttl_s * 1000)
        calls = [
            queue_scripts.beat(tag, self._pool, self.consumer, ttl_ms) for tag in self._shard_tags
        ]
        for tag, result in zip(self._shard_tags, await run_many(self._store, calls), strict=True):
            if isinstance(result, Exception):
                self.note_failure()
                log.warning("heartbeat failed on a shard", shard=tag, error=str(result))
            else:
                self._fresh_until[tag] = sent_at + self.ttl_s
        self._beaten.set()
        self._beaten = anyio.Event()
