"""Links: TCP relays that lose, cut, delay, throttle, swallow and refuse what passes through them.

A link knows bytes, not protocols. "The reply was lost" is a chunk from above that is swallowed
whole, with the connection closed in its place: the server has executed the command. Empty replies
of blocking reads pass, since losing them proves nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec

Address = tuple[str, int]
CHUNK_BYTES = 65_536
CONNECT_S = 5.0
NOTHING = (b"*-1\r\n", b"$-1\r\n")
"""Replies of blocking reads that timed out."""
THROTTLE_STEP_S = 0.05
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: close with a reset, unsent data is dropped."""


class LinkFault(msgspec.Struct, frozen=True):
    """What a link does to its connections; the unit of `amount` depends on `kind`."""

    kind: Literal["drop", "cut", "delay", "throttle", "half-open", "refuse"]
    amount: float = 1.0


class _Broken(Exception):
    """The connection ends here."""


class _Connection:
    """A relayed connection. A *dead* one stays open and carries nothing, as long as it lives."""

    def __init__(self, below: asyncio.StreamWriter, above: asyncio.StreamWriter | None) -> None:
        self.below = below
        self.above = above
        self.dead = False
        self._closed = False

    def close(self) -> None:
        """Close both ends as soon as they have sent what they were given."""
        self._closed = True
        for end in (self.below, self.above):
            if end is not None:
                end.close()

    def reset(self) -> None:
        """Close both ends at once, unless they are closed."""
        for end in (self.below, self.above):
            if end is None or self._closed:
                continue
            sock = end.get_extra_info("socket")
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.transport.abort()


class Link:
    """Relays from a port of its own to one server. `fault` strikes from the moment it is set."""

    def __init__(self, upstream: Address, rng: random.Random) -> None:
        self.upstream = upstream
        self.struck: Counter[str] = Counter()
        """How often each kind of fault has struck."""
        self._rng = rng
        self._fault: LinkFault | None = None
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._reserved: socket.socket | None = None
        self._address: Address = ("127.0.0.1", 0)

    @property
    def address(self) -> Address:
        """Where it listens."""
        return self._address

    @property
    def open_connections(self) -> int:
        """How many connections it relays now."""
        return len(self._connections)

    async def open(self) -> None:
        """Listen."""
        # Bound but not listening: the port stays ours while connections are refused.
        self._reserved = _bound(self._address)
        self._address = self._reserved.getsockname()
        await self._listen()

    async def close(self) -> None:
        """End everything."""
        self._end_all()
        self._stop_listening()
        if self._reserved is not None:
            self._reserved.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def set_fault(self, fault: LinkFault | None) -> None:
        """Begin a fault, or end the one there is. Dead connections stay dead."""
        was_refusing = self._fault is not None and self._fault.kind == "refuse"
        self._fault = fault
        if was_refusing and (fault is None or fault.kind != "refuse"):
            await self._listen()
        if fault is None:
            return
        if fault.kind == "refuse":
            self._stop_listening()
            self.struck["refuse"] += len(self._connections)
            self._end_all()
        elif fault.kind == "half-open":
            for connection in self._connections:
                self._maybe_kill(connection, fault)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, sock=_bound(self._address))

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _end_all(self) -> None:
        for connection in self._connections:
            connection.reset()

    def _maybe_kill(self, connection: _Connection, fault: LinkFault) -> None:
        if not connection.dead and self._rng.random() < fault.amount:
            connection.dead = True
            self.struck["half-open"] += 1

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        connection = _Connection(writer, None)
        self._connections.add(connection)
        try:
            await self._relay(connection, reader)
            connection.close()
        except asyncio.CancelledError:
            pass  # the link closes; asyncio's streams would log it
        except (OSError, TimeoutError, _Broken):
            pass  # the other ends learn of it by the reset
        finally:
            self._connections.discard(connection)
            self._tasks.discard(task)
            connection.reset()

    async def _relay(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        fault = self._fault
        if fault is not None and fault.kind == "half-open":
            self._maybe_kill(connection, fault)
        async with asyncio.timeout(CONNECT_S):
            above_reader, above = await asyncio.open_connection(*self.upstream)
        connection.above = above
        ways = [
            asyncio.ensure_future(self._pump(connection, reader, above, self._pass_up)),
            asyncio.ensure_future(
                self._pump(connection, above_reader, connection.below, self._pass_down)
            ),
        ]
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if connection.dead and ways[0] not in done:
                # The server is gone; who is half-open does not hear of it.
                await asyncio.wait([ways[0]])
            for way in done:
                way.result()
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pump(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        passes: Callable[[asyncio.StreamWriter, bytes], Awaitable[None]],
    ) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if not connection.dead:
                await passes(writer, data)

    async def _pass_up(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        fault = self._fault
        if fault is not None and fault.kind == "cut" and self._strikes(fault, 0.5):
            await self._cut(writer, data)
        writer.write(data)
        await writer.drain()

    async def _pass_down(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        fault = self._fault
        if fault is None or data in NOTHING:
            pass
        elif fault.kind == "drop" and self._strikes(fault):
            raise _Broken
        elif fault.kind == "cut" and self._strikes(fault, 0.5):
            await self._cut(writer, data)
        elif fault.kind == "delay":
            self.struck["delay"] += 1
            await asyncio.sleep(self._rng.uniform(0.0, fault.amount))
        elif fault.kind == "throttle":
            self.struck["throttle"] += 1
            await self._trickle(writer, data, fault)
            return
        writer.write(data)
        await writer.drain()

    def _strikes(self, fault: LinkFault, scale: float = 1.0) -> bool:
        if self._rng.random() >= fault.amount * scale:
            return False
        self.struck[fault.kind] += 1
        return True

    async def _cut(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        """Let a part of a chunk through, and end the connection."""
        writer.write(data[: self._rng.randrange(len(data))])
        # Let the part out before the reset: a reset may overtake what is still buffered.
        await writer.drain()
        await asyncio.sleep(0.01)
        raise _Broken

    async def _trickle(self, writer: asyncio.StreamWriter, data: bytes, fault: LinkFault) -> None:
        step = max(1, int(fault.amount * THROTTLE_STEP_S))
        for start in range(0, len(data), step):
            if self._fault is not fault:  # it is over: the rest goes at once
                step = len(data)
            writer.write(data[start : start + step])
            await writer.drain()
            if step == len(data):
                return
            await asyncio.sleep(THROTTLE_STEP_S)


def _bound(address: Address) -> socket.socket:
    """A TCP socket bound to an address that it shares with others of ours."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
    except BaseException:
        bound.close()
        raise
    return bound
