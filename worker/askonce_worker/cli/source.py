"""The input of `askonce run` and `askonce enqueue`: a file or stdin, read by a thread of its own.

Bounded: a batch has at most `MAX_BATCH` records, and `READ_AHEAD` batches wait to be asked. What a
pipe has sent is handed on at once, so `tail -f … | askonce run …` answers line by line.
"""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from askonce_worker.cli.loop import Failed
from askonce_worker.cli.records import MAX_LINE_BYTES, Line, Record

READ_BYTES = 1 << 18
MAX_BATCH = 500
MAX_BATCH_BYTES = 1 << 20
READ_AHEAD = 4

_BOM = b"\xef\xbb\xbf"

Read = Callable[[Iterator[Line]], Iterator[Record]]
"""Makes records of lines, one after the other; may raise `Failed`."""


class Batch(NamedTuple):
    """Records, in the order of the input, and how far in the input they reach, in bytes."""

    records: list[Record]
    offset: int


class Source:
    """The records of one input; iterate over it once. `size` is in bytes, None for a pipe.

    Raises `Failed` when the input cannot be opened.
    """

    def __init__(self, path: Path, read: Read, *, batch: int = MAX_BATCH) -> None:
        self._path = path
        self._read = read
        self._most = min(batch, MAX_BATCH)
        self._file = self._open()
        found = os.fstat(self._file)
        self.size = found.st_size if stat.S_ISREG(found.st_mode) else None
        self._offset = 0
        self._begun_at = 0
        self._batch: list[Record] = []
        self._room = threading.Semaphore(READ_AHEAD)
        self._abandoned = False
        self._arrived: deque[Batch | BaseException | None] = deque()
        self._bell = asyncio.Event()

    async def __aiter__(self) -> AsyncGenerator[Batch]:
        loop = asyncio.get_running_loop()
        # A daemon, and no pooled thread: nobody can wake a thread that waits for a silent stdin.
        threading.Thread(
            target=self._run, args=(loop,), name=f"reader of {self._path}", daemon=True
        ).start()
        try:
            while True:
                await self._bell.wait()
                self._bell.clear()
                while self._arrived:
                    item = self._arrived.popleft()
                    if item is None:
                        return
                    if isinstance(item, BaseException):
                        raise item
                    self._room.release()
                    yield item
        finally:
            self._abandoned = True
            self._room.release()

    def _open(self) -> int:
        try:
            if str(self._path) == "-":
                return os.dup(0)
            file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise Failed(f"cannot read {self._path}: {error.strerror}") from error
        if stat.S_ISDIR(os.fstat(file).st_mode):
            os.close(file)
            raise Failed(f"cannot read {self._path}: it is a folder")
        return file

    # In the thread

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        end: BaseException | None = None
        try:
            for record in self._read(self._lines(loop)):
                self._batch.append(record)
                long = self._offset - self._begun_at >= MAX_BATCH_BYTES
                if len(self._batch) >= self._most or long:
                    self._hand_on(loop)
            self._hand_on(loop)
        except _AbandonedError:
            return
        except OSError as error:
            end = Failed(f"cannot read {self._path}: {error.strerror}")
        except Exception as error:  # noqa: BLE001 -- raised again where the records are read
            end = error
        finally:
            os.close(self._file)
        self._put(loop, end)

    def _lines(self, loop: asyncio.AbstractEventLoop) -> Iterator[Line]:
        number, rest, too_long = 0, b"", False
        while chunk := self._next_chunk(loop):
            *complete, rest = (rest + chunk).split(b"\n")
            for data in complete:
                number += 1
                self._offset += len(data) + 1
                if too_long or len(data) > MAX_LINE_BYTES:
                    too_long = False
                    yield Line(number, None)
                else:
                    yield Line(number, data.removeprefix(_BOM) if number == 1 else data)
            if too_long or len(rest) > MAX_LINE_BYTES:
                self._offset += len(rest)
                too_long, rest = True, b""
        if rest or too_long:
            self._offset += len(rest)
            yield Line(number + 1, None if too_long else rest)

    def _next_chunk(self, loop: asyncio.AbstractEventLoop) -> bytes:
        self._hand_on(loop)  # the next read may wait for long
        return os.read(self._file, READ_BYTES)

    def _hand_on(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._batch:
            return
        self._room.acquire()
        if self._abandoned:
            raise _AbandonedError
        batch, self._batch = Batch(self._batch, self._offset), []
        self._begun_at = self._offset
        self._put(loop, batch)

    def _put(self, loop: asyncio.AbstractEventLoop, item: Batch | BaseException | None) -> None:
        try:
            loop.call_soon_threadsafe(self._arrive, item)
        except RuntimeError as error:  # the loop is closed
            raise _AbandonedError from error

    # On the loop

    def _arrive(self, item: Batch | BaseException | None) -> None:
        self._arrived.append(item)
        self._bell.set()


class _AbandonedError(Exception):
    """Nobody reads the records any more."""
