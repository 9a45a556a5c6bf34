"""A peer's end of the comparison: what it is told, and the steps it is asked for.

Every process of a peer finds its `Order` as JSON in the environment variable ASKONCE_COMPARE. The
comparison writes the name of one step after the other to standard input; each is answered with one
line of JSON on standard output: {} when the process is ready, then the step's figures. End of input
ends it. Standard library only: this file runs in every peer's environment.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast
from urllib.parse import urlsplit

VARIABLE = "ASKONCE_COMPARE"
END_S = 3.0

Figures = dict[str, float]
Step = Callable[[], Awaitable[Figures]]
SyncStep = Callable[[], Figures]


class WrongAnswerError(Exception):
    """A peer handed back something that is not what the model answers."""


@dataclass(frozen=True)
class Order:
    """What every process of a peer is told."""

    store_url: str
    """Of a fresh server, `redis://host:port/0`."""
    model_url: str
    """The root of the stand-in model server."""
    texts_file: str
    """JSON: `warm` (every distinct text), `stream` (the jobs, in order), `cold`."""
    ready_folder: str
    """Where a worker that takes jobs leaves a file."""
    config: str
    """askonce's own configuration file."""
    labels: tuple[str, ...]
    """What the model may answer."""
    jobs: int
    """The least number of jobs of the throughput run."""
    seconds: float
    """Its least length."""
    callers: int
    """Coroutines, or threads, that ask at once."""
    paced_per_s: float
    paced_jobs: int
    copies: int
    """How often every cold text is asked by a queue's producer."""
    seed: int

    @property
    def host(self) -> str:
        """The store's host."""
        return urlsplit(self.store_url).hostname or ""

    @property
    def port(self) -> int:
        """The store's port."""
        return urlsplit(self.store_url).port or 0

    def texts(self) -> dict[str, list[str]]:
        """Read the texts."""
        return cast(
            "dict[str, list[str]]", json.loads(Path(self.texts_file).read_text(encoding="utf-8"))
        )

    def check(self, label: object) -> None:
        """Raise `WrongAnswerError` unless `label` is one of the model's."""
        if label not in self.labels:
            raise WrongAnswerError(f"expected one of {self.labels}, got {label!r}")


def order() -> Order:
    """Read the order of this process."""
    fields: dict[str, Any] = json.loads(os.environ[VARIABLE])
    fields["labels"] = tuple(fields["labels"])
    return Order(**fields)


def ready() -> None:
    """Say, in a worker, that it takes jobs."""
    Path(order().ready_folder, str(os.getpid())).touch()


# The pipe


def serve(role: Callable[[Order], AbstractAsyncContextManager[Mapping[str, Step]]]) -> None:
    """Serve an asynchronous role's steps until the input ends; on uvloop where it is installed."""
    pipe = _claim_output()
    try:
        import uvloop  # noqa: PLC0415 -- not every peer's environment has it
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve(role, pipe))


async def _serve(
    role: Callable[[Order], AbstractAsyncContextManager[Mapping[str, Step]]], pipe: BinaryIO
) -> None:
    lines: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    _read(lambda line: loop.call_soon_threadsafe(lines.put_nowait, line))
    async with role(order()) as steps:
        _say(pipe, {})
        while name := await lines.get():
            _say(pipe, await steps[name]())


def serve_sync(make_steps: Callable[[Order], Mapping[str, SyncStep]]) -> None:
    """The same for a peer whose client blocks."""
    pipe = _claim_output()
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    _read(lines.put)
    steps = make_steps(order())
    _say(pipe, {})
    while name := lines.get():
        _say(pipe, steps[name]())


def _read(tell: Callable[[str], object]) -> None:
    """Hear the lines of the input, and "" at its end, which also ends a step that goes on."""

    def read() -> None:
        with open(0, "rb", buffering=0, closefd=False) as given:  # sys.stdin is locked at exit
            for line in iter(given.readline, b""):
                tell(line.decode().strip())
        tell("")
        time.sleep(END_S)
        os._exit(1)

    threading.Thread(target=read, daemon=True).start()


def _claim_output() -> BinaryIO:
    """What a library prints must not get between the figures."""
    pipe = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return cast("BinaryIO", pipe)


def _say(pipe: BinaryIO, figures: Mapping[str, float]) -> None:
    pipe.write(json.dumps(figures).encode() + b"\n")


def skip(reason: str) -> NoReturn:
    """End this process: the peer cannot be measured here. Before `serve` only."""
    print(json.dumps({"skip": reason}), flush=True)
    sys.exit(0)
