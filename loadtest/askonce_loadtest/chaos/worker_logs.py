"""What workers say in their logs (JSON lines, from `debug` on): calls, ends of flights, complaints.

Log lines carry wall time; the difference to the monotonic clock is measured by the driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import msgspec


class Call(NamedTuple):
    """A model call that is about to be made. Times are monotonic seconds."""

    at: float
    worker: str
    task: str
    key: str
    """In hexadecimal."""
    reason: str
    attempt: int
    began: float
    """When its flight began: with worker and key, which flight it is."""
    granted_until: float


class End(NamedTuple):
    """The end of a flight that had a lease."""

    at: float
    worker: str
    key: str
    end: str
    began: float


class Complaint(NamedTuple):
    """A line that a sound worker does not write: an error, a traceback, a warning of Python's."""

    worker: str
    text: str


Line = Call | End | Complaint


class _Line(msgspec.Struct):
    event: str
    level: str
    timestamp: datetime
    task: str = ""
    key: str = ""
    reason: str = ""
    attempt: int = 0
    began: float = 0.0
    granted_until: float = 0.0
    end: str = ""


_decoder = msgspec.json.Decoder(_Line)
_WANTED = (b'"model call"', b'"flight ended"')
_LOUD = (b'"level":"error"', b'"level":"critical"')
MOST_CHARS = 300


def read_log(path: Path, worker: str, wall_minus_monotonic_s: float) -> Iterator[Line]:
    """The lines of one worker's log that count."""
    try:
        with path.open("rb") as lines:
            for line in lines:
                found = _read(line, worker, wall_minus_monotonic_s)
                if found is not None:
                    yield found
    except FileNotFoundError:
        return


def _read(line: bytes, worker: str, wall_minus_monotonic_s: float) -> Line | None:
    plain = bool(line.strip()) and not line.startswith(b"{")
    if plain or any(loud in line for loud in _LOUD):
        return Complaint(worker, line.decode(errors="replace").strip()[:MOST_CHARS])
    if not any(wanted in line for wanted in _WANTED):
        return None
    try:
        read = _decoder.decode(line)
    except msgspec.DecodeError:
        return None  # its writer was killed in the midst of it
    at = read.timestamp.timestamp() - wall_minus_monotonic_s
    if read.event == "model call":
        return Call(
            at,
            worker,
            read.task,
            read.key,
            read.reason,
            read.attempt,
            read.began,
            read.granted_until,
        )
    if read.event == "flight ended":
        return End(at, worker, read.key, read.end, read.began)
    return None
