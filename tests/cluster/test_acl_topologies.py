"""The users of `deploy/redis/users.acl` where there is more than one server."""

from __future__ import annotations

from pathlib import Path

import anyio

from askonce_loadtest.servers.cluster import Cluster
from askonce_loadtest.servers.node import Node
from askonce_loadtest.servers.sentinel import SentinelSet
from askonce_queue import Client, Job
from askonce_queue.shards import shard_tags
from askonce_worker.config import WorkerConfig
from askonce_worker.pool.worker import Worker
from tests.support.acl import (
    ADMIN,
    PASSWORD,
    PRODUCER,
    SENTINEL,
    WORKER,
    conf_with_users,
    denials,
    store_of,
)
from tests.support.queue_worker import QUICK, EchoModel, echo_tasks
from tests.support.waiting import eventually

SHARDS = 3


async def calls_of(nodes: list[Node], command: str) -> int:
    """How often a command was called on all of them."""
    stats = [(await node.info("commandstats")).get(f"cmdstat_{command}", "=0") for node in nodes]
    return sum(int(stat.partition("=")[2].partition(",")[0]) for stat in stats)


async def test_a_cluster_is_served_and_replicated_by_these_users(tmp_path: Path) -> None:
    conf = conf_with_users(tmp_path)
    async with Cluster(tmp_path, user=ADMIN, password=PASSWORD, conf=conf) as cluster:
        options = {"shards": SHARDS, "cluster": True}
        worker = Worker(
            store_of(cluster.nodes[0], WORKER, **options),
            echo_tasks(EchoModel()),
            WorkerConfig(**QUICK),
        )
        producer = store_of(cluster.nodes[0], PRODUCER, wait_replicas=1, **options)
        async with worker.running(), Client(producer) as client:

            async def ask(name: str) -> None:
                jobs = [Job(task="echo", text=f"{name} {number}") for number in range(60)]
                replies = [reply async for reply in client.ask_many(jobs)]
                assert all(reply.answer for reply in replies)

            await ask("before a slot is moved")
            source, target, *_ = shard_tags(SHARDS)
            new = await cluster.primary_of(target)
            async with cluster.migrating(source, new) as migration, anyio.create_task_group() as tg:
                await migration.move()
                # Most scripts are refused while their keys are on their way (TRYAGAIN).
                tg.start_soon(ask, "meanwhile")
                await eventually(lambda: calls_of(cluster.nodes, "asking"))
                await migration.move()
                await migration.finish()
            await ask("after that")
        assert await calls_of(cluster.nodes, "cluster|slots")
        assert [await denials(node) for node in cluster.nodes] == [[]] * len(cluster.nodes)


async def test_sentinels_watch_and_switch_as_their_user(tmp_path: Path) -> None:
    rig = SentinelSet(
        tmp_path, user=ADMIN, password=PASSWORD, watcher=SENTINEL, conf=conf_with_users(tmp_path)
    )
    async with rig:
        await rig.fail_over()
        await rig.wait_healthy()
        assert [await denials(node) for node in rig.data.nodes] == [[], []]
