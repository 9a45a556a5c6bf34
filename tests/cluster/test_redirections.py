"""Servers that disagree about who holds a shard, as they do for moments that no test can hold."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest
from redis.exceptions import AskError, MovedError, RedisError

from askonce_queue import queue_scripts
from askonce_queue.exchange import MOST_REDIRECTS
from askonce_queue.shards import SLOTS
from askonce_queue.store import Store
from askonce_queue.store_config import Address, StoreConfig
from tests.support.cluster_work import IMPATIENT, Kind, store_of
from tests.support.proxy import Command
from tests.support.scripted_server import ScriptedServer

BOTH = pytest.mark.parametrize("kind", ["async", "sync"])
CALL = queue_scripts.claim_name("0", "c", "token", 1000)
Say = Callable[[Address], bytes]


def everything_at(host: str | None, port: int) -> bytes:
    """CLUSTER SLOTS with one row."""
    name = "$-1\r\n" if host is None else f"${len(host)}\r\n{host}\r\n"
    node = f"*3\r\n{name}:{port}\r\n$2\r\nid\r\n"
    return f"*1\r\n*3\r\n:0\r\n:{SLOTS - 1}\r\n{node}".encode()


class Node:
    """A node that believes a map, and answers everything else with one reply."""

    def __init__(self) -> None:
        self.map = b""
        self.reply = b":1\r\n"

    def __call__(self, command: Command) -> bytes:
        return self.map if command[0] == b"CLUSTER" else self.reply

    @staticmethod
    def asked(server: ScriptedServer) -> int:
        return sum(command[0] != b"CLUSTER" for command in server.seen)


@asynccontextmanager
async def two_nodes() -> AsyncGenerator[tuple[Node, ScriptedServer, Node, ScriptedServer]]:
    """Each believes that it holds everything."""
    one, other = Node(), Node()
    async with ScriptedServer(one) as here, ScriptedServer(other) as there:
        one.map, other.map = everything_at(*here.address), everything_at(*there.address)
        yield one, here, other, there


def config_of(server: ScriptedServer) -> StoreConfig:
    host, port = server.address
    return StoreConfig(url=f"redis://{host}:{port}", cluster=True, **IMPATIENT)


@BOTH
@pytest.mark.parametrize("host", ["127.0.0.1", "", "?"])
async def test_who_gave_a_slot_away_is_believed(kind: Kind, host: str) -> None:
    """Although the map of the node that is asked next, it may be the same, is not up to date."""
    async with two_nodes() as (one, here, _, there):
        one.reply = f"-MOVED 13907 {host}:{there.address[1]}\r\n".encode()
        async with store_of(config_of(here), kind) as store:
            assert await store.run(CALL) == 1
        assert Node.asked(here) == 1
        assert Node.asked(there) == 1


@BOTH
@pytest.mark.parametrize(("word", "error"), [("MOVED", MovedError), ("ASK", AskError)])
async def test_nodes_that_send_us_to_each_other(
    kind: Kind, word: str, error: type[Exception]
) -> None:
    """It ends, and no breaker opens: they are there."""
    async with two_nodes() as (one, here, other, there):
        one.reply = f"-{word} 13907 127.0.0.1:{there.address[1]}\r\n".encode()
        other.reply = f"-{word} 13907 127.0.0.1:{here.address[1]}\r\n".encode()
        async with store_of(config_of(here), kind) as store:
            with pytest.raises(error):
                await store.run(CALL)
            assert Node.asked(here) + Node.asked(there) == MOST_REDIRECTS + 1
            if isinstance(store, Store):
                assert store.down() == {}
            one.reply = other.reply = b":1\r\n"
            assert await store.run(CALL) == 1


@BOTH
@pytest.mark.parametrize("host", [None, "", "?"])
async def test_a_node_that_does_not_know_its_own_address(kind: Kind, host: str | None) -> None:
    async with two_nodes() as (one, here, _, _other):
        one.map = everything_at(host, here.address[1])
        async with store_of(config_of(here), kind) as store:
            assert await store.run(CALL) == 1


@BOTH
async def test_a_node_that_has_been_forgotten(kind: Kind) -> None:
    """It answers, and knows of no slots."""
    async with two_nodes() as (one, here, _, there):
        one.map = b"*0\r\n"
        config = config_of(here)
        async with store_of(config, kind) as store:
            with pytest.raises(RedisError, match="knows of no slots"):
                await store.run(CALL)
        host, port = there.address
        known = StoreConfig(url=config.url, nodes=(f"{host}:{port}",), cluster=True, **IMPATIENT)
        async with store_of(known, kind) as store:
            assert await store.run(CALL) == 1
