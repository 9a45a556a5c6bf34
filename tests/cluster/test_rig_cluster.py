"""The cluster: what clients see when it fails over, when slots move, and when nobody covers one."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import redis.asyncio
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    TryAgainError,
)

from askonce_loadtest.servers.cluster import Cluster, How
from askonce_loadtest.servers.node import Node
from askonce_loadtest.servers.waiting import ServerFailed
from askonce_queue.shards import SLOTS, shard_tags, slot_of
from tests.support.waiting import eventually

TAGS = shard_tags(3)
"""One on each primary, as the cluster is when it starts."""


@asynccontextmanager
async def cluster_client(cluster: Cluster) -> AsyncGenerator[redis.asyncio.RedisCluster]:
    client = redis.asyncio.RedisCluster.from_url(cluster.urls[0], protocol=2)
    try:
        yield client
    finally:
        await client.aclose()


@asynccontextmanager
async def plain_client(node: Node) -> AsyncGenerator[redis.asyncio.Redis]:
    """A client that follows no redirection."""
    async with redis.asyncio.Redis.from_url(node.url, protocol=2) as client:
        yield client


async def execute(client: redis.asyncio.Redis, *words: str | bytes) -> Any:
    return cast("Any", await client.execute_command(*words))


async def other_primary(cluster: Cluster, tag: str) -> Node:
    owner = await cluster.primary_of(tag)
    return next(node for node in await cluster.primaries() if node is not owner)


async def test_slots_are_spread_and_replicated(cluster: Cluster) -> None:
    owners = [await cluster.primary_of(tag) for tag in TAGS]
    assert len(set(owners)) == 3
    assert await cluster.primary_of(0) is owners[0]
    assert await cluster.primary_of(SLOTS - 1) is owners[2]
    async with cluster_client(cluster) as client:
        for tag in TAGS:
            await client.set(f"{{{tag}}}", tag)
    for tag, owner in zip(TAGS, owners, strict=True):
        replica = await cluster.replica_of(tag)
        assert replica not in owners
        async with plain_client(owner) as plain:
            assert await plain.get(f"{{{tag}}}") == tag.encode()
            await plain.set(f"{{{tag}}}", "again")
            assert await plain.wait(1, 5000) == 1


async def test_a_killed_primary_is_replaced_and_comes_back_as_a_replica(cluster: Cluster) -> None:
    async with cluster_client(cluster) as client:
        for tag in TAGS:
            await client.set(f"{{{tag}}}", tag)
        async with plain_client(await cluster.primary_of(TAGS[1])) as plain:
            await plain.set(f"{{{TAGS[1]}}}", "confirmed")
            assert await plain.wait(1, 5000) == 1
        killed = await cluster.kill_primary(TAGS[1])
        # The others go on meanwhile.
        async with plain_client(await cluster.primary_of(TAGS[0])) as plain:
            await plain.set(f"{{{TAGS[0]}}}", "meanwhile")
        new = await cluster.wait_new_primary(TAGS[1], killed)
        assert new is not killed
        assert await client.get(f"{{{TAGS[1]}}}") == b"confirmed"
        await cluster.rejoin(killed)
        assert await cluster.replica_of(TAGS[1]) is killed
        assert (await killed.info("replication"))["role"] == "slave"


@pytest.mark.parametrize("how", ["", "FORCE", "TAKEOVER"])
async def test_failover_by_hand_swaps_primary_and_replica(cluster: Cluster, how: How) -> None:
    tag = TAGS[2]
    old, replica = await cluster.primary_of(tag), await cluster.replica_of(tag)
    await old.command("SET", f"{{{tag}}}", "kept")
    await cluster.wait_healthy()
    if how:
        old.pause()
    assert await cluster.fail_over(tag, how) is replica
    await cluster.heal()
    assert await cluster.replica_of(tag) is old
    if not how:
        assert await replica.command("GET", f"{{{tag}}}") == "kept"
    with pytest.raises(MovedError):
        await old.command("SET", f"{{{tag}}}", "stale")


async def test_the_wrong_node_answers_moved(cluster: Cluster) -> None:
    tag = TAGS[0]
    owner, other = await cluster.primary_of(tag), await other_primary(cluster, tag)
    async with plain_client(other) as plain:
        with pytest.raises(MovedError) as moved:
            await plain.get(f"{{{tag}}}")
    assert (moved.value.slot_id, moved.value.port) == (slot_of(tag), owner.port)


async def test_an_open_slot_answers_ask_for_what_is_not_there(cluster: Cluster) -> None:
    tag = TAGS[0]
    here, there, absent = (f"{{{tag}}}:{name}" for name in ("here", "there", "absent"))
    target = await other_primary(cluster, tag)
    source = await cluster.primary_of(tag)
    async with cluster_client(cluster) as client, plain_client(source) as plain:
        await client.mset_nonatomic({here: "1", there: "2"})
        async with cluster.migrating(tag, target) as migration:
            assert await migration.move(there.encode()) == 1
            assert await plain.get(here) == b"1"
            for key in (there, absent):
                with pytest.raises(AskError) as asked:
                    await plain.get(key)
                assert asked.value.port == target.port
            with pytest.raises(TryAgainError):
                await plain.mget([here, there])
            # A client that follows ASK finds both.
            assert await client.get(there) == b"2"
            assert await client.get(here) == b"1"
        # Not finished: all is back where it was.
        assert await plain.mget([here, there, absent]) == [b"1", b"2", None]
    await cluster.wait_healthy()


async def test_a_slot_that_was_moved_answers_moved(cluster: Cluster) -> None:
    tag = TAGS[0]
    keys = [b"{%b}:\xff%d" % (tag.encode(), number) for number in range(250)]
    source, target = await cluster.primary_of(tag), await other_primary(cluster, tag)
    await source.command("MSET", *(part for key in keys for part in (key, key)))
    await cluster.migrate_slot(tag, target)
    try:
        assert await cluster.primary_of(tag) is target
        with pytest.raises(MovedError):
            await source.command("GET", keys[0])
        assert await target.command("MGET", *keys, decode=False) == keys
    finally:
        await cluster.migrate_slot(tag, source)
    assert await source.command("MGET", *keys, decode=False) == keys


async def test_healing_closes_slots_and_starts_what_is_dead(cluster: Cluster) -> None:
    tag = TAGS[1]
    owner, other = await cluster.primary_of(tag), await other_primary(cluster, tag)
    node_id = await other.command("CLUSTER", "MYID")
    await owner.command("CLUSTER", "SETSLOT", slot_of(tag), "MIGRATING", node_id)
    (await cluster.replica_of(TAGS[0])).kill()
    (await cluster.replica_of(TAGS[2])).pause()
    with pytest.raises(ServerFailed, match="no answer from"):
        await cluster.wait_healthy(timeout_s=0.2)
    await cluster.heal()
    assert await owner.command("GET", f"{{{tag}}}") is None


async def test_clients_can_be_sent_to_another_port(cluster: Cluster) -> None:
    owner = await cluster.primary_of(TAGS[0])
    await cluster.announce(owner, 9)
    try:
        async with plain_client(await other_primary(cluster, TAGS[0])) as plain:
            with pytest.raises(MovedError) as moved:
                await plain.get(f"{{{TAGS[0]}}}")
        assert moved.value.port == 9
        await cluster.wait_healthy()  # the nodes themselves are not misled
    finally:
        await cluster.announce(owner, 0)
    assert await owner.command("CLUSTER", "SLOTS")


async def test_with_full_coverage_one_dead_primary_silences_all(tmp_path: Path) -> None:
    async with Cluster(
        tmp_path,
        replicas_each=0,
        node_timeout_ms=300,
        full_coverage=True,
        password="secret",  # noqa: S106 -- a test's own servers
    ) as cluster:
        survivor = await cluster.primary_of(TAGS[0])
        await cluster.kill_primary(TAGS[2])

        async def refused() -> bool:
            try:
                await survivor.command("SET", f"{{{TAGS[0]}}}", "value")
            except ClusterDownError:
                return True
            return False

        await eventually(refused)
        with pytest.raises(ServerFailed, match="no replica"):
            await cluster.replica_of(TAGS[2])
