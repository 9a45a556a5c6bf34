"""What the dead leave behind in a store, and a sweep of it."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, cast

import redis.asyncio

from askonce_queue import names, queue_scripts
from askonce_queue.scripts import run, send
from askonce_queue.store import Store as AskonceStore
from askonce_worker.pool.sweep import Sweep
from tests.support.queue_worker import BULK, INTERACTIVE
from tests.support.virtual_scripts import LEASE

Store = redis.asyncio.Redis
LANES = [INTERACTIVE, BULK]
LEASES, TRIES, LAST = names.leases("0"), names.tries("0"), names.last("0")
CLIENTS, OWED, STATS = names.clients("0"), names.owed("0"), names.stats("0")
BEATS, SOLO = names.beats("0", "default"), names.solo("0", "default")
STAMPS = names.stamps("0")
HOUR_MS = 3_600_000
LEASE_TTL_S = 10.0
RETAIN_S = 60.0
TRY = struct.Struct("<c1Bd")
EACH = 5_000
"""Leftovers of each of ten kinds."""


def sweep_of(
    store: AskonceStore,
    *,
    every_s: float = 3600.0,
    retain_s: float = RETAIN_S,
    lease_ttl_s: float = LEASE_TTL_S,
) -> Sweep:
    """A sweep of one shard, whose rounds the test makes."""
    return Sweep(store, LANES, every_s=every_s, client_retain_s=retain_s, lease_ttl_s=lease_ttl_s)


async def sweep_all(store: AskonceStore) -> int:
    """Sweep until nothing more goes; how much went. A page may have nothing in it."""
    one = sweep_of(store)
    removed = quiet = 0
    while quiet < 5:
        now = await one.once()
        removed += now
        quiet = 0 if now else quiet + 1
    return removed


async def consumers(store: Store, stream: bytes = INTERACTIVE.stream) -> set[bytes]:
    """The names of a stream's consumers."""
    rows = cast("list[list[Any]]", await send(store, "XINFO", "CONSUMERS", stream, names.GROUP))
    return {row[1] for row in rows}


async def make_groups(store: Store) -> None:
    """Make the lanes, as the first worker does."""
    for lane in LANES:
        await run(store, queue_scripts.ensure_group(lane))


async def fill_hash(store: Store, key: bytes, fields: Mapping[str, int | str | bytes]) -> None:
    """Set many fields at once."""
    await send(store, "HSET", key, *(word for pair in fields.items() for word in pair))


def lease(deadline_ms: float) -> bytes:
    """A lease that is held until then."""
    return LEASE.pack(b"t" * 16, deadline_ms, 1.0, 1)


async def calls(store: Store, *commands: str) -> int:
    """How often commands ran since the last reset, those in scripts included; or all of them."""
    found: dict[str, dict[str, int]] = await store.info("commandstats")
    counts = {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in found.items()}
    own = {"info", "config|resetstat"}
    return sum(n for name, n in counts.items() if name not in own and name in (commands or counts))


async def leave_behind(store: Store, each: int = EACH) -> None:
    """Leave `each` of ten kinds behind, as workers and clients did that died long ago."""
    await make_groups(store)
    async with store.pipeline(transaction=False) as pipe:
        for n in range(each):
            pipe.hset(LEASES.decode(), f"{n:032}", cast("str", lease(1)))
            pipe.hset(TRIES.decode(), f"{n:032}", cast("str", TRY.pack(b"R", 1, 1)))
            pipe.hset(INTERACTIVE.ids.decode(), f"c/{n}", f"bulk/{n}-1")
            pipe.hset(SOLO.decode(), f"bulk/{n}-1", "1/x")
            pipe.hset(CLIENTS.decode(), f"gone-{n}", "token/1")
            pipe.hset(OWED.decode(), f"gone-{n}", "3")
            pipe.hset(OWED.decode(), f"nobody-{n}", "3")
            pipe.xadd(names.replies("0", f"gone-{n}").decode(), {"n": "1", "r": "x"})
            pipe.zadd(LAST.decode(), {f"tag {n}": float(n)})
            pipe.hset(STATS.decode(), f"task {n}|memory", "1")
            pipe.hset(BEATS.decode(), f"dead-{n}", "1")
            for name in (f"dead-{n}", f"zombie-{n}"):
                pipe.execute_command(
                    *("XGROUP", "CREATECONSUMER", INTERACTIVE.stream, names.GROUP, name)
                )
        await pipe.execute()
