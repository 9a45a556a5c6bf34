"""Rolling windows, read from the buckets of time in the store; and cohorts of answers.

A window is the sum of the buckets that touch it, so it reaches back up to one bucket further than
its name says. A cohort is made of answers that were filled at about the same time: what became of
them is known when their time is over.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from askonce_queue import names
from askonce_queue.buckets import SIZES, Bucket, BucketSize, read_bucket
from askonce_queue.store import Store
from askonce_worker.observe.counters import Counts
from askonce_worker.observe.fields import read_field

REREAD_MS = 60_000
"""How long a bucket that is over is not read again: only first reads and late flushes touch it."""
GRACE_S = 15
"""After the end of its time, how long the news of an answer's first read may be under way."""


class Window(NamedTuple):
    """A rolling window and the size of the buckets that make it up."""

    name: str
    seconds: int
    bucket_s: int


WINDOWS = (
    Window("1m", 60, 10),
    Window("5m", 300, 10),
    Window("1h", 3600, 300),
    Window("24h", 86_400, 3600),
)


class Cohort(NamedTuple):
    """Answers filled from one time to another: how many, and how many were read since."""

    fills: int
    first_reads: int


class Timeline:
    """All that is counted in buckets, as of server time `now_ms`."""

    def __init__(self, now_ms: float, buckets: dict[Bucket, Counts]) -> None:
        self.now_ms = now_ms
        self._buckets = buckets
        self._first_ms = _beginning_ms(buckets, now_ms)
        self._sums: dict[tuple[int, float, float], Counts] = {}
        self.tasks = {
            task for counts in buckets.values() for task, name in counts if name == "fills"
        }
        """The tasks whose answers were kept, in any bucket."""

    def counts(self, window: Window) -> Counts:
        """What was counted in a window."""
        return self._sum(window.bucket_s, self._start_ms(window), math.inf)

    def span_s(self, window: Window) -> float:
        """How much time a window covers: its buckets, but nothing before counting began."""
        return max(0.0, self.now_ms - max(self._start_ms(window), self._first_ms)) / 1000

    def over(self, task: str, window: Window, life_s: float) -> Cohort | None:
        """The answers of a task whose time, of `life_s`, ended within a window, or the last of it.

        None where buckets that old are longer than the window, or gone.
        """
        ended_s = life_s + GRACE_S
        for size in SIZES:
            if size.seconds <= window.seconds and _is_kept(size, ended_s + window.seconds):
                step_ms = size.seconds * 1000
                until_ms = (self.now_ms - ended_s * 1000) // step_ms * step_ms
                counts = self._sum(size.seconds, until_ms - window.seconds * 1000, until_ms)
                return Cohort(counts[task, "fills"], counts[task, "first_reads"])
        return None

    def _start_ms(self, window: Window) -> float:
        step_ms = window.bucket_s * 1000
        return (self.now_ms - window.seconds * 1000) // step_ms * step_ms

    def _sum(self, size_s: int, from_ms: float, until_ms: float) -> Counts:
        """Counts of the buckets of a size that begin from one time on and before another."""
        key = (size_s, from_ms, until_ms)
        if key not in self._sums:  # tasks mostly live equally long, so they ask for the same
            total: Counts = Counter()
            self._sums[key] = total
            for bucket, counts in self._buckets.items():
                if bucket.size_s == size_s and from_ms <= bucket.start_ms < until_ms:
                    total.update(counts)
        return self._sums[key]


def _beginning_ms(buckets: Iterable[Bucket], now_ms: float) -> float:
    """When counting began, as exactly as the first bucket of all and finer ones in it can tell."""
    first = min(buckets, key=lambda bucket: (bucket.start_ms, bucket.size_s), default=None)
    if first is None:
        return now_ms
    inside = [bucket for bucket in buckets if first.start_ms <= bucket.start_ms < first.end_ms]
    finest_s = min(bucket.size_s for bucket in inside)
    return min(bucket.start_ms for bucket in inside if bucket.size_s == finest_s)


def _is_kept(size: BucketSize, ago_s: float) -> bool:
    """Whether buckets that began so long ago are still all there."""
    return ago_s + size.seconds <= size.kept_s


class WindowReader:
    """Reads the timeline of a store, again and again: buckets that are over come from memory."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read: dict[tuple[str, Bucket], tuple[float, Counts]] = {}
        """When it was read, and what was in it."""

    async def timeline(self, now_ms: float) -> Timeline:
        """Read what is there at server time `now_ms`. Raises redis-py's errors."""
        there = await self._names()
        self._read = {key: kept for key, kept in self._read.items() if key in there}
        due = [key for key in there if self._is_due(key, now_ms)]
        for key, counts in zip(due, await self._fetch(due), strict=True):
            self._read[key] = (now_ms, counts)
        merged: dict[Bucket, Counts] = {}
        for (_, bucket), (_, counts) in self._read.items():
            merged.setdefault(bucket, Counter()).update(counts)
        return Timeline(now_ms, merged)

    async def _names(self) -> set[tuple[str, Bucket]]:
        keys = [names.windows(tag) for tag in self._store.tags]
        lists = await self._store.send_many([(key, ("ZRANGE", key, 0, -1)) for key in keys])
        found: set[tuple[str, Bucket]] = set()
        for tag, listed in zip(self._store.tags, lists, strict=True):
            if isinstance(listed, Exception):
                raise listed
            found |= {(tag, bucket) for name in listed if (bucket := read_bucket(name))}
        return found

    def _is_due(self, key: tuple[str, Bucket], now_ms: float) -> bool:
        read_at, _ = self._read.get(key, (None, None))
        return (
            read_at is None or read_at < key[1].end_ms + REREAD_MS or now_ms - read_at >= REREAD_MS
        )

    async def _fetch(self, due: list[tuple[str, Bucket]]) -> list[Counts]:
        keys = [
            names.window_prefix(tag) + f"{bucket.size_s}:{bucket.number}".encode()
            for tag, bucket in due
        ]
        hashes = await self._store.send_many([(key, ("HGETALL", key)) for key in keys])
        return [read_counts(flat) for flat in hashes]


def read_counts(flat: Iterable[bytes] | Exception) -> Counts:
    """A hash of counters, as the store returns it. Raises what it has instead."""
    if isinstance(flat, Exception):
        raise flat
    words = list(flat)
    counts: Counts = Counter()
    for field, amount in zip(words[::2], words[1::2], strict=True):
        if b"|" in field:
            with suppress(ValueError):  # written by others
                counts[read_field(field)] += int(amount)
    return counts
