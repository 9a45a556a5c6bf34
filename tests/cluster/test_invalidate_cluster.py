"""Invalidation on a cluster: all shards are counted, and without one of them it is unknown."""

from __future__ import annotations

import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from askonce_loadtest.servers.cluster import Cluster
from askonce_queue import names
from askonce_queue.shards import shard_of_digest, shard_tags
from askonce_queue.store import Store
from askonce_worker.cache.invalidation import invalidate
from askonce_worker.cache.survey import Limits
from tests.support.cluster_work import SHARDS, cluster_config

TAGS = shard_tags(SHARDS)
AMOUNT = 240


@asynccontextmanager
async def filled(cluster: Cluster) -> AsyncGenerator[Store]:
    """A store with answers on all shards: every other has the tag `red`."""
    store = Store(cluster_config(cluster))
    try:
        await invalidate(store, ["nothing"])  # it has stamps now
        for number in range(AMOUNT):
            digest = number.to_bytes(4, "big") * 8
            tags = b"red" if number // SHARDS % 2 else b"blue"
            entry = struct.pack("<BBddddH", 1, 0, 1.0, 2.0**52, 1e15, 1e15, len(tags)) + tags
            key = names.answer_prefix(TAGS[shard_of_digest(digest, SHARDS)]) + digest
            await store.send(key, "SET", key, entry, "PX", 60_000)
        yield store
    finally:
        await store.aclose()


async def test_all_shards_are_counted(store_cluster: Cluster) -> None:
    async with filled(store_cluster) as store:
        done = await invalidate(store, ["red"], dry_run=True)
        assert done.tally is not None
        assert (done.count, done.tally.seen) == (AMOUNT // 2, AMOUNT)
        assert (await invalidate(store, globs=["*"], dry_run=True)).count == AMOUNT


async def test_a_dead_shard_makes_the_count_unknown(store_cluster: Cluster) -> None:
    async with filled(store_cluster) as store:
        nodes = [await store_cluster.primary_of(TAGS[0]), await store_cluster.replica_of(TAGS[0])]
        for node in nodes:
            node.pause()
        done = await invalidate(store, ["red"], count=Limits())
        assert not done.complete
        assert TAGS[0] in done.failures
        assert done.stamps  # the others have confirmed
        assert done.count is None
        would = await invalidate(store, ["red"], dry_run=True)
        assert would.count is None
        assert would.tally is not None
        assert 0 < would.tally.answers < AMOUNT // 2
