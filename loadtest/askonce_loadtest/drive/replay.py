"""A workload as a stream of due times: as fast as it is, or stretched to another mean rate."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NamedTuple

from askonce_loadtest.workloads.lines import FileError
from askonce_loadtest.workloads.request import Request, opened_requests

MAX_TASKS = 1_000


class Survey(NamedTuple):
    """What has to be known of a workload before it is played: one pass over it."""

    requests: int
    seconds: float
    tasks: tuple[str, ...]

    @property
    def gap_s(self) -> float:
        """The mean time between two requests; 1 if all of them are due at once."""
        return self.seconds / (self.requests - 1) if self.seconds else 1.0


def survey(path: Path) -> Survey:
    """Read a workload once. Raises `FileError`, also for one without requests."""
    if str(path) == "-":
        raise FileError("a workload to drive is read more than once: write it to a file first")
    tasks: dict[str, None] = {}
    count, first, last = 0, 0.0, 0.0
    with opened_requests(path) as requests:
        for count, request in enumerate(requests, start=1):
            first, last = (request.t if count == 1 else first), request.t
            tasks[request.task] = None
            if len(tasks) > MAX_TASKS:
                raise FileError(f"{path}: more than {MAX_TASKS} tasks")
    if not count:
        raise FileError(f"{path}: no requests")
    return Survey(count, last - first, tuple(tasks))


class Replay:
    """Hands out the requests of a workload one after the other, and begins again at its end.

    Each stream goes on where the last one ended.
    """

    def __init__(self, path: Path, found: Survey) -> None:
        self.rounds = 0
        """How often the end was reached."""
        self._path = path
        self._found = found
        self._left = self._gaps()

    def due(self, rate_per_s: float | None) -> Iterator[tuple[float, Request]]:
        """Requests without end, each with its due time in seconds from the first.

        At a mean of `rate_per_s` with the workload's own ups and downs, or (None) as it is.
        """
        stretch = 1.0 if rate_per_s is None else 1 / (rate_per_s * self._found.gap_s)
        at = 0.0
        for gap_s, request in self._left:
            yield at, request
            at += gap_s * stretch

    def close(self) -> None:
        """Close the file."""
        self._left.close()

    def _gaps(self) -> Generator[tuple[float, Request]]:
        """Each request, and the time until the next one."""
        while True:
            with opened_requests(self._path) as requests:
                before = next(requests)
                for request in requests:
                    yield request.t - before.t, before
                    before = request
            self.rounds += 1
            yield self._found.gap_s, before
