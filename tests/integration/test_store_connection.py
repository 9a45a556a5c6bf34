# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest
import redis
import redis.asyncio
import uvloop
from redis.exceptions import ConnectionError as StoreConnectionError
from redis.exceptions import DataError

from askonce_queue import names
from askonce_queue.checks import check_shards, check_store
from askonce_queue.connections import Endpoint, connect, connect_sync
from askonce_queue.embedded import EmbeddedStore
from askonce_queue.errors import ConfigError, StoreUnavailable
from askonce_queue.store import Store
from askonce_queue.store_config import Address, StoreConfig

STREAM = names.jobs("0", "default", "bulk")

ARGUMENTS: list[tuple[Any, bytes]] = [
    (b"\x00\xff\r\n", b"\x00\xff\r\n"),
    ("é\r\n", "é\r\n".encode()),
    ("", b""),
    (7, b"7"),
    (-(10**30), b"-1" + b"0" * 30),
    (0.1, b"0.1"),
    (-0.0, b"-0.0"),
    (1e300, b"1e+300"),
    (memoryview(b"abcdef"), b"abcdef"),
    (memoryview(b"abcdef")[::2], b"ace"),
    (bytearray(b"abc"), b"abc"),
    (signal.SIGKILL, b"9"),
    (b"x" * 1_000_000, b"x" * 1_000_000),
]


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[EmbeddedStore]:
    """A server of its own, to be killed."""
    with EmbeddedStore(tmp_path / "state") as embedded:
        yield embedded


@pytest.fixture
def store_sync(
    store: redis.asyncio.Redis,  # noqa: ARG001 -- empties the store
    store_url: str,
) -> Iterator[redis.Redis]:
    """A synchronous client on the store of the test."""
    client = connect_sync(store_url, role="commands")
    yield client
    client.close()


async def kill_server(client: redis.asyncio.Redis) -> None:
    """Kill the server as the kernel would when out of memory."""
    server = cast("dict[str, int]", await client.info("server"))
    os.kill(server["process_id"], signal.SIGKILL)


async def echo(store: redis.asyncio.Redis, argument: object) -> object:
    return cast("object", await store.execute_command("ECHO", argument))


@pytest.mark.parametrize(("argument", "received"), ARGUMENTS)
async def test_arguments_arrive(
    store: redis.asyncio.Redis, argument: object, received: bytes
) -> None:
    assert await echo(store, argument) == received


@pytest.mark.parametrize(("argument", "received"), ARGUMENTS)
def test_arguments_of_the_sync_client_arrive(
    store_sync: redis.Redis, argument: object, received: bytes
) -> None:
    assert store_sync.execute_command("ECHO", argument) == received


@pytest.mark.parametrize("argument", [None, True, ["a"], "\ud800"])
async def test_other_arguments_are_refused_and_harm_nothing(
    store: redis.asyncio.Redis, argument: object
) -> None:
    with pytest.raises(DataError):
        await echo(store, argument)
    assert await echo(store, "next") == b"next"


async def test_arguments_in_a_pipeline_arrive(store: redis.asyncio.Redis) -> None:
    async with store.pipeline(transaction=False) as pipe:
        for argument, _ in ARGUMENTS:
            pipe.execute_command("ECHO", argument)
        assert await pipe.execute() == [received for _, received in ARGUMENTS]


async def test_commands_of_two_words_work(store: redis.asyncio.Redis) -> None:
    assert cast("dict[str, str]", await store.config_get("appendonly")) == {"appendonly": "yes"}


async def test_stream_reads_return_the_lists_of_the_wire(store: redis.asyncio.Redis) -> None:
    await store.xadd(STREAM, {"a": "1", "b": "2"}, id="1-0")
    await store.xgroup_create(STREAM, names.GROUP, "0")
    entries = [[b"1-0", [b"a", b"1", b"b", b"2"]]]
    group = ("GROUP", names.GROUP, "me", "STREAMS", STREAM, ">")
    expected: dict[tuple[object, ...], object] = {
        ("XRANGE", STREAM, "-", "+"): entries,
        ("XREVRANGE", STREAM, "+", "-"): entries,
        ("XREAD", "STREAMS", STREAM, "0"): [[STREAM, entries]],
        ("XREADGROUP", *group): [[STREAM, entries]],
        ("XCLAIM", STREAM, names.GROUP, "you", 0, "1-0"): entries,
        ("XAUTOCLAIM", STREAM, names.GROUP, "me", 0, "0-0"): [b"0-0", entries, []],
    }
    for command, reply in expected.items():
        assert await store.execute_command(*command) == reply


def test_stream_reads_of_the_sync_client_do_too(store_sync: redis.Redis) -> None:
    store_sync.xadd(STREAM, {"a": "1"}, id="1-0")
    reply = cast("object", store_sync.execute_command("XREAD", "STREAMS", STREAM, "0"))
    assert reply == [[STREAM, [[b"1-0", [b"a", b"1"]]]]]


async def test_more_commands_than_connections_wait(store_url: str) -> None:
    client = connect(store_url, role="commands", max_connections=2)
    try:
        assert len(await asyncio.gather(*(client.ping() for _ in range(200)))) == 200
        assert len(cast("list[object]", await client.client_list())) <= 3
    finally:
        await client.aclose()


async def test_commands_outlast_a_restart(embedded: EmbeddedStore) -> None:
    client = connect(embedded.url, role="commands")
    await client.set("kept", "1")
    await kill_server(client)
    reply, _ = await asyncio.gather(client.get("kept"), asyncio.to_thread(embedded.revive))
    assert reply == b"1"
    await client.aclose()


async def test_commands_of_the_sync_client_outlast_a_restart(embedded: EmbeddedStore) -> None:
    client = connect_sync(embedded.url, role="commands")
    client.set("kept", "1")
    os.kill(cast("dict[str, int]", client.info("server"))["process_id"], signal.SIGKILL)
    reply, _ = await asyncio.gather(
        asyncio.to_thread(client.get, "kept"), asyncio.to_thread(embedded.revive)
    )
    assert reply == b"1"
    client.close()


async def test_a_blocking_read_is_not_sent_again(embedded: EmbeddedStore) -> None:
    commands = connect(embedded.url, role="commands")
    blocking = connect(embedded.url, role="blocking", block_s=5)
    await commands.xgroup_create(STREAM, names.GROUP, "0", mkstream=True)

    async def read(block_ms: int) -> object:
        command = ("XREADGROUP", "GROUP", names.GROUP, "me", "BLOCK", block_ms)
        return cast("object", await blocking.execute_command(*command, "STREAMS", STREAM, ">"))

    assert await read(1) is None  # connected
    pending = asyncio.create_task(read(5000))
    await kill_server(commands)
    with pytest.raises(StoreConnectionError):
        await pending
    await asyncio.to_thread(embedded.revive)
    await commands.xadd(STREAM, {"a": "1"}, id="1-0")
    assert await read(1) == [[STREAM, [[b"1-0", [b"a", b"1"]]]]]
    await blocking.aclose()
    await commands.aclose()


async def test_a_read_may_block_as_long_as_agreed(store_url: str) -> None:
    client = connect(
        StoreConfig(url=store_url, timeout_s=0.2, wait_timeout_s=0.1), role="blocking", block_s=0.3
    )
    try:
        assert await client.xread({STREAM: "$"}, block=300) is None
    finally:
        await client.aclose()


async def test_a_supported_store_passes(askonce_store: Store) -> None:
    await check_store(askonce_store)


async def test_a_store_that_evicts_jobs_is_refused(
    store: redis.asyncio.Redis, askonce_store: Store
) -> None:
    await store.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(StoreUnavailable, match=r"allkeys-lru.*volatile-lfu"):
            await check_store(askonce_store)
    finally:
        await store.config_set("maxmemory-policy", "volatile-lfu")


@pytest.mark.parametrize(
    ("server", "accepted"),
    [
        ({"redis_version": "6.2.14"}, False),
        ({"redis_version": "7.0.0"}, True),
        ({"redis_version": "8.2.1"}, True),
        ({"redis_version": "7.2.4", "valkey_version": "7.2.0"}, True),
        ({"redis_version": "7.2.4", "valkey_version": "9.1.2"}, True),
        ({"redis_version": "7.2.4", "valkey_version": "7.1.9"}, False),
    ],
)
async def test_old_stores_are_refused(
    askonce_store: Store,
    monkeypatch: pytest.MonkeyPatch,
    server: dict[str, str],
    accepted: bool,
) -> None:
    """A server of another version is not at hand: what INFO of one says is."""
    fields = server | {"maxmemory_policy": "noeviction", "cluster_enabled": "0"}
    reply = "".join(f"{name}:{value}\r\n" for name, value in fields.items()).encode()

    async def ask_servers(*words: str) -> dict[Address, bytes]:
        assert words == ("INFO",)
        return {("127.0.0.1", 6379): reply}

    monkeypatch.setattr(askonce_store, "ask_servers", ask_servers)
    if accepted:
        await check_store(askonce_store)
    else:
        with pytest.raises(StoreUnavailable, match=r"needs Redis 7\.0 or Valkey 7\.2"):
            await check_store(askonce_store)


async def test_a_store_that_is_not_there_is_reported(tmp_path: Path) -> None:
    client = Store(f"unix://{tmp_path}/none.sock")
    with pytest.raises(StoreUnavailable, match=r"does not answer.*Check \[redis\] url"):
        await check_store(client)
    await client.aclose()


@pytest.mark.usefixtures("store")
async def test_the_number_of_shards_is_recorded_once(store_url: str) -> None:
    three, four = Store(store_url, shards=3), Store(store_url, shards=4)
    try:
        await check_shards(three)
        await check_shards(three)
        with pytest.raises(ConfigError, match="shards is 4, but this store was set up with 3"):
            await check_shards(four)
    finally:
        await three.aclose()
        await four.aclose()


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "http://localhost",
        "redis://localhost/first",
        "redis://localhost:port",
        "redis://localhost?db=x",
        "redis://localhost?shards=3",
        "unix://",
    ],
)
def test_a_url_that_cannot_be_read_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"\[redis\] url: "):
        connect(url, role="commands")
    with pytest.raises(ConfigError, match=r"\[redis\] url: "):
        connect_sync(url, role="commands")
    with pytest.raises(ValueError, match="url: expected a store's URL"):
        StoreConfig(url=url)


@pytest.mark.parametrize(
    "url", ["redis://h", "redis://u:p@h:6380/2", "rediss://h?ssl_ca_certs=/ca.pem", "unix:///s"]
)
async def test_urls_of_all_kinds_make_clients(url: str) -> None:
    await connect(url, role="commands").aclose()
    connect_sync(url, role="blocking").close()
    assert StoreConfig(url=url).shards == 1


def test_a_connection_closed_just_before_its_use_is_a_lost_connection(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvloop says so in a RuntimeError, which no loop of a worker expects."""

    async def use() -> None:
        endpoint = Endpoint(StoreConfig(url=store_url), address_of(store_url), max_connections=1)
        assert await endpoint.exchange([("PING",)]) == [b"PONG"]
        (connection,) = endpoint._pool._available_connections
        cast("asyncio.StreamWriter", connection._writer).transport.abort()
        with monkeypatch.context() as patch:
            # The peer closes it after the pool has looked at it.
            patch.setattr(endpoint._pool, "ensure_connection", AsyncMock())
            with pytest.raises(StoreConnectionError, match="was closed"):
                await endpoint.exchange([("PING",)])
        assert await endpoint.exchange([("PING",)]) == [b"PONG"]
        await endpoint.aclose()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(use())


def address_of(url: str) -> Address:
    (address,) = StoreConfig(url=url).addresses
    return address
