"""Links do to connections what they are told, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest

from askonce_loadtest.chaos.links import Link, LinkFault
from tests.support.waiting import eventually

WHOLE = b"+" + b"x" * 1_000 + b"\r\n"


class Upstream:
    """A server that answers each line with `reply`, and keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[bytes] = []
        self.reply = WHOLE
        self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while line := await reader.readline():
                self.told.append(line)
                writer.write(self.reply)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            self.open -= 1
            writer.close()


@pytest.fixture
async def upstream() -> AsyncIterator[tuple[Upstream, Link]]:
    """A server, and a link that stands before it."""
    server = Upstream()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    link = Link(listening.sockets[0].getsockname(), random.Random(1))
    await link.open()
    yield server, link
    await link.close()
    await eventually(lambda: server.open == 0)
    listening.close()
    await listening.wait_closed()


class Caller:
    """A client of the link."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self) -> bytes:
        """Send a line; the reply, or what there was of it when the connection ended."""
        got = b""
        with contextlib.suppress(ConnectionError):
            self.writer.write(b"ping\r\n")
            while not got.endswith(b"\r\n") and (more := await self.reader.read(65_536)):
                got += more
        return got


@asynccontextmanager
async def connected(link: Link) -> AsyncGenerator[Caller]:
    reader, writer = await asyncio.open_connection(*link.address)
    try:
        yield Caller(reader, writer)
    finally:
        writer.close()


async def test_without_a_fault_everything_passes(upstream: tuple[Upstream, Link]) -> None:
    server, link = upstream
    async with connected(link) as caller:
        assert [await caller.ask() for _ in range(3)] == [WHOLE] * 3
        assert link.open_connections == 1
    await eventually(lambda: server.open == 0)
    await eventually(lambda: link.open_connections == 0)


async def test_a_reply_is_dropped_after_the_server_has_acted(
    upstream: tuple[Upstream, Link],
) -> None:
    server, link = upstream
    await link.set_fault(LinkFault("drop", 1.0))
    async with connected(link) as caller:
        assert await caller.ask() == b""
    assert server.told == [b"ping\r\n"]
    assert link.struck["drop"] == 1


async def test_empty_replies_of_blocking_reads_are_not_worth_dropping(
    upstream: tuple[Upstream, Link],
) -> None:
    server, link = upstream
    server.reply = b"*-1\r\n"
    await link.set_fault(LinkFault("drop", 1.0))
    async with connected(link) as caller:
        assert await caller.ask() == b"*-1\r\n"
    assert link.struck["drop"] == 0


async def test_a_connection_is_cut_inside_a_frame(upstream: tuple[Upstream, Link]) -> None:
    server, link = upstream
    await link.set_fault(LinkFault("cut", 1.0))
    got: list[bytes] = []
    for _ in range(20):
        async with connected(link) as caller:
            while (reply := await caller.ask()) == WHOLE:
                pass
            got.append(reply)
    assert all(WHOLE.startswith(reply) and reply != WHOLE for reply in got)
    assert any(got), "some replies were cut"
    assert len(server.told) < 20 * 3, "some requests were cut"
    assert link.struck["cut"] >= 20


async def test_chunks_are_delayed_and_throttled_and_none_is_lost(
    upstream: tuple[Upstream, Link],
) -> None:
    _, link = upstream
    clock = asyncio.get_running_loop().time
    async with connected(link) as caller:
        await link.set_fault(LinkFault("throttle", 5_000.0))
        began = clock()
        assert await caller.ask() == WHOLE
        assert clock() - began >= 0.1  # 1003 bytes at 5000 a second, the last step at once
        await link.set_fault(LinkFault("delay", 0.05))
        assert await caller.ask() == WHOLE
    assert link.struck["throttle"] == link.struck["delay"] == 1


async def test_half_open_connections_stay_open_and_carry_nothing_ever_again(
    upstream: tuple[Upstream, Link],
) -> None:
    server, link = upstream
    async with connected(link) as old:
        assert await old.ask() == WHOLE
        await link.set_fault(LinkFault("half-open", 1.0))
        async with connected(link) as new:
            await link.set_fault(None)
            async with connected(link) as later:
                assert await later.ask() == WHOLE  # by now the others' would have come, too
                for dead in (old, new):
                    asking = asyncio.ensure_future(dead.ask())
                    assert await later.ask() == WHOLE
                    assert not asking.done()
                    asking.cancel()
                    await asyncio.gather(asking, return_exceptions=True)
    assert len(server.told) == 4
    assert link.struck["half-open"] == 2


async def test_connections_are_refused_and_the_port_is_kept(
    upstream: tuple[Upstream, Link],
) -> None:
    _, link = upstream
    address = link.address
    async with connected(link) as caller:
        assert await caller.ask() == WHOLE
        await link.set_fault(LinkFault("refuse"))
        assert await caller.ask() == b""
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address)
    await link.set_fault(None)
    assert link.address == address
    async with connected(link) as caller:
        assert await caller.ask() == WHOLE


async def test_a_server_that_is_away_is_a_connection_that_ends() -> None:
    reserved = await asyncio.start_server(lambda _r, w: w.close(), "127.0.0.1", 0)
    address = reserved.sockets[0].getsockname()
    reserved.close()
    await reserved.wait_closed()
    link = Link(address, random.Random(1))
    await link.open()
    try:
        async with connected(link) as caller:
            assert await caller.ask() == b""
    finally:
        await link.close()


async def test_what_a_server_has_sent_before_it_closes_arrives(
    upstream: tuple[Upstream, Link],
) -> None:
    del upstream
    body = b"y" * 2_000_000

    async def send_and_close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(send_and_close, "127.0.0.1", 0)
    link = Link(server.sockets[0].getsockname(), random.Random(1))
    await link.open()
    try:
        async with connected(link) as caller:
            assert len(await caller.reader.read()) == len(body)
    finally:
        await link.close()
        server.close()
        await server.wait_closed()
