"""Everything a store can say or fail to say, on a real server: what stores, clients, workers do.

What is decided is in tests/unit/test_exchange.py; what a lost reply does, in test_lost_replies.py;
clusters and failovers, in tests/cluster; too little memory, in test_memory_pressure.py.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    DataError,
    InvalidResponse,
    MasterDownError,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as StoreDown
from redis.exceptions import TimeoutError as StoreTimeout

from askonce_loadtest.servers.node import Node
from askonce_queue import Client, Job, Reply, StoreUnavailable, names, queue_scripts
from askonce_queue.checks import check_store
from askonce_queue.connections import Endpoint, Role
from askonce_queue.store import ShardDown, Store
from askonce_queue.store_config import StoreConfig
from tests.support.cluster_work import IMPATIENT, Kind, store_of, succeeds, worker_on
from tests.support.proxy import Proxy, named
from tests.support.waiting import eventually

BOTH = pytest.mark.parametrize("kind", ["async", "sync"])
COUNT = queue_scripts.count("0", {"x|y": 1})
STREAM = names.replies("0", "c")
NOWHERE = ("127.0.0.1", 1)
HASTY: dict[str, Any] = {"timeout_s": 0.3, "wait_timeout_s": 0.1}
DEFAULTS = {
    "replica-serve-stale-data": "yes",
    "min-replicas-to-write": "0",
    "maxclients": "1000",
    "key-load-delay": "0",
}


@pytest.fixture(scope="module")
def session_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A server that every test breaks, and finds mended."""
    folder = tmp_path_factory.mktemp("node")
    one = Node(folder, conf=[f"unixsocket {folder}/s", "busy-reply-threshold 20"])
    try:
        asyncio.run(one.start())
        yield one
    finally:
        one.close()


@pytest.fixture
async def node(session_node: Node) -> AsyncIterator[Node]:
    yield session_node
    if session_node.running:
        session_node.resume()
    else:
        await session_node.start()
    await succeeds(partial(session_node.command, "REPLICAOF", "NO", "ONE"))
    for name, value in DEFAULTS.items():
        await session_node.command("CONFIG", "SET", name, value)
    await session_node.command("FLUSHALL")


def config_of(node: Node, **options: Any) -> StoreConfig:
    return StoreConfig(url=node.url, **{**IMPATIENT, **options})


async def refusals(node: Node, code: str) -> int:
    """How often a node has answered with an error so far."""
    stats = await node.info("errorstats")
    return int(stats.get(f"errorstat_{code}", "count=0").partition("=")[2])


async def refused_since(node: Node, code: str, before: int) -> bool:
    return await refusals(node, code) > before


async def fails_with(
    attempt: Callable[[], Awaitable[Any]], kind: type[Exception], timeout_s: float = 10.0
) -> Exception:
    """The error of `attempt`, once it is of this kind."""

    async def as_wanted() -> list[Exception]:
        try:
            await attempt()
        except kind as error:
            return [error]
        except RedisError:
            return []
        return []

    return (await eventually(as_wanted, timeout_s))[0]


# --- refusals that pass ----------------------------------------------------------------------


async def make_replica(node: Node) -> None:
    await node.command("REPLICAOF", *NOWHERE)


async def make_stale(node: Node) -> None:
    await node.command("CONFIG", "SET", "replica-serve-stale-data", "no")
    await make_replica(node)


async def promote(node: Node) -> None:
    await node.command("REPLICAOF", "NO", "ONE")


async def want_replicas(node: Node) -> None:
    await node.command("CONFIG", "SET", "min-replicas-to-write", 1)


async def want_none(node: Node) -> None:
    await node.command("CONFIG", "SET", "min-replicas-to-write", 0)


@BOTH
@pytest.mark.parametrize(
    ("breaks", "mends", "code", "error"),
    [
        (make_replica, promote, "READONLY", ReadOnlyError),
        (make_stale, promote, "MASTERDOWN", MasterDownError),  # said to those who read
        (want_replicas, want_none, "NOREPLICAS", ResponseError),
    ],
    ids=["READONLY", "MASTERDOWN", "NOREPLICAS"],
)
async def test_a_refusal_that_passes_is_waited_for(
    node: Node,
    kind: Kind,
    breaks: Callable[[Node], Awaitable[None]],
    mends: Callable[[Node], Awaitable[None]],
    code: str,
    error: type[Exception],
) -> None:
    async with store_of(config_of(node), kind) as store:
        read = partial(store.send, STREAM, "XLEN", STREAM)
        attempt = read if error is MasterDownError else partial(store.run, COUNT)
        await attempt()
        before = await refusals(node, code)
        await breaks(node)
        asked = asyncio.ensure_future(attempt())
        await eventually(partial(refused_since, node, code, before))
        await mends(node)
        await asked
        if code == "READONLY":  # but not for ever
            await breaks(node)
            with pytest.raises(error):
                await attempt()
            await mends(node)
            await succeeds(attempt)


@asynccontextmanager
async def busy(node: Node) -> AsyncGenerator[None]:
    """A script that does not end, until it is killed."""

    async def spin() -> None:
        with suppress(ResponseError):  # it is killed
            await node.command("EVAL", "while true do end", 0, timeout_s=30)

    spinning = asyncio.create_task(spin())
    await fails_with(partial(node.command, "PING", timeout_s=0.5), ResponseError)
    try:
        yield
    finally:
        with suppress(ResponseError):
            await node.command("SCRIPT", "KILL")
        await spinning


@BOTH
async def test_a_server_busy_with_a_script(node: Node, kind: Kind) -> None:
    async with store_of(config_of(node), kind) as store:
        await store.run(COUNT)
        async with busy(node):
            with pytest.raises(ResponseError, match="BUSY"):
                await store.run(COUNT)
        await succeeds(partial(store.run, COUNT))
        async with busy(node):
            asked = asyncio.create_task(store.run(COUNT))
        await asked


@BOTH
async def test_a_server_that_loads_its_data(node: Node, kind: Kind) -> None:
    """Commands wait for it, as long as for a restart; a blocking read is told at once."""
    fill = "for i = 1, 4000 do redis.call('SET', 'a:{0}:' .. i, 'x', 'EX', 1000) end"
    await node.command("EVAL", fill, 0)
    await node.command("CONFIG", "SET", "key-load-delay", 200)
    await node.command("CONFIG", "REWRITE")
    async with (
        store_of(config_of(node), kind) as store,
        store_of(config_of(node), kind, role="blocking") as blocking,
    ):
        await store.run(COUNT)
        node.kill()
        node.launch()
        await fails_with(partial(blocking.send, STREAM, "XLEN", STREAM), BusyLoadingError)
        await succeeds(partial(store.run, COUNT))
    await node.command("CONFIG", "SET", "key-load-delay", 0)
    await node.command("CONFIG", "REWRITE")


async def test_a_blocking_read_that_the_server_ends_is_sent_again(node: Node) -> None:
    """It gave nothing to anybody."""
    async with store_of(config_of(node), role="blocking", block_s=5) as blocking:
        reading = asyncio.create_task(
            blocking.send(STREAM, "XREAD", "BLOCK", 4000, "STREAMS", STREAM, "0")
        )

        async def unblocked() -> bool:
            rows = str(await node.command("CLIENT", "LIST", "TYPE", "normal")).splitlines()
            ids = [row.split()[0][3:] for row in rows if " cmd=xread " in row]
            return bool(ids) and await node.command("CLIENT", "UNBLOCK", ids[0], "ERROR") == 1

        await eventually(unblocked)
        await node.command("XADD", STREAM, "7-0", "a", "b")
        assert await reading == [[STREAM, [[b"7-0", [b"a", b"b"]]]]]


# --- connections -----------------------------------------------------------------------------


@BOTH
async def test_a_server_that_restarts(node: Node, kind: Kind) -> None:
    # With "everysec" a reply may be sooner than the write, while a disk is busy.
    await node.command("CONFIG", "SET", "appendfsync", "always")
    await node.command("CONFIG", "REWRITE")
    async with store_of(config_of(node), kind) as store:
        for _ in range(2):
            await store.run(COUNT)
            node.kill()
            asked = asyncio.create_task(succeeds(partial(store.run, COUNT)))
            await node.start()
            await asked
        assert int(await node.command("HGET", names.stats("0"), "x|y")) == 4


@BOTH
async def test_connections_that_were_closed_while_nobody_used_them(node: Node, kind: Kind) -> None:
    async with store_of(config_of(node), kind) as store:
        for _ in range(3):
            await store.run(COUNT)
            await node.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


@BOTH
async def test_a_server_with_too_many_clients(node: Node, kind: Kind) -> None:
    """It says so, and closes the connection before it has heard anything: one of both arrives."""
    async with store_of(config_of(node), kind) as store:
        await node.command("CONFIG", "SET", "maxclients", 1)
        async with one_client(node):
            with pytest.raises(StoreDown, match=r"max number of clients|[Cc]onnection"):
                await store.run(COUNT)
        await succeeds(partial(store.run, COUNT))


@asynccontextmanager
async def one_client(node: Node) -> AsyncGenerator[None]:
    """Takes the place of one client."""
    reader, writer = await asyncio.open_connection(*node.address)
    writer.write(b"PING\r\n")
    await reader.readline()
    try:
        yield
    finally:
        writer.close()
        await writer.wait_closed()


@BOTH
@pytest.mark.parametrize("role", ["commands", "blocking"])
async def test_a_server_that_hangs(node: Node, kind: Kind, role: Role) -> None:
    """The first caller waits for the time-out; others, until it is over, hardly at all."""
    config = config_of(node, **HASTY)
    async with store_of(config, kind, role=role, block_s=0.1) as store:

        async def read() -> object:
            return await store.send(STREAM, "XLEN", STREAM)

        await read()
        node.pause()
        began = time.monotonic()
        with pytest.raises((StoreTimeout, TimeoutError)):
            await read()
        # Time-out and second chance, which no blocking read has.
        assert time.monotonic() - began < (1.5 if role == "commands" else 0.8)
        refused = [error async for error in errors_of(store.send, 200)]
        assert sum(isinstance(error, ShardDown) for error in refused) >= 198
        node.resume()
        await succeeds(read)


async def errors_of(send: Callable[..., Awaitable[Any]], times: int) -> AsyncGenerator[Exception]:
    for _ in range(times):
        try:
            await send(STREAM, "XLEN", STREAM)
        except (RedisError, OSError) as error:
            yield error


async def test_a_reply_that_never_comes(node: Node, session_node: Node) -> None:
    """The connection is half open: a new one works, and is tried. Not for a blocking read."""
    del session_node
    async with Proxy(f"unix://{node.folder}/s") as proxy:
        config = StoreConfig(url=proxy.url, **HASTY)
        async with store_of(config) as store, store_of(config, role="blocking") as blocking:
            await store.run(COUNT)
            lost = proxy.delay_reply(named(b"XLEN"))
            assert await store.send(STREAM, "XLEN", STREAM) == 0
            assert (lost.seen, lost.struck) == (2, 1)
            other = proxy.delay_reply(named(b"XLEN"))
            with pytest.raises(StoreTimeout):
                await blocking.send(STREAM, "XLEN", STREAM)
            assert other.seen == 1
            for fault in (lost, other):
                fault.released.set()


async def test_a_server_that_is_none(node: Node) -> None:
    """Something else listens at the address."""
    del node

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with store_of(StoreConfig(url=url, **IMPATIENT)) as store:
        with pytest.raises((InvalidResponse, StoreDown)):
            await store.run(COUNT)
        assert isinstance(store, Store)
        with pytest.raises(StoreUnavailable, match="does not answer"):
            await check_store(store)
    server.close()
    await server.wait_closed()


async def test_a_retired_endpoint_closes_what_is_in_use_after_its_use(node: Node) -> None:
    endpoint = Endpoint(config_of(node), node.address, block_s=5, max_connections=2)
    await asyncio.gather(*(endpoint.exchange([("PING",)]) for _ in range(2)))
    reading = asyncio.create_task(
        endpoint.exchange([("XREAD", "BLOCK", 4000, "STREAMS", STREAM, "0")])
    )

    async def clients(command: str) -> int:
        rows = str(await node.command("CLIENT", "LIST", "TYPE", "normal")).splitlines()
        return sum(f" cmd={command} " in row for row in rows)

    await eventually(partial(clients, "xread"))
    await endpoint.retire()
    assert await clients("ping") == 0
    await node.command("XADD", STREAM, "7-0", "a", "b")
    assert await reading == [[[STREAM, [[b"7-0", [b"a", b"b"]]]]]]
    assert await clients("xread") == 0


@BOTH
async def test_what_cannot_be_sent_opens_no_breaker(node: Node, kind: Kind) -> None:
    async with store_of(config_of(node), kind) as store:
        for _ in range(3):
            with pytest.raises(DataError):
                await store.send(STREAM, "XLEN", "\ud800")
            await store.run(COUNT)
        node.kill()
        with pytest.raises(RedisError):
            await store.run(COUNT)
        await node.start()
        with pytest.raises((DataError, ShardDown)):
            await store.send(STREAM, "XLEN", "\ud800")
        await succeeds(partial(store.run, COUNT))


# --- who may ---------------------------------------------------------------------------------


@BOTH
async def test_a_password_is_changed_without_a_restart(
    node: Node, kind: Kind, tmp_path: Path
) -> None:
    """Both hold for a while, as servers allow; every new connection reads the file again."""
    file = tmp_path / "password"
    file.write_text("old\n")
    await node.command("ACL", "SETUSER", "rotating", "on", ">old", "~*", "+@all")
    config = StoreConfig(
        url=f"redis://rotating@127.0.0.1:{node.port}", password_file=str(file), **IMPATIENT
    )

    async def kill_connections() -> None:
        await node.command("CLIENT", "KILL", "USER", "rotating")

    async with store_of(config, kind) as store:
        await store.run(COUNT)
        await node.command("ACL", "SETUSER", "rotating", ">new")
        file.write_text("new\n")
        await kill_connections()
        await store.run(COUNT)
        await node.command("ACL", "SETUSER", "rotating", "<old")
        await kill_connections()
        await store.run(COUNT)
        file.write_text("wrong\n")
        await kill_connections()
        with pytest.raises(AuthenticationError, match="invalid username-password pair"):
            await store.run(COUNT)
        file.unlink()
        error = await fails_with(partial(store.run, COUNT), RedisError)
        assert "wrong" not in str(error)
        file.write_text("new\n")
        await succeeds(partial(store.run, COUNT))
    await node.command("ACL", "DELUSER", "rotating")


@BOTH
async def test_who_may_not_is_told(node: Node, kind: Kind) -> None:
    """At once, and nobody takes the server for dead."""
    await node.command("ACL", "SETUSER", "reader", "on", ">pw", "~*", "+@read", "+evalsha", "+eval")
    url = f"redis://reader:pw@127.0.0.1:{node.port}"
    async with store_of(StoreConfig(url=url, **IMPATIENT), kind) as store:
        for _ in range(3):
            with pytest.raises(ResponseError, match=r"NOPERM|can't run|no permissions"):
                await store.run(COUNT)
            with pytest.raises(NoPermissionError):
                await store.send(STREAM, "XADD", STREAM, "*", "a", "b")
            assert await store.send(STREAM, "XLEN", STREAM) == 0
    async with store_of(StoreConfig(url=url.replace(":pw@", "@"), **IMPATIENT), kind) as store:
        with pytest.raises(RedisError):
            await store.run(COUNT)
    await node.command("ACL", "DELUSER", "reader")


# --- clients and workers ---------------------------------------------------------------------


async def restart(node: Node) -> None:
    node.kill()
    await node.start()


async def hang(node: Node) -> None:
    """Longer than everybody's time limit."""
    node.pause()
    with suppress(StoreTimeout):
        await node.command("PING", timeout_s=1.5)
    node.resume()


async def forget_scripts(node: Node) -> None:
    await node.command("SCRIPT", "FLUSH")


async def forget_groups(node: Node) -> None:
    for lane in ("interactive", "bulk"):
        await node.command("XGROUP", "DESTROY", names.jobs("0", "default", lane), names.GROUP)


async def cut_everybody(node: Node) -> None:
    await node.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


async def be_a_replica(node: Node) -> None:
    before = await refusals(node, "READONLY")
    await make_replica(node)
    await eventually(partial(refused_since, node, "READONLY", before))
    await promote(node)


async def be_busy(node: Node) -> None:
    before = await refusals(node, "BUSY")
    async with busy(node):
        await fails_with(partial(node.command, "PING"), ResponseError)
    await eventually(partial(refused_since, node, "BUSY", before))


@pytest.mark.parametrize(
    "fault",
    [restart, hang, forget_scripts, forget_groups, cut_everybody, be_a_replica, be_busy],
    ids=lambda fault: fault.__name__,
)
async def test_clients_and_workers_outlast_it(
    node: Node, fault: Callable[[Node], Awaitable[None]]
) -> None:
    """Every job has one reply, and is asked once, whenever the fault strikes."""
    config, replies, accepted = config_of(node), list[Reply](), list[str]()
    stop = asyncio.Event()
    async with worker_on(config).running() as worker, Client(config, name="c") as client:

        async def produce() -> None:
            number = 0
            while not stop.is_set():
                batch = [
                    Job(task="echo", text=f"t{number + n}", id=f"j{number + n}") for n in range(20)
                ]
                try:
                    await client.enqueue_many(batch)
                except StoreUnavailable:
                    continue
                accepted.extend(str(job.id) for job in batch)
                number += len(batch)

        async def consume() -> None:
            async for reply in client.replies():
                replies.append(reply)

        async def some_more() -> None:
            goal = len(replies) + 60
            await eventually(lambda: len(replies) >= goal, timeout_s=20)

        producing, consuming = asyncio.create_task(produce()), asyncio.create_task(consume())
        await some_more()
        await fault(node)
        await some_more()
        stop.set()
        await producing
        await eventually(lambda: len(replies) >= len(accepted), timeout_s=20)
        consuming.cancel()
        assert Counter(reply.id for reply in replies) == Counter(accepted)
        assert all(reply.answer is not None for reply in replies)
        assert worker.counters.total("model_calls") == len(accepted)
