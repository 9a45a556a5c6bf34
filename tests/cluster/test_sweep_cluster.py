"""The sweep on a cluster: dead shards keep no others dirty, and a failover does no harm."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from askonce_loadtest.servers.cluster import Cluster
from askonce_loadtest.servers.node import Node
from askonce_queue import names
from askonce_queue.queue_scripts import LANES, Lane
from askonce_queue.shards import shard_tags
from askonce_queue.store import Store
from askonce_worker.pool.sweep import Sweep
from tests.support.cluster_work import SHARDS, cluster_config
from tests.support.leftovers import lease
from tests.support.waiting import eventually

TAGS = shard_tags(SHARDS)


@asynccontextmanager
async def sweep_of(cluster: Cluster) -> AsyncGenerator[Sweep]:
    store = Store(cluster_config(cluster))
    lanes = [Lane(tag, "default", lane) for tag in TAGS for lane in LANES]
    try:
        yield Sweep(store, lanes, every_s=0.2, client_retain_s=60.0, lease_ttl_s=1.0)
    finally:
        await store.aclose()


async def leave_leases(cluster: Cluster, tag: str, amount: int) -> None:
    """Leave leases of long ago, on the replica too."""
    node = await cluster.primary_of(tag)
    fields = [word for n in range(amount) for word in (f"{n:032}", lease(1))]
    await node.command("HSET", names.leases(tag), *fields)
    assert await node.command("WAIT", 1, 5000) == 1


async def left(node: Node, tag: str) -> int:
    return int(await node.command("HLEN", names.leases(tag)))


async def test_a_dead_shard_keeps_no_other_dirty(store_cluster: Cluster) -> None:
    owners = {tag: await store_cluster.primary_of(tag) for tag in TAGS}
    for tag in TAGS:
        await leave_leases(store_cluster, tag, 3)
    stopped = [owners[TAGS[0]], await store_cluster.replica_of(TAGS[0])]
    others = [tag for tag, owner in owners.items() if owner not in stopped]
    async with sweep_of(store_cluster) as sweep:
        for node in stopped:
            node.pause()
        sweeping = asyncio.create_task(sweep.run())

        async def swept(tags: Sequence[str]) -> bool:
            return not sum([await left(await store_cluster.primary_of(tag), tag) for tag in tags])

        try:
            await eventually(lambda: swept(others))
        finally:
            for node in stopped:
                node.resume()
        await eventually(lambda: swept(TAGS), timeout_s=30)
        sweeping.cancel()
        await asyncio.wait([sweeping])


async def test_a_cursor_means_nothing_to_the_next_primary(store_cluster: Cluster) -> None:
    tag = TAGS[0]
    await leave_leases(store_cluster, tag, 2000)
    async with sweep_of(store_cluster) as sweep:
        await sweep.once()
        assert sweep._shards[0]._cursors["leases"] > 0
        assert 0 < await left(await store_cluster.primary_of(tag), tag) < 2000
        await store_cluster.fail_over(tag)

        async def swept() -> bool:
            await sweep.once()
            return not await left(await store_cluster.primary_of(tag), tag)

        await eventually(swept, timeout_s=30)
