"""The store's two clients on a real cluster: routed by shard, redirected, failed over, replaced."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from redis.exceptions import ClusterDownError, RedisError, TryAgainError

from askonce_loadtest.servers.cluster import Cluster
from askonce_loadtest.servers.node import Node
from askonce_queue import names, queue_scripts
from askonce_queue.scripts import Call
from askonce_queue.shards import SLOTS, shard_tags, slot_of
from askonce_queue.store import Store
from askonce_queue.store_config import StoreConfig
from askonce_queue.topology import NotKnown
from tests.support.cluster import assert_nobody_connected
from tests.support.cluster_work import (
    SHARDS,
    AnyStore,
    Kind,
    cluster_config,
    move_slots,
    store_of,
    succeeds,
)
from tests.support.waiting import eventually

TAGS = shard_tags(SHARDS)
BOTH = pytest.mark.parametrize("kind", ["async", "sync"])


def counted(tag: str, field: str = "x|y") -> Call:
    """A script that writes, and whose effect can be told."""
    return queue_scripts.count(tag, {field: 1})


async def count_of(node: Node, tag: str, field: str = "x|y") -> int:
    return int(await node.command("HGET", names.stats(tag), field) or 0)


async def other_primary(cluster: Cluster, tag: str) -> Node:
    owner = await cluster.primary_of(tag)
    return next(node for node in await cluster.primaries() if node is not owner)


@BOTH
async def test_each_request_goes_to_its_shard(store_cluster: Cluster, kind: Kind) -> None:
    calls = [counted(tag) for tag in (*TAGS, *reversed(TAGS))]
    reads = [queue_scripts.claim_name(tag, f"c{tag}", "t", 1000) for tag in TAGS]
    async with store_of(cluster_config(store_cluster), kind) as store:
        assert await store.run_many(calls) == [None] * len(calls)
        assert await store.run_many(reads) == [1] * SHARDS
        for tag in TAGS:
            assert await count_of(await store_cluster.primary_of(tag), tag) == 2
            fields = await store.send(names.clients(tag), "HKEYS", names.clients(tag))
            assert fields == [f"c{tag}".encode()]


@BOTH
async def test_results_keep_their_order_whatever_fails(store_cluster: Cluster, kind: Kind) -> None:
    wrong = TAGS[3]
    await (await store_cluster.primary_of(wrong)).command("SET", names.stats(wrong), "no hash")
    async with store_of(cluster_config(store_cluster), kind) as store:
        results = await store.run_many(
            [call for tag in TAGS for call in (counted(tag), queue_scripts.measure(tag))]
        )
        refused = [n for n, result in enumerate(results) if isinstance(result, RedisError)]
        assert refused == [2 * TAGS.index(wrong)]
        assert "WRONGTYPE" in str(results[refused[0]])
        assert not any(isinstance(result, Exception) for result in results[1::2])


@BOTH
async def test_scripts_that_nodes_forgot_are_sent_again(store_cluster: Cluster, kind: Kind) -> None:
    async with store_of(cluster_config(store_cluster), kind) as store:
        await store.run_many([counted(tag) for tag in TAGS])
        for node in await store_cluster.primaries():
            await node.command("SCRIPT", "FLUSH")
        assert await store.run_many([counted(tag) for tag in TAGS]) == [None] * SHARDS
        for tag in TAGS:
            assert await count_of(await store_cluster.primary_of(tag), tag) == 2


# --- slots that move -------------------------------------------------------------------------


@BOTH
async def test_a_slot_that_was_moved_is_followed(store_cluster: Cluster, kind: Kind) -> None:
    tag = TAGS[0]
    source, target = await store_cluster.primary_of(tag), await other_primary(store_cluster, tag)
    async with store_of(cluster_config(store_cluster), kind) as store:
        await store.run_many([counted(tag) for tag in TAGS])
        await store_cluster.migrate_slot(tag, target)
        try:
            calls = [counted(tag), queue_scripts.measure(tag), *map(counted, TAGS[1:])]
            assert not any(isinstance(result, Exception) for result in await store.run_many(calls))
            assert await count_of(target, tag) == 2
            moved = await refusals(source, "MOVED")
            await store.run(counted(tag))
            assert await refusals(source, "MOVED") == moved, "it knows the way by now"
        finally:
            await store_cluster.migrate_slot(tag, source)
        await store.run(counted(tag))
        assert await count_of(source, tag) == 4


async def refusals(node: Node, code: str) -> int:
    """How often a node has answered with an error so far."""
    stats = await node.info("errorstats")
    return int(stats.get(f"errorstat_{code}", "count=0").partition("=")[2])


@BOTH
async def test_what_an_open_slot_has_moved_is_asked_for_where_it_is(
    store_cluster: Cluster, kind: Kind
) -> None:
    tag = TAGS[2]
    source, target = await store_cluster.primary_of(tag), await other_primary(store_cluster, tag)
    here, there, new = names.stats(tag), names.beats(tag, "p"), names.solo(tag, "p")
    async with store_of(cluster_config(store_cluster), kind) as store:
        for key in (here, there):
            await store.send(key, "HSET", key, "a", "1")
        async with store_cluster.migrating(tag, target) as migration:
            assert await migration.move(there) == 1
            assert await store.send(here, "HGET", here, "a") == b"1"
            assert await store.send(there, "HGET", there, "a") == b"1"
            # One pipeline with both, and a script that the target does not know.
            beat = queue_scripts.beat(tag, "p", "worker", 1000)
            first, now_ms, last = await store.run_many([counted(tag), beat, counted(tag)])
            assert (first, last) == (None, None)
            assert int(now_ms) > 0
            await store.send(new, "HSET", new, "b", "2")  # new keys begin at the target
            assert await refusals(source, "ASK") >= 3
            await migration.move()
            await migration.finish()
        await store_cluster.wait_healthy()
        try:
            assert await target.command("HLEN", there) == 2
            assert await store.send(new, "HGET", new, "b") == b"2"
            assert await count_of(target, tag) == 2
        finally:
            await store_cluster.migrate_slot(tag, source)


@BOTH
async def test_a_script_whose_keys_are_on_both_sides_waits_for_the_migration(
    store_cluster: Cluster, kind: Kind
) -> None:
    tag = TAGS[4]
    source, target = await store_cluster.primary_of(tag), await other_primary(store_cluster, tag)
    jobs = queue_scripts.Lane(tag, "p", "bulk")
    there = names.solo(tag, "p")
    sweep = queue_scripts.sweep_records(
        there, [jobs], cursor=0, count=10, where="field", grace_ms=0
    )
    async with store_of(cluster_config(store_cluster), kind) as store:
        await store.send(there, "HSET", there, "bulk/1-0", "gone")
        await store.send(jobs.stream, "XADD", jobs.stream, "*", "a", "1")
        async with store_cluster.migrating(tag, target) as migration:
            await migration.move(there)
            with pytest.raises(TryAgainError):
                await store.run(sweep)
            sweeping = asyncio.create_task(store.run(sweep))
            refused = await refusals(source, "TRYAGAIN")

            async def is_refused() -> bool:
                return await refusals(source, "TRYAGAIN") > refused

            await eventually(is_refused)
            await migration.move()
            await migration.finish()
            assert (await sweeping)[1] == 1
        await store_cluster.wait_healthy()
        await store_cluster.migrate_slot(tag, source)


# --- primaries that die ----------------------------------------------------------------------


@BOTH
async def test_a_killed_primary_is_replaced(store_cluster: Cluster, kind: Kind) -> None:
    """By both roles: a blocking read learns the new address although it is never sent again."""
    tag, *others = TAGS[5], *TAGS[:4]
    config, key = cluster_config(store_cluster), names.replies(TAGS[5], "c")
    async with (
        store_of(config, kind) as store,
        store_of(config, kind, role="blocking") as blocking,
    ):

        async def read() -> object:
            return await blocking.send(key, "XREAD", "BLOCK", 50, "STREAMS", key, "0")

        await store.run_many([counted(tag) for tag in TAGS])
        assert await read() is None
        killed = await store_cluster.kill_primary(tag)
        for other in others:
            await store.run(counted(other))
        await succeeds(partial(store.send, key, "XADD", key, "7-0", "a", "b"))
        assert await succeeds(read) == [[key, [[b"7-0", [b"a", b"b"]]]]]
        new = await store_cluster.wait_new_primary(tag, killed)
        assert await count_of(new, tag) == 1
        for other in others:
            assert await count_of(await store_cluster.primary_of(other), other) == 2
        await store_cluster.rejoin(killed)


@BOTH
async def test_a_failover_by_hand_fails_no_request(store_cluster: Cluster, kind: Kind) -> None:
    """What was confirmed is there, and nobody has noticed more than a pause."""
    tag = TAGS[1]
    done = 0
    stop = asyncio.Event()
    async with store_of(cluster_config(store_cluster), kind) as store:

        async def write() -> None:
            nonlocal done
            while not stop.is_set():
                await store.run(counted(tag))
                done += 1

        async def some_more() -> None:
            seen = done
            await eventually(lambda: done > seen + 5)

        writing = asyncio.create_task(write())
        for _ in range(2):
            await some_more()
            await store_cluster.fail_over(tag)
        await some_more()
        stop.set()
        await writing
        # A reply may have been lost with its connection, and the script run twice.
        assert await count_of(await store_cluster.primary_of(tag), tag) >= done


async def test_a_server_that_holds_nothing_any_more_is_left(store_cluster: Cluster) -> None:
    tag = TAGS[3]
    old, new = await store_cluster.primary_of(tag), await store_cluster.replica_of(tag)
    seed = await other_primary(store_cluster, tag)  # those of the configuration are kept
    config = StoreConfig(url=seed.url, cluster=True, shards=SHARDS)
    async with store_of(config) as store, store_of(config, role="blocking") as blocking:
        key = names.replies(tag, "c")
        await store.run_many([counted(t) for t in TAGS])
        await blocking.send(key, "EXISTS", key)
        await store_cluster.fail_over(tag)
        await store.run_many([counted(t) for t in TAGS])
        await blocking.send(key, "EXISTS", key)
        assert isinstance(store, Store)
        assert store.server_of(key) == new.address
        await assert_nobody_connected(old)


async def test_one_silent_primary_delays_only_its_own_shards(store_cluster: Cluster) -> None:
    node = await store_cluster.primary_of(TAGS[0])
    replica = await store_cluster.replica_of(TAGS[0])
    own = [t for t in TAGS if await store_cluster.primary_of(t) is node]
    async with store_of(cluster_config(store_cluster)) as store:

        async def ask(tag: str) -> list[float]:
            """How long requests took, up to the first that failed."""
            took: list[float] = []
            for _ in range(40):
                began = time.monotonic()
                try:
                    await store.run(counted(tag))
                except RedisError:
                    assert tag in own
                    return [time.monotonic() - began]
                took.append(time.monotonic() - began)
            return took

        async def ask_all() -> dict[str, list[float]]:
            return dict(zip(TAGS, await asyncio.gather(*map(ask, TAGS)), strict=True))

        before = await ask_all()
        replica.pause()
        node.pause()
        during = await ask_all()
        for one in (node, replica):
            one.resume()
        for tag in TAGS:
            if tag in own:
                assert max(during[tag]) > 0.9
            else:
                assert len(during[tag]) == 40
                assert statistics.median(during[tag]) < 3 * statistics.median(before[tag]) + 0.005
        await succeeds(partial(store.run, counted(TAGS[0])))


# --- a cluster of its own --------------------------------------------------------------------


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Cluster]:
    """Three primaries without replicas, which refuse everything when one is gone."""
    async with Cluster(
        tmp_path, replicas_each=0, node_timeout_ms=500, full_coverage=True
    ) as cluster:
        yield cluster


async def test_a_slot_that_nobody_covers_and_a_cluster_that_is_down(small: Cluster) -> None:
    config, spread = cluster_config(small), [TAGS[0], TAGS[2], TAGS[5]]
    async with store_of(config) as store, store_of(config, "sync") as threaded:
        clients: tuple[AnyStore, AnyStore] = (store, threaded)
        for node in small.nodes:
            await node.command("CONFIG", "SET", "cluster-require-full-coverage", "no")
            await node.command("CLUSTER", "DELSLOTS", slot_of(TAGS[2]))
        for client in clients:
            good, none, fine = await client.run_many([counted(tag) for tag in spread])
            assert (good, fine) == (None, None)
            assert isinstance(none, NotKnown | ClusterDownError)
            assert "slot" in str(none)
        await small.nodes[1].command("CLUSTER", "ADDSLOTS", slot_of(TAGS[2]))
        await small.wait_healthy()
        for client in clients:
            await succeeds(partial(client.run, counted(TAGS[2])))
        for node in small.nodes:
            await node.command("CONFIG", "SET", "cluster-require-full-coverage", "yes")
        killed = await small.kill_primary(TAGS[5])

        async def refused(client: AnyStore) -> bool:
            results = await client.run_many([counted(tag) for tag in spread])
            return [type(one) for one in results[:2]] == [ClusterDownError] * 2

        for client in clients:
            await eventually(partial(refused, client), timeout_s=20)
        assert isinstance(store, Store)
        assert set(store.down()) == set(spread)
        assert all("cluster is down" in str(store.down()[tag]) for tag in spread[:2])
        await small.rejoin(killed)
        for client in clients:
            for tag in spread:
                await succeeds(partial(client.run, counted(tag)))
        assert store.down() == {}


async def test_a_node_is_replaced_by_one_with_another_address(
    small: Cluster, tmp_path: Path
) -> None:
    """All slots move away from a node that the configuration names, and it ends."""
    old, key = small.nodes[0], names.stats(TAGS[0])
    async with Node(tmp_path / "new", conf=["cluster-enabled yes"]) as new:
        await old.command("CLUSTER", "MEET", *new.address)
        config = cluster_config(small)
        async with (
            store_of(config) as store,
            store_of(config, "sync") as threaded,
            store_of(config, role="blocking") as blocking,
        ):
            for client in (store, threaded):
                await client.run_many([counted(tag) for tag in TAGS])
            await blocking.send(key, "EXISTS", key)
            await move_slots(old, new, 0, SLOTS // 3 - 1)
            await old.terminate()
            for client in (store, threaded):
                for tag in TAGS[:2]:
                    await succeeds(partial(client.run, counted(tag)))
            assert await succeeds(partial(blocking.send, key, "EXISTS", key)) == 1
            assert await count_of(new, TAGS[0]) == 4
            assert isinstance(store, Store)
            assert store.server_of(key) == new.address
