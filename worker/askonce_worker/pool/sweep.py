"""The sweep: removes what the dead left behind, a bounded piece a round.

Leases, tries, id records and reply streams carry their deadlines inside, because a TTL would make
them prey of eviction. Every worker sweeps; doing it twice is harmless.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import anyio
import structlog
from redis.exceptions import RedisError

from askonce_queue import answer_scripts, names, queue_scripts
from askonce_queue.queue_scripts import Lane
from askonce_queue.scripts import Call
from askonce_queue.store import Store

COUNT = 500
LEASE_GRACE_MS = 60_000
RECORD_GRACE_MS = 60_000

log = structlog.get_logger("askonce.sweep")


class Sweep:
    """Sweeps all shards of one pool. `every_s` is the mean time between two rounds."""

    def __init__(
        self,
        store: Store,
        lanes: Sequence[Lane],
        *,
        every_s: float,
        client_retain_s: float,
        rng: random.Random | None = None,
    ) -> None:
        self._store = store
        self._by_shard: defaultdict[str, list[Lane]] = defaultdict(list)
        for lane in lanes:
            self._by_shard[lane.tag].append(lane)
        self._every_s = every_s
        self._retain_ms = int(client_retain_s * 1000)
        self._rng = rng or random.Random()
        self._cursors: defaultdict[tuple[str, str], int] = defaultdict(int)

    async def run(self) -> None:
        """Sweep for ever, at times that differ between workers."""
        while True:
            await anyio.sleep(self._every_s * self._rng.uniform(0.5, 1.5))
            try:
                await self.once()
            except (RedisError, OSError) as error:
                log.warning("sweep failed", error=str(error))

    async def once(self) -> int:
        """Sweep one piece of everything; return how much was removed. Raises redis-py's errors."""
        removed = 0
        for tag, lanes in self._by_shard.items():
            for kind, call in self._calls(tag, lanes):
                cursor, dropped = await self._store.run(call)
                self._cursors[tag, kind] = int(cursor)
                removed += int(dropped)
            removed += await self._dead_consumers(lanes)
        if removed:
            log.info("swept", removed=removed)
        return removed

    def _calls(self, tag: str, lanes: Sequence[Lane]) -> list[tuple[str, Call]]:
        at, pool = self._cursors, lanes[0].pool
        return [
            (
                "leases",
                answer_scripts.sweep_leases(
                    tag, cursor=at[tag, "leases"], count=COUNT, grace_ms=LEASE_GRACE_MS
                ),
            ),
            (
                "tries",
                answer_scripts.sweep_tries(tag, cursor=at[tag, "tries"], count=COUNT, grace_ms=0),
            ),
            (
                "ids",
                queue_scripts.sweep_records(
                    names.ids(tag, pool),
                    lanes,
                    cursor=at[tag, "ids"],
                    count=COUNT,
                    where="value",
                    grace_ms=RECORD_GRACE_MS,
                ),
            ),
            (
                "solo",
                queue_scripts.sweep_records(
                    names.solo(tag, pool),
                    lanes,
                    cursor=at[tag, "solo"],
                    count=COUNT,
                    where="field",
                    grace_ms=RECORD_GRACE_MS,
                ),
            ),
            (
                "clients",
                queue_scripts.sweep_clients(
                    tag, cursor=at[tag, "clients"], count=COUNT, retain_ms=self._retain_ms
                ),
            ),
        ]

    async def _dead_consumers(self, lanes: Sequence[Lane]) -> int:
        """Remove consumers whose heartbeat is over and that hold nothing."""
        removed = 0
        beats = names.beats(lanes[0].tag, lanes[0].pool)
        beating: list[bytes] = await self._store.send(beats, "HKEYS", beats)
        known = dict.fromkeys(beating, 0)
        for lane in lanes:
            rows: list[Any] = await self._store.send(
                lane.stream, "XINFO", "CONSUMERS", lane.stream, names.GROUP
            )
            for row in rows:
                fields = dict(zip(row[::2], row[1::2], strict=True))
                name: bytes = fields[b"name"]
                known[name] = known.get(name, 0) + int(fields[b"pending"])
        for name, pending in known.items():
            if pending == 0 and name != names.RETURNED:
                removed += int(
                    await self._store.run(queue_scripts.leave(lanes, name, only_if_dead=True))
                )
        return removed
