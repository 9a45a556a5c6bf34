"""A dead primary: its shard has no figures and makes a worker unready; the others have theirs."""

from __future__ import annotations

import asyncio
import time

from askonce_loadtest.servers.cluster import Cluster
from askonce_queue.queue_scripts import Lane
from askonce_queue.shards import shard_tags
from askonce_queue.store import Store
from askonce_queue.store_config import StoreConfig
from askonce_worker.clock import SystemClock
from askonce_worker.config import WorkerConfig
from askonce_worker.observe.backlog import READ_EVERY_S, Backlog
from askonce_worker.observe.health import Health, Limits
from askonce_worker.observe.lag import LoopLag
from askonce_worker.pool.worker import Worker
from tests.support.queue_worker import QUICK, EchoModel, echo_tasks
from tests.support.waiting import eventually

LIVING, DEAD, LIVING_TOO = TAGS = shard_tags(3)


async def test_a_dead_shard_holds_up_no_other(store_cluster: Cluster) -> None:
    config = StoreConfig(url=store_cluster.urls[0], cluster=True, shards=3)
    store = Store(config, max_connections=1)
    worker = Worker(config, echo_tasks(EchoModel()), WorkerConfig(**QUICK))
    clock = SystemClock()
    health = Health(worker.vitals, LoopLag(clock), Limits(60.0, 5.0), clock)
    backlog = Backlog(store, "default")
    reading = [asyncio.create_task(backlog.run(tag)) for tag in TAGS]
    try:
        async with worker.running():
            await eventually(lambda: backlog.states.keys() == set(TAGS))
            await eventually(lambda: health.ready().ok)
            for node in (
                await store_cluster.replica_of(DEAD),
                await store_cluster.primary_of(DEAD),
            ):
                node.kill()
            await eventually(lambda: DEAD not in backlog.states, timeout_s=30)
            await eventually(lambda: not health.ready().ok, timeout_s=30)
            (reason,) = health.ready().reasons
            assert reason.startswith(f"shard {DEAD} cannot be reached: ")
            assert health.live().ok
            for tag in (LIVING, LIVING_TOO):  # entries that are no jobs become dead letters
                stream = Lane(tag, "default", "bulk").stream
                await store.send(stream, "XADD", stream, "*", "no", "job")
            began = time.monotonic()
            await eventually(lambda: backlog.states[LIVING].dead_letters == 1, timeout_s=30)
            await eventually(lambda: backlog.states[LIVING_TOO].dead_letters == 1, timeout_s=30)
            assert time.monotonic() - began < 2 * READ_EVERY_S
            assert backlog.states.keys() == {LIVING, LIVING_TOO}
            await store_cluster.heal()
            await eventually(lambda: health.ready().ok, timeout_s=30)
            await eventually(lambda: DEAD in backlog.states, timeout_s=30)
    finally:
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        await store.aclose()
