"""The model process: a stand-in whose answers tell when they were computed, and that counts itself.

    python -m askonce_loadtest.chaos.model

One JSON line in, one line out: first the `Order`, answered with where it listens; then `Change`
after `Change`. A change is in force when it has been answered. End of input ends it. The label of a
call is that of its group's epoch when the call *arrived*: a slow call gets an old answer.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import defaultdict
from pathlib import Path

import msgspec
import uvloop

from askonce_loadtest.chaos.journal import Journal, ModelCall
from askonce_loadtest.chaos.workload import group_of, label_of
from askonce_loadtest.model_server import Behaviour, Fault, ModelServer


class Order(msgspec.Struct):
    """How the model behaves until it is told otherwise, and where it notes its calls."""

    behaviour: Behaviour
    journal: str


class Served(msgspec.Struct):
    """Where it listens."""

    host: str
    port: int


class Done(msgspec.Struct):
    """A change is in force."""


class Change(msgspec.Struct):
    """Groups whose epoch rises by one, and a new behaviour, if any."""

    raise_epochs: list[int] = []
    behaviour: Behaviour | None = None


class Epochs:
    """The epoch of every group, and the journal of what was asked in it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._epochs: defaultdict[int, int] = defaultdict(int)

    def rise(self, groups: list[int]) -> None:
        """Begin a new epoch of some groups."""
        for group in groups:
            self._epochs[group] += 1

    def label(self, text: str, fault: Fault) -> str:
        """Note a call; the label that it gets if it gets an answer."""
        group = group_of(text)
        epoch = 0 if group is None else self._epochs[group]
        self._journal.write(ModelCall(time.monotonic(), text, epoch, fault))
        return label_of(text, epoch)


async def serve(reader: asyncio.StreamReader) -> None:
    """Serve and obey until the end of input."""
    order = msgspec.json.decode(await reader.readline(), type=Order)
    with Journal(Path(order.journal)) as journal:
        epochs = Epochs(journal)
        async with ModelServer(order.behaviour, on_call=epochs.label) as server:
            _say(Served("127.0.0.1", server.port))
            while line := await reader.readline():
                change = msgspec.json.decode(line, type=Change)
                epochs.rise(change.raise_epochs)
                if change.behaviour is not None:
                    server.behaviour = change.behaviour
                _say(Done())


def _say(message: msgspec.Struct) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


async def _main() -> None:
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    try:
        await serve(reader)
    finally:
        transport.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main())
