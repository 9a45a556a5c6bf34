"""Journals: what a process did, line by line, so that `kill -9` loses nothing it has done.

Every line is written by one write(2) to a file opened for appending: what the kernel has taken
outlives the process. Times are `time.monotonic()`, which all processes of a machine share on Linux.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

import msgspec

from askonce_loadtest.chaos.workload import Kind

T = TypeVar("T")


class Began(msgspec.Struct, tag="began", array_like=True):
    """A client incarnation: one opened `Client`. Everything up to the next one is its doing."""

    at: float
    incarnation: int
    pid: int


class AskedJob(NamedTuple):
    """A job's id, and what it asks."""

    id: str
    kind: Kind
    number: int


class Attempted(msgspec.Struct, tag="attempted", array_like=True):
    """Jobs that are about to be enqueued."""

    at: float
    jobs: list[AskedJob]


class Accepted(msgspec.Struct, tag="accepted", array_like=True):
    """Jobs whose enqueue returned success."""

    at: float
    ids: list[str]


class Refused(msgspec.Struct, tag="refused", array_like=True):
    """Jobs that were not accepted, and why; they are tried again."""

    at: float
    ids: list[str]
    reason: str


class Unknown(msgspec.Struct, tag="unknown", array_like=True):
    """Jobs of which it is not known whether they were accepted; they are enqueued again."""

    at: float
    ids: list[str]
    reason: str


class Replied(msgspec.Struct, tag="replied", array_like=True):
    """One reply that the client handed over: a label, or the code of an error."""

    at: float
    id: str
    label: str | None
    code: str | None
    source: str | None


class Idle(msgspec.Struct, tag="idle", array_like=True):
    """No new jobs are made any more, and every job has its reply."""

    at: float


class Ended(msgspec.Struct, tag="ended", array_like=True):
    """The client was closed; `tasks` are those that still ran in the process besides its own."""

    at: float
    tasks: list[str]


ProducerLine = Began | Attempted | Accepted | Refused | Unknown | Replied | Idle | Ended


class ModelCall(msgspec.Struct, tag="call", array_like=True):
    """A request that reached the model server: its text, the epoch it saw, the fault it got."""

    at: float
    text: str
    epoch: int
    fault: str


class Journal:
    """Appends lines to a file, each at once and whole."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # A predecessor may have been killed inside a line: what follows is a line of its own.
        os.write(self._file, b"\n")

    def write(self, line: msgspec.Struct) -> None:
        """Append one line."""
        os.write(self._file, msgspec.json.encode(line) + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._file)


def read_journal(path: Path, decoder: msgspec.json.Decoder[T]) -> Iterator[T]:
    """The lines of a journal. One that its writer was killed in the midst of is left out."""
    try:
        with path.open("rb") as lines:
            for line in lines:
                if line.strip():
                    try:
                        yield decoder.decode(line)
                    except msgspec.DecodeError:
                        continue
    except FileNotFoundError:
        return


producer_lines: msgspec.json.Decoder[ProducerLine] = msgspec.json.Decoder(ProducerLine)
model_calls: msgspec.json.Decoder[ModelCall] = msgspec.json.Decoder(ModelCall)
