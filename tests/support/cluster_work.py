"""askonce on several servers: its configuration, both kinds of client, workers to watch."""

from __future__ import annotations

import asyncio
import urllib.parse
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal, Protocol

from redis.exceptions import RedisError, ResponseError

from askonce_loadtest.servers.cluster import Cluster
from askonce_loadtest.servers.node import Node
from askonce_loadtest.servers.sentinel import SentinelSet
from askonce_queue.connections import Role
from askonce_queue.errors import StoreUnavailable
from askonce_queue.scripts import Arg, Call
from askonce_queue.store import Store
from askonce_queue.store_config import StoreConfig
from askonce_queue.sync_store import SyncStore
from askonce_worker.config import WorkerConfig
from askonce_worker.models.protocol import Model
from askonce_worker.pool.worker import Worker
from tests.support.queue_worker import QUICK, EchoModel, echo_tasks
from tests.support.waiting import eventually

SHARDS = 6
"""Two on each of three primaries."""
IMPATIENT: dict[str, Any] = {"timeout_s": 1.0, "wait_timeout_s": 0.5}
Kind = Literal["async", "sync"]


def cluster_config(cluster: Cluster, **options: Any) -> StoreConfig:
    """Where `cluster` is, for somebody who knows all its nodes and waits no longer than 1 s."""
    first, *others = cluster.nodes
    nodes = tuple(f"{host}:{port}" for host, port in (node.address for node in others))
    given: dict[str, Any] = {"shards": SHARDS, **IMPATIENT, **options}
    return StoreConfig(url=first.url, nodes=nodes, cluster=True, **given)


def sentinel_config(
    rig: SentinelSet, *, name: str = "", password: str | None = None, **options: Any
) -> StoreConfig:
    """Where the primary of `rig` is, by all its sentinels; the password is the right one."""
    first, *others = (f"{host}:{port}" for host, port in rig.addresses)
    if password is None:
        password = rig.data.primary.password
    user = f":{urllib.parse.quote(password, safe='')}@" if password else ""
    given: dict[str, Any] = {**IMPATIENT, **options}
    return StoreConfig(
        url=f"redis://{user}{first}", nodes=tuple(others), sentinel=name or rig.name, **given
    )


class AnyStore(Protocol):
    """What both kinds of client can do, awaited."""

    @property
    def tags(self) -> tuple[str, ...]: ...
    async def run(self, call: Call) -> Any: ...
    async def run_many(self, calls: Sequence[Call]) -> list[Any]: ...
    async def run_confirmed(self, calls: Sequence[Call]) -> list[Any]: ...
    async def send(self, key: bytes, *words: Arg) -> Any: ...


class _Threaded:
    """A synchronous client whose calls run in a thread."""

    def __init__(self, store: SyncStore) -> None:
        self._store = store
        self.tags = store.tags

    async def run(self, call: Call) -> Any:
        return await asyncio.to_thread(self._store.run, call)

    async def run_many(self, calls: Sequence[Call]) -> list[Any]:
        return await asyncio.to_thread(self._store.run_many, calls)

    async def run_confirmed(self, calls: Sequence[Call]) -> list[Any]:
        return await asyncio.to_thread(self._store.run_confirmed, calls)

    async def send(self, key: bytes, *words: Arg) -> Any:
        return await asyncio.to_thread(self._store.send, key, *words)


@asynccontextmanager
async def store_of(
    config: StoreConfig, kind: Kind = "async", *, role: Role = "commands", block_s: float = 0.3
) -> AsyncGenerator[AnyStore]:
    """A client of either kind, closed at the end of the block."""
    if kind == "sync":
        threaded = SyncStore(config, role=role, block_s=block_s)
        try:
            yield _Threaded(threaded)
        finally:
            await asyncio.to_thread(threaded.close)
        return
    store = Store(config, role=role, block_s=block_s)
    try:
        yield store
    finally:
        await store.aclose()


def worker_on(
    config: StoreConfig, model: Model | None = None, *, slots: int = 1000, **options: Any
) -> Worker:
    """A worker for `echo`, quick to call others dead."""
    tasks = echo_tasks(model or EchoModel(), slots=slots)
    return Worker(config, tasks, WorkerConfig(**(QUICK | options)))


async def succeeds(attempt: Callable[[], Awaitable[Any]], timeout_s: float = 15.0) -> Any:
    """The result of `attempt()`, which is repeated as long as the store fails."""

    async def once() -> list[Any]:
        try:
            return [await attempt()]
        except (RedisError, OSError, StoreUnavailable):
            return []

    return (await eventually(once, timeout_s))[0]


async def move_slots(source: Node, target: Node, first: int, last: int) -> None:
    """Move slots with all their keys, atomically. Needs Valkey 9."""
    target_id = await target.command("CLUSTER", "MYID")

    async def moved() -> bool:
        rows = await source.command("CLUSTER", "GETSLOTMIGRATIONS")
        states = [dict(zip(row[::2], row[1::2], strict=True))["state"] for row in rows[:1]]
        if states == ["success"]:
            return True
        if states in ([], ["failed"]):  # the two may not know each other, or their slots, yet
            with suppress(ResponseError):
                await source.command(
                    *("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", first, last, "NODE", target_id)
                )
        return False

    await eventually(moved, timeout_s=20)
