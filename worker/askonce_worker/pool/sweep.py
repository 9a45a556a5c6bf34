"""The sweep: removes what the dead left behind, a bounded piece a round.

Leases, tries, id records and reply streams carry their deadlines inside, because a TTL would make
them prey of eviction. Every worker sweeps; doing it twice is harmless. A round looks at one page of
each kind, whatever there is of it; a page with much to remove is followed by the next one soon.

Cursors are the server's own: after a failover they may mean nothing to the new one, which then
skips some of a hash this time around. Nothing is removed for being where a cursor points.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import anyio
import structlog
from redis.exceptions import RedisError, ResponseError

from askonce_queue import answer_scripts, names, queue_scripts
from askonce_queue.buckets import OTHERS
from askonce_queue.queue_scripts import Lane
from askonce_queue.scripts import Call
from askonce_queue.store import Store

COUNT = 200
"""How much of each kind a round looks at: what a script does here, hits wait for."""
MUCH = COUNT // 4
"""A page with so much to remove is worth the next one soon: a look costs at most 4 for each find,
and however many workers there are, they remove no faster than that."""
SOON = 1 / 100
"""How soon, as a part of the usual pause."""
LEASE_GRACE = 6
"""How long after its end a lease is kept, in lease TTLs: its holder may be paused, and its attempts
count for whoever takes it over."""
RECORD_GRACE_MS = 60_000
MOST_TAGS = 1_000_000
"""Invalidations of tags kept in one shard; beyond them all older answers are invalid."""
MOST_TOTALS = 10_000
"""Fields of the totals kept in one shard."""
HIT_RETAIN_S = 14 * 86_400.0

log = structlog.get_logger("askonce.sweep")


class Sweep:
    """Sweeps all shards of one pool. `every_s` is the mean time between two rounds of a shard."""

    def __init__(
        self,
        store: Store,
        lanes: Sequence[Lane],
        *,
        every_s: float,
        client_retain_s: float,
        lease_ttl_s: float,
        hit_retain_s: float = HIT_RETAIN_S,
        rng: random.Random | None = None,
    ) -> None:
        by_shard: defaultdict[str, list[Lane]] = defaultdict(list)
        for lane in lanes:
            by_shard[lane.tag].append(lane)
        self._shards = [
            _ShardSweep(
                store,
                shard_lanes,
                retain_ms=int(client_retain_s * 1000),
                lease_grace_ms=int(LEASE_GRACE * lease_ttl_s * 1000),
                hit_retain_ms=int(hit_retain_s * 1000),
            )
            for shard_lanes in by_shard.values()
        ]
        self._every_s = every_s
        self._rng = rng or random.Random()

    async def run(self) -> None:
        """Sweep for ever, each shard by itself, at times that differ between workers."""
        async with anyio.create_task_group() as tasks:
            for shard in self._shards:
                tasks.start_soon(self._run_shard, shard)

    async def _run_shard(self, shard: _ShardSweep) -> None:
        pause_s = self._every_s
        while True:
            await anyio.sleep(pause_s * self._rng.uniform(0.5, 1.5))
            removed = await shard.once()
            much = max(removed.values(), default=0) >= MUCH
            pause_s = self._every_s * SOON if much else self._every_s

    async def once(self) -> int:
        """Sweep one piece of everything; return how much was removed.

        Never raises for what the store does: a shard that fails is swept the next time.
        """
        return sum([sum((await shard.once()).values()) for shard in self._shards])


class _ShardSweep:
    """Sweeps one shard, and remembers how far it is."""

    def __init__(
        self,
        store: Store,
        lanes: Sequence[Lane],
        *,
        retain_ms: int,
        lease_grace_ms: int,
        hit_retain_ms: int,
    ) -> None:
        self._store = store
        self._lanes = lanes
        self._tag = lanes[0].tag
        self._beats = names.beats(self._tag, lanes[0].pool)
        self._retain_ms = retain_ms
        self._lease_grace_ms = lease_grace_ms
        self._hit_retain_ms = hit_retain_ms
        self._cursors: defaultdict[str, int] = defaultdict(int)
        self._listed: list[bytes] = []

    async def once(self) -> dict[str, int]:
        """Sweep one page of each kind; how much of each was removed, where anything was."""
        removed: dict[str, int] = {}
        try:
            # One after the other: the server attends to others in between.
            for kind, call in self._pages().items():
                removed[kind] = await self._page(kind, call)
            removed["consumers"] = await self._dead_consumers()
        except (RedisError, OSError) as error:
            self._cursors["beats"] = 0
            log.warning("sweep failed", shard=self._tag, error=str(error))
        removed = {kind: count for kind, count in removed.items() if count}
        if removed:
            log.info("swept", shard=self._tag, **removed)
        return removed

    async def _page(self, kind: str, call: Call) -> int:
        """Sweep one page. Raises redis-py's errors when the shard cannot be reached."""
        try:
            cursor, dropped = await self._store.run(call)
        except ResponseError as error:
            self._cursors[kind] = 0
            log.warning("sweep failed", shard=self._tag, kind=kind, error=str(error))
            return 0
        self._cursors[kind] = int(cursor)
        return int(dropped)

    def _pages(self) -> dict[str, Call]:
        """The next page of each kind."""
        tag, pool, at = self._tag, self._lanes[0].pool, self._cursors
        return {
            "leases": answer_scripts.sweep_leases(
                tag, cursor=at["leases"], count=COUNT, grace_ms=self._lease_grace_ms
            ),
            "tries": answer_scripts.sweep_tries(tag, cursor=at["tries"], count=COUNT, grace_ms=0),
            "tags": answer_scripts.sweep_tags(tag, count=COUNT, most=MOST_TAGS),
            "ids": queue_scripts.sweep_records(
                names.ids(tag, pool),
                self._lanes,
                cursor=at["ids"],
                count=COUNT,
                where="value",
                grace_ms=RECORD_GRACE_MS,
            ),
            "solo": queue_scripts.sweep_records(
                names.solo(tag, pool),
                self._lanes,
                cursor=at["solo"],
                count=COUNT,
                where="field",
                grace_ms=RECORD_GRACE_MS,
            ),
            "clients": queue_scripts.sweep_clients(
                tag, cursor=at["clients"], count=COUNT, retain_ms=self._retain_ms
            ),
            "owed": queue_scripts.sweep_owed(tag, cursor=at["owed"], count=COUNT),
            "totals": queue_scripts.sweep_stats(
                tag, cursor=at["totals"], count=COUNT, most=MOST_TOTALS, others=OTHERS
            ),
            "windows": queue_scripts.sweep_windows(tag, count=COUNT),
            "budgets": queue_scripts.sweep_budgets(tag, cursor=at["budgets"], count=COUNT),
            "quotas": queue_scripts.sweep_quotas(tag, count=COUNT),
            "hits": queue_scripts.sweep_hits(tag, self._hit_retain_ms),
        }

    async def _dead_consumers(self) -> int:
        """Remove consumers whose heartbeat is over and that hold nothing. Raises redis-py's errors.

        Who fetches has a heartbeat, so the heartbeats tell nearly all of them, page by page. One
        that was removed while it was paused in a read comes back without: it is found among the
        consumers. Their list has no pages (50,000 take the server 175 ms), so it is asked for when
        the heartbeats show nobody dead, and worked off before it is asked for again.
        """
        page: Any = await self._store.send(
            self._beats, "HSCAN", self._beats, self._cursors["beats"], "COUNT", COUNT
        )
        self._cursors["beats"] = int(page[0])
        removed = await self._leave(page[1][::2])
        if not removed:
            if not self._listed:
                self._listed = await self._list()
            removed = await self._leave(self._listed[-COUNT:])
            del self._listed[-COUNT:]
        return removed

    async def _leave(self, consumers: Sequence[bytes]) -> int:
        if not consumers:
            return 0
        call = queue_scripts.leave(self._lanes, *consumers, only_if_dead=True)
        return int(await self._store.run(call))

    async def _list(self) -> list[bytes]:
        """The consumers that hold nothing. Raises redis-py's errors."""
        holding: dict[bytes, int] = {}
        for result in await self._store.send_many(
            [(ln.stream, ("XINFO", "CONSUMERS", ln.stream, names.GROUP)) for ln in self._lanes]
        ):
            if isinstance(result, ResponseError):
                continue  # no such stream or group: nobody has ever served this lane
            if isinstance(result, Exception):
                raise result
            for row in result:
                fields = dict(zip(row[::2], row[1::2], strict=True))
                name: bytes = fields[b"name"]
                holding[name] = holding.get(name, 0) + int(fields[b"pending"])
        return [name for name, held in holding.items() if not held and name != names.RETURNED]
