"""A proxy between a client and the store that loses, cuts and delays replies: loopback only.

It understands RESP2 framing in both directions, so a fault strikes exactly one command, after the
server has executed it: that is what "the reply was lost" means. Errors (NOSCRIPT, say) and empty
replies (a read that timed out) pass untouched and do not count.
"""

from __future__ import annotations

import asyncio
import contextlib
import urllib.parse
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Literal, Self

from askonce_queue.scripts import Script

Command = Sequence[bytes]
Matcher = Callable[[Command], bool]
Action = Literal["drop", "cut", "delay"]


def named(name: bytes) -> Matcher:
    """Commands of one name."""
    return lambda command: command[0].upper() == name


def script(bound: Script) -> Matcher:
    """Calls of one script, by hash or by source."""
    return lambda command: len(command) > 1 and command[1] in (bound.sha.encode(), bound.source)


class Fault:
    """What happens to the replies of the `first`-th matching command and the `times` - 1 after."""

    def __init__(self, action: Action, matcher: Matcher, first: int, times: int) -> None:
        self.action: Action = action
        self.seen = 0
        self.struck = 0
        """How many commands it has hit."""
        self.released = asyncio.Event()
        """Set it to let delayed replies through."""
        self._matcher = matcher
        self._first = first
        self._times = times

    def strikes(self, command: Command) -> bool:
        if not self._matcher(command):
            return False
        self.seen += 1
        if not self._first <= self.seen < self._first + self._times:
            return False
        self.struck += 1
        return True


class Proxy:
    """`async with Proxy(store_url) as proxy`: use `proxy.url` in place of the store's."""

    def __init__(self, upstream_url: str) -> None:
        self._path = urllib.parse.unquote(urllib.parse.urlsplit(upstream_url).path)
        self._faults: list[Fault] = []
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.url = ""

    def drop_reply(self, matcher: Matcher, *, first: int = 1, times: int = 1) -> Fault:
        """Swallow the reply and close the connection."""
        return self._add(Fault("drop", matcher, first, times))

    def cut_reply(self, matcher: Matcher, *, first: int = 1, times: int = 1) -> Fault:
        """Send half of the reply's frame and close the connection."""
        return self._add(Fault("cut", matcher, first, times))

    def delay_reply(self, matcher: Matcher, *, first: int = 1, times: int = 1) -> Fault:
        """Hold the reply back until `released` is set."""
        return self._add(Fault("delay", matcher, first, times))

    def _add(self, fault: Fault) -> Fault:
        self._faults.append(fault)
        return fault

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"redis://127.0.0.1:{port}/0"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except asyncio.CancelledError:
            pass  # the proxy closes; asyncio's streams would log it
        finally:
            self._connections.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        above_reader, above_writer = await asyncio.open_unix_connection(self._path, limit=1 << 24)
        commands: deque[Command] = deque()
        ways = [
            asyncio.ensure_future(_send_up(reader, above_writer, commands)),
            asyncio.ensure_future(self._send_down(above_reader, writer, commands)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # All that must happen comes before the first await: this may be cancelled twice.
            for end in (writer, above_writer):
                end.close()
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (writer, above_writer):
                with contextlib.suppress(OSError):
                    await end.wait_closed()

    async def _send_down(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        commands: deque[Command],
    ) -> None:
        while True:
            frame = await _read_frame(reader)
            command = commands.popleft()
            fault = None
            if not frame.startswith((b"-", b"*-1", b"$-1")):
                fault = next((one for one in self._faults if one.strikes(command)), None)
            if fault is not None:
                if fault.action == "drop":
                    return
                if fault.action == "cut":
                    writer.write(frame[: max(1, len(frame) // 2)])
                    await writer.drain()
                    return
                await fault.released.wait()
            writer.write(frame)
            await writer.drain()


async def _send_up(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, commands: deque[Command]
) -> None:
    while True:
        words, frame = await read_command(reader)
        commands.append(words)
        writer.write(frame)
        await writer.drain()


async def read_command(reader: asyncio.StreamReader) -> tuple[Command, bytes]:
    """One command: its words, and how they came."""
    head = await reader.readuntil(b"\r\n")
    words: list[bytes] = []
    frame = head
    for _ in range(int(head[1:])):
        size = await reader.readuntil(b"\r\n")
        body = await reader.readexactly(int(size[1:]) + 2)
        frame += size + body
        words.append(body[:-2])
    return words, frame


async def _read_frame(reader: asyncio.StreamReader) -> bytes:
    """One whole RESP2 reply."""
    frame = bytearray()
    left = 1
    while left:
        line = await reader.readuntil(b"\r\n")
        frame += line
        left -= 1
        if line[:1] == b"$" and line != b"$-1\r\n":
            frame += await reader.readexactly(int(line[1:]) + 2)
        elif line[:1] == b"*":
            left += max(0, int(line[1:]))
    return bytes(frame)
