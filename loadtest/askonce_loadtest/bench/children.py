"""The parent's end of child processes: started, told what to do, and ended by their own pid."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import IO

import anyio
import msgspec
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from askonce_loadtest.bench.child import Figures, Order, Role

MAX_LINE_BYTES = 65_536
END_S = 30.0
"""How long a child may take to end by itself: a worker drains."""
KILL_S = 3.0

_figures_decoder = msgspec.json.Decoder(Figures)


class ChildError(Exception):
    """A child process of the bench ended before its work was done; it has printed why."""


class Child:
    """A running child in a role."""

    def __init__(self, name: str, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.pid = process.pid
        self._name = name
        self._input = process.stdin
        self._output = BufferedByteReceiveStream(process.stdout)

    async def do(self, step: str) -> Figures:
        """Run one step and return its figures. Raises `ChildError`."""
        return await self.exchange(step.encode())

    async def exchange(self, line: bytes) -> Figures:
        """Send a line and read the one that answers it. Raises `ChildError`."""
        try:
            await self._input.send(line + b"\n")
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise ChildError(f"{self._name} has ended: its error is printed above") from error
        return _figures_decoder.decode(await self.read_line())

    async def read_line(self) -> bytes:
        """Read one line of the child's output. Raises `ChildError`."""
        try:
            return await self._output.receive_until(b"\n", MAX_LINE_BYTES)
        except (anyio.IncompleteRead, anyio.EndOfStream) as error:
            raise ChildError(f"{self._name} has ended: its error is printed above") from error


@asynccontextmanager
async def child(role: Role, order: Order) -> AsyncGenerator[Child]:
    """Run `role`, a function of a module, in a child process for the length of a block."""
    path = f"{role.__module__}:{role.__qualname__}"
    async with program(["askonce_loadtest.bench.child", path]) as running:
        await running.exchange(msgspec.json.encode(order))
        yield running


def program(
    arguments: Sequence[str], *, end_s: float = END_S
) -> AbstractAsyncContextManager[Child]:
    """Run `python -m …` for the length of a block, as `command` does."""
    return command([sys.executable, "-m", *arguments], " ".join(arguments), end_s=end_s)


@asynccontextmanager
async def command(
    arguments: Sequence[str],
    name: str,
    *,
    end_s: float = END_S,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    errors: IO[bytes] | None = None,
) -> AsyncGenerator[Child]:
    """Run a program for the length of a block, then end it: by end of input, or by its pid.

    It has a session of its own: Ctrl-C reaches the bench alone, which then ends its children.
    `errors` is its standard error, ours if None. Raises `ChildError` when it ends before the block
    does, whatever the block is waiting for.
    """
    process = await anyio.open_process(
        arguments, stderr=errors, cwd=folder, env=environment, start_new_session=True
    )
    failed = True
    with anyio.CancelScope() as scope:
        watching = asyncio.create_task(_watch(process, scope))
        try:
            yield Child(name, process)
            failed = False
        finally:
            watching.cancel()
            with anyio.CancelScope(shield=True):
                await _end(process, 0.0 if failed else end_s)
    if scope.cancelled_caught:
        raise ChildError(f"{name} has ended: its error is printed above")


async def _watch(process: Process, scope: anyio.CancelScope) -> None:
    await process.wait()
    scope.cancel()


async def _end(process: Process, end_s: float) -> None:
    assert process.stdin is not None
    await process.stdin.aclose()
    for limit_s, press in ((end_s, process.terminate), (KILL_S, process.kill)):
        with anyio.move_on_after(limit_s):
            await process.wait()
            break
        press()
    await process.wait()
    await process.aclose()
