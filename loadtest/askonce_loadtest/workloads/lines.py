"""Files of lines, plain or gzip, read and written one line at a time."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast


class FileError(Exception):
    """A file cannot be read, written or understood. The message names file, line and reason."""


@contextmanager
def open_lines(path: Path) -> Generator[Iterable[bytes]]:
    """Open a file for reading; `-` is standard input, `.gz` is unpacked. Raises `FileError`."""
    if str(path) == "-":
        yield sys.stdin.buffer
        return
    try:
        with cast(
            "IO[bytes]", gzip.open(path) if path.suffix == ".gz" else path.open("rb")
        ) as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise FileError(f"{path}: cannot be read: {error}") from error


@contextmanager
def written(path: Path) -> Generator[IO[bytes]]:
    """Open a file for writing, which is there under its name only once the block has ended well.

    The same content makes the same bytes, packed too. Raises `FileError`.
    """
    if str(path) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as raw:
            if path.suffix == ".gz":
                with gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
                    yield cast("IO[bytes]", packed)
            else:
                yield raw
        part.replace(path)
    except OSError as error:
        raise FileError(f"{path}: cannot be written: {error}") from error
    finally:
        part.unlink(missing_ok=True)
