r"""A child process of the bench: `python -m askonce_loadtest.bench.child MODULE:ROLE`.

A role is an async context manager that yields *steps*: named coroutine functions that measure
something and return figures. The parent writes lines to standard input: first the `Order` (JSON),
then the name of one step after the other. Each is answered with one line of JSON on standard
output: {} when the role has been entered, then the step's figures. End of input ends the child, so
it does not outlive a parent that was killed.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import BinaryIO, cast

import msgspec
import structlog
import uvloop

from askonce_loadtest.bench.plan import Plan

Figures = dict[str, float]
Steps = Mapping[str, Callable[[], Awaitable[Figures]]]
_BYTES_PER_KB = 1024


class Order(msgspec.Struct, frozen=True):
    """What a child is told: the run's amounts, the store, and askonce's configuration file."""

    plan: Plan
    url: str
    config: str
    detail: msgspec.Raw = msgspec.Raw(b"{}")
    """JSON: what only a role of another measurement needs."""


Role = Callable[[Order], AbstractAsyncContextManager[Steps]]

_order_decoder = msgspec.json.Decoder(Order)
_encode = msgspec.json.encode


async def usage() -> Figures:
    """A step of every role: CPU of this process so far, and the most memory it has used."""
    return {"cpu_s": time.process_time(), "peak_rss_bytes": _peak_rss_bytes()}


def _peak_rss_bytes() -> int:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:  # not Linux; there getrusage is right, but on Linux it counts the parent's too
        unit = 1 if sys.platform == "darwin" else _BYTES_PER_KB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return int(status.partition("VmHWM:")[2].split(maxsplit=1)[0]) * _BYTES_PER_KB


async def _serve(role: Role, pipe: BinaryIO) -> None:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    try:
        async with role(_order_decoder.decode(await reader.readline())) as steps:
            pipe.write(_encode({}) + b"\n")
            while line := await reader.readline():
                step = {**steps, "usage": usage}[line.decode().strip()]
                pipe.write(_encode(await step()) + b"\n")
    finally:
        transport.close()


def _load_role(path: str) -> Role:
    module, _, name = path.partition(":")
    return cast("Role", getattr(importlib.import_module(module), name))


def main() -> None:
    """Be the child; errors end it with a traceback on standard error."""
    role = _load_role(sys.argv[1])
    # What a library prints must not get between the figures.
    with os.fdopen(os.dup(1), "wb", buffering=0) as pipe:
        os.dup2(2, 1)
        quiet = structlog.make_filtering_bound_logger(logging.WARNING)
        structlog.configure(wrapper_class=quiet)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(role, cast("BinaryIO", pipe)))


if __name__ == "__main__":
    main()
