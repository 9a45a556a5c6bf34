"""A server that says what a test wants, where no real one can be made to say it: loopback only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from tests.support.proxy import Command, read_command

Answer = Callable[[Command], bytes]
"""The reply to a command, as on the wire."""


class ScriptedServer:
    """`async with ScriptedServer(answer) as server`; `server.address` is where it listens."""

    def __init__(self, answer: Answer) -> None:
        self.seen: list[Command] = []
        """What it was asked, but for what clients say of themselves."""
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return str(host), int(port)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
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

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                while True:
                    words, _ = await read_command(reader)
                    writer.write(self._reply(words))
                    await writer.drain()
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    def _reply(self, command: Command) -> bytes:
        if command[0] in (b"CLIENT", b"ASKING"):
            return b"+OK\r\n"
        self.seen.append(command)
        return self._answer(command)
