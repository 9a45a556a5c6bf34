"""Heartbeats: one a shard, so that others can tell a slow worker from a dead one.

Liveness decides reclaim, not idleness. A worker fetches and reclaims only while its own heartbeat
is fresh, and after any failure of the store nobody reclaims for one heartbeat TTL: the others may
have been cut off just as well.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import anyio
import structlog
from redis.exceptions import RedisError

from askonce_queue import queue_scripts
from askonce_queue.store import Store
from askonce_worker.clock import Clock

CLOCK_DRIFT = 0.001
"""How much clocks may drift apart: far more than they do, so that old measurements give way."""

log = structlog.get_logger("askonce.beat")


class _Offset(NamedTuple):
    """How far a shard's clock is ahead of our monotonic one, as one heartbeat has shown."""

    seconds: float
    error_s: float
    measured_at: float


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
        self._offsets: dict[str, _Offset] = {}

    def fresh(self, shard_tag: str) -> bool:
        """Whether others must still take this worker for alive on a shard."""
        return self._clock.monotonic() < self._fresh_until[shard_tag]

    def moment(self, shard_tag: str, store_ms: float) -> float:
        """A time of a shard, Unix ms, on our monotonic clock; off by half a round trip at most.

        This machine's wall clock does not matter. Known after a heartbeat.
        """
        return store_ms / 1000 - self._offsets[shard_tag].seconds

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
        call = queue_scripts.beat(shard_tag, self._pool, self.consumer, ttl_ms)
        store_ms = int(await self._store.run(call))
        self._note_offset(shard_tag, store_ms / 1000, sent_at)
        self._fresh_until[shard_tag] = sent_at + self.ttl_s
        self._beaten.set()
        self._beaten = anyio.Event()

    def _note_offset(self, shard_tag: str, store_s: float, sent_at: float) -> None:
        """Keep the best measurement: the server read its clock somewhere within the round trip.

        As NTP's clock filter (RFC 5905, section 10): the shortest round trip knows best.
        """
        now = self._clock.monotonic()
        new = _Offset(store_s - (sent_at + now) / 2, (now - sent_at) / 2, now)
        old = self._offsets.get(shard_tag)
        if old is None or new.error_s <= old.error_s + CLOCK_DRIFT * (now - old.measured_at):
            self._offsets[shard_tag] = new
