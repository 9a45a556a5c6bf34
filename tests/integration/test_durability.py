"""What is confirmed survives: WAIT and WAITAOF on real servers, a replica that lags, a failover."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal, Protocol

import pytest
from redis.exceptions import ReadOnlyError

from askonce_loadtest.servers.node import Node
from askonce_loadtest.servers.replicated import Replicated
from askonce_queue import Client, Job, Reply, StoreUnavailable, names, queue_scripts
from askonce_queue.durability import NotConfirmed
from askonce_queue.reply import decode_replies
from askonce_queue.store import Store
from askonce_queue.store_config import StoreConfig
from askonce_queue.sync import Client as SyncClient
from askonce_worker.cache.invalidation import invalidate
from askonce_worker.pool.worker import Worker
from tests.support.cluster_work import Kind, store_of, worker_on
from tests.support.waiting import eventually

BOTH = pytest.mark.parametrize("kind", ["async", "sync"])
LANE = names.jobs("0", "default", "interactive")
UNCONFIRMED = "0 of 1 replicas confirmed within 0.25 s.*enqueue the same ids again"


@pytest.fixture(scope="module")
def session_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicated]:
    """A primary and a replica for all tests: each finds them in sync, and empty."""
    started = Replicated(tmp_path_factory.mktemp("pair"))
    try:
        asyncio.run(started.start())
        yield started
    finally:
        started.close()


@pytest.fixture
async def pair(session_pair: Replicated) -> AsyncIterator[Replicated]:
    yield session_pair
    await session_pair.wake()
    await session_pair.wait_in_sync()
    await session_pair.primary.command("FLUSHALL")


class Enqueues(Protocol):
    """The clients' common half."""

    async def enqueue(self, jobs: Sequence[Job]) -> None: ...


class _Async:
    def __init__(self, client: Client) -> None:
        self._client = client

    async def enqueue(self, jobs: Sequence[Job]) -> None:
        await self._client.enqueue_many(jobs)


class _Sync:
    def __init__(self, client: SyncClient) -> None:
        self._client = client

    async def enqueue(self, jobs: Sequence[Job]) -> None:
        await asyncio.to_thread(self._client.enqueue_many, jobs)


@asynccontextmanager
async def client_of(config: StoreConfig, kind: Kind) -> AsyncGenerator[Enqueues]:
    """A client of either kind."""
    if kind == "async":
        async with Client(config, name="c") as client:
            yield _Async(client)
        return
    threaded = SyncClient(config, name="c")
    await asyncio.to_thread(threaded.__enter__)
    try:
        yield _Sync(threaded)
    finally:
        await asyncio.to_thread(threaded.__exit__, None, None, None)


def config_of(node: Node, **options: Any) -> StoreConfig:
    given: dict[str, Any] = {"wait_replicas": 1, "timeout_s": 1.0, "wait_timeout_s": 0.25}
    given |= options
    return StoreConfig(url=node.url, **given)


def jobs(amount: int = 20) -> list[Job]:
    return [Job(task="echo", text=f"text {n}", id=f"j{n}") for n in range(amount)]


async def length(node: Node) -> int:
    return int(await node.command("XLEN", LANE))


async def answers(config: StoreConfig, count: int) -> list[Reply]:
    """The replies that the client `c` has not had."""
    async with worker_on(config).running(), Client(config, name="c") as client:
        replies = client.replies()
        async with asyncio.timeout(15):
            return [await anext(replies) for _ in range(count)]


@BOTH
async def test_what_is_confirmed_is_at_the_replica(pair: Replicated, kind: Kind) -> None:
    async with client_of(config_of(pair.primary), kind) as client:
        for amount in (10, 20):
            await client.enqueue(jobs(amount))
            assert await length(pair.replica) == amount


@BOTH
@pytest.mark.parametrize("connections", ["kept", "new"])
async def test_a_replica_that_lags(
    pair: Replicated, kind: Kind, connections: Literal["kept", "new"]
) -> None:
    """A repeat is not confirmed before the replica has what was enqueued the first time, although
    it writes none of it: WAIT speaks only of what its own connection wrote.
    """
    config = config_of(pair.primary)
    async with client_of(config, kind) as client:
        await client.enqueue(jobs(1))
        pair.replica.pause()
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match=UNCONFIRMED):
                await client.enqueue(jobs())
            assert await length(pair.primary) == 20
            if connections == "new":
                await pair.primary.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        pair.replica.resume()
        await client.enqueue(jobs())
        assert await length(pair.primary) == await length(pair.replica) == 20
    replies = await answers(config, 20)
    assert Counter(reply.id for reply in replies) == Counter(f"j{n}" for n in range(20))
    assert await length(pair.primary) == 0


def has_settled(worker: Worker, amount: int) -> bool:
    return worker.counters.total("jobs_settled") >= amount


async def test_jobs_that_were_answered_before_they_were_confirmed(pair: Replicated) -> None:
    """Each is handed one reply, when its enqueue has succeeded, and not before."""
    config = config_of(pair.primary)
    async with worker_on(config).running() as worker, Client(config, name="c") as client:
        pair.replica.pause()
        replies = client.replies()
        first = asyncio.ensure_future(anext(replies))
        for tries in (1, 2):
            with pytest.raises(StoreUnavailable, match=UNCONFIRMED):
                await client.enqueue_many(jobs())
            await eventually(partial(has_settled, worker, 20 * tries))
        assert not first.done()
        pair.replica.resume()
        await client.enqueue_many(jobs())
        found = [await first, *[await anext(replies) for _ in range(19)]]
        assert Counter(reply.id for reply in found) == Counter(f"j{n}" for n in range(20))
        assert client.outstanding == 0
        assert worker.counters.total("model_calls") == 20


async def test_more_replicas_than_there_are(pair: Replicated) -> None:
    async with client_of(config_of(pair.primary, wait_replicas=2), "async") as client:
        with pytest.raises(StoreUnavailable, match="1 of 2 replicas confirmed"):
            await client.enqueue(jobs())


@BOTH
async def test_on_disk(pair: Replicated, kind: Kind) -> None:
    """The AOF is written to disk every second, so that is how long it may take."""
    fsync = {"wait_fsync": True, "timeout_s": 5.0, "wait_timeout_s": 2.0}
    for replicas in (0, 1):
        config = config_of(pair.primary, wait_replicas=replicas, **fsync)
        async with client_of(config, kind) as client:
            await client.enqueue(jobs())
            await client.enqueue(jobs())
    await pair.primary.command("CONFIG", "SET", "appendonly", "no")
    try:
        async with client_of(config_of(pair.primary, **fsync), kind) as client:
            with pytest.raises(StoreUnavailable, match="set 'appendonly yes' on every server"):
                await client.enqueue(jobs())
    finally:
        await pair.primary.command("CONFIG", "SET", "appendonly", "yes")


@BOTH
async def test_results_that_are_not_confirmed(pair: Replicated, kind: Kind) -> None:
    """What was refused says so; what was executed and not confirmed says that."""
    calls = [queue_scripts.count("0", {"x|y": 1}), queue_scripts.count("1", {"x|y": 1})]
    await pair.primary.command("SET", names.stats("1"), "no hash")
    async with store_of(config_of(pair.primary), kind) as store:
        good, refused = await store.run_confirmed(calls)
        assert good is None
        pair.replica.pause()
        unsure, refused_again = await store.run_confirmed(calls)
        assert isinstance(unsure, NotConfirmed)
        assert str(refused) == str(refused_again)
        assert "WRONGTYPE" in str(refused)
        assert await pair.primary.command("HGET", names.stats("0"), "x|y") == "2"


# --- invalidation ----------------------------------------------------------------------------


async def invalidated(config: StoreConfig) -> tuple[bool, str]:
    """Whether an invalidation is complete, and what keeps it from being."""
    async with store_of(config) as store:
        assert isinstance(store, Store)
        done = await invalidate(store, ["t"])
    return done.complete, "; ".join(done.failures.values())


async def test_an_invalidation_waits_for_every_replica(pair: Replicated) -> None:
    """Without being told to: a failover must not bring answers back."""
    config = config_of(pair.primary, wait_replicas=0)
    assert await invalidated(config) == (True, "")
    pair.replica.pause()
    assert await invalidated(config) == (False, "0 of 1 replicas confirmed within 0.25 s")
    pair.replica.resume()
    assert await invalidated(config) == (True, "")


async def test_an_invalidation_waits_for_as_many_as_configured(pair: Replicated) -> None:
    """Also while fewer are connected."""
    assert await invalidated(config_of(pair.primary, wait_replicas=2)) == (
        False,
        "1 of 2 replicas confirmed within 0.25 s",
    )
    pair.replica.kill()
    complete, failure = await invalidated(config_of(pair.primary, wait_replicas=1))
    assert not complete
    assert "0 of 1 replicas confirmed" in failure


async def test_a_server_that_is_no_primary_any_more_invalidates_nothing(pair: Replicated) -> None:
    old = pair.primary
    await pair.swap_roles()
    complete, failure = await invalidated(config_of(old))
    assert not complete
    assert "read only replica" in failure
    async with store_of(config_of(old)) as store:
        with pytest.raises(ReadOnlyError):
            await store.run(queue_scripts.count("0", {"x|y": 1}))


# --- failover --------------------------------------------------------------------------------


@pytest.mark.parametrize("die", [Node.kill, Node.pause], ids=["killed", "paused"])
async def test_a_failover_loses_nothing_that_was_confirmed(
    pair: Replicated, die: Callable[[Node], None]
) -> None:
    old, new = pair.primary, pair.replica
    async with Client(config_of(old)) as client:
        await client.enqueue_many(jobs(200), reply_to="sink")
        die(old)
    await new.command("REPLICAOF", "NO", "ONE")
    assert await length(new) == 200

    async def none_left() -> bool:
        return await length(new) == 0

    async with worker_on(config_of(new)).running():
        await eventually(none_left)
    entries = await new.command("XRANGE", names.replies("0", "@sink"), "-", "+")
    found = [reply for _, fields in entries for reply in decode_replies(fields[3].encode())[0]]
    assert Counter(reply.id for reply in found) == Counter(f"j{n}" for n in range(200))
    await pair.wake()
    await old.command("REPLICAOF", *new.address)
    pair.primary, pair.replica = new, old
