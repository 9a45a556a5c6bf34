"""The output of `askonce run`: lines go to OUT.partial, which becomes OUT when all are there.

So OUT is always complete, and what an interrupted run has written is found and continued by
`--resume`. A lock on OUT.partial keeps two runs from one output; the kernel drops it when its
holder dies. Stdout ("-"), devices and pipes are written to directly.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from askonce_queue.reply import ErrorInfo, Reply, Usage
from askonce_worker.cli.loop import Failed
from askonce_worker.cli.records import Record

BUFFER_BYTES = 1 << 16


class OutputLine(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One line of output: what became of one line of input. Either `label` or `error` is given."""

    id: str | int
    label: str | None = None
    score: float | None = None
    scores: dict[str, float] | None = None
    source: str | None = None
    age_s: float | None = None
    model: str | None = None
    usage: Usage | None = None
    error: ErrorInfo | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(OutputLine).decode


def encode_line(record: Record, reply: Reply | None) -> bytes:
    """The output line of a record, with its end."""
    error = record.error if reply is None else reply.error
    answer = reply.answer if reply is not None else None
    if reply is None or answer is None:
        return _encode(OutputLine(id=record.id, error=error)) + b"\n"
    line = OutputLine(
        id=record.id,
        label=answer.label,
        score=answer.score,
        scores=answer.scores,
        source=reply.source,
        age_s=reply.age_s or None,
        model=answer.model,
        usage=answer.usage,
    )
    return _encode(line) + b"\n"


class Output:
    """Where the lines go. Open it before anything is asked; `finish` when all are written.

    Raises `Failed` when the output cannot be written, or another run writes it.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path if str(path) == "-" else path.resolve()
        self.resumed = 0
        """Lines taken over from an interrupted run, and how many of them are errors."""
        self.resumed_errors = 0
        self.written = 0
        """Lines written by this run."""
        self.discarded = False
        """Whether lines of an interrupted run were there and were not wanted."""
        direct = str(path) == "-" or (self.path.exists() and not self.path.is_file())
        self.partial = None if direct else self.path.with_name(f"{self.path.name}.partial")
        try:
            self._file: BinaryIO = self._open_direct() if direct else self._open_partial(resume)
        except OSError as error:
            raise Failed(f"cannot write {self.path}: {error.strerror}") from error

    @property
    def client_name(self) -> str | None:
        """The stable name under which this output's jobs are asked; None: nothing to resume."""
        if self.partial is None:
            return None
        return f"run-{hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]}"

    def after_resumed(self, records: Iterator[Record]) -> Iterator[Record]:
        """The records that are not in the output yet. Raises `Failed` if it is another input's."""
        for data in self._written():
            record = next(records, None)
            try:
                line = _decode(data)
            except msgspec.DecodeError:
                line = None
            if record is None or line is None or line.id != record.id:
                raise Failed(
                    f"{self.partial} is not the output of this input: line {self.resumed + 1} "
                    "differs. Start over, without --resume"
                )
            self.resumed += 1
            self.resumed_errors += line.error is not None
        yield from records

    def write(self, line: bytes) -> None:
        """Append a line; it may stay in memory until `flush`."""
        try:
            self._file.write(line)
        except OSError as error:
            raise self._failed(error) from error
        self.written += 1

    def flush(self) -> None:
        """Put all lines where others can see them."""
        try:
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error

    def finish(self) -> None:
        """All lines are written: make the output appear under its name."""
        self.flush()
        if self.partial is not None:
            try:
                os.fsync(self._file.fileno())
                self.partial.replace(self.path)
            except OSError as error:
                raise self._failed(error) from error

    def close(self) -> None:
        """Release the output; what is written of an unfinished one stays in its partial file."""
        try:
            self._file.close()
        except OSError:
            # It was full or gone before, and whoever wrote was told then.
            return

    def _open_direct(self) -> BinaryIO:
        if str(self.path) == "-":
            return os.fdopen(os.dup(1), "wb", BUFFER_BYTES)
        return self.path.open("wb", BUFFER_BYTES)

    def _open_partial(self, resume: bool) -> BinaryIO:
        assert self.partial is not None
        while True:
            file = os.open(self.partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                raise Failed(f"another askonce run is writing {self.path}") from None
            # Between the two calls another run may have finished and moved its file away.
            if self.partial.exists() and os.fstat(file).st_ino == self.partial.stat().st_ino:
                break
            os.close(file)
        end = _end_of_lines(file)
        self.discarded = end > 0 and not resume
        os.truncate(file, end if resume else 0)
        os.lseek(file, 0, os.SEEK_END)
        return os.fdopen(file, "wb", BUFFER_BYTES)

    def _written(self) -> Iterator[bytes]:
        """The lines that were there when this run began."""
        if self.partial is None or self._file.tell() == 0:
            return
        with self.partial.open("rb") as lines:
            yield from lines

    def _failed(self, error: OSError) -> Failed:
        if isinstance(error, BrokenPipeError):
            return Failed("the reader of the output is gone", 1)
        rest = (
            f"; what is written is in {self.partial}: go on with --resume" if self.partial else ""
        )
        return Failed(f"cannot write {self.path}: {error.strerror}{rest}")


def _end_of_lines(file: int) -> int:
    """Where the last complete line of a file ends: a killed run may have left half of one."""
    end = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - BUFFER_BYTES)
        at = os.pread(file, end - start, start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0
