"""The memory tier: answers this process has seen, bounded by bytes, evicted by S3-FIFO.

S3-FIFO: Yang, Zhang, Qiu, Yue and Rashmi, "FIFO queues are all you need for cache eviction", SOSP
2023. New entries go to a small queue of 5 % of the bytes; those asked again before they reach its
end move to the main queue, the others leave and only their keys are remembered, in the ghost queue.
A key that returns while it is a ghost goes straight to the main queue, whose entries get another
round for each of up to three hits. A hit writes one small integer and moves nothing.

As in the authors' simulator (libCacheSim `S3FIFO.c`), once the small queue is full entries go to
the main queue until the cache is full for the first time. Ours alone: expiry, a limit on the work
of one eviction, and ghosts in two generations (sets) instead of an exact queue.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

V = TypeVar("V")

SMALL_SHARE = 20
"""The small queue gets one part in this many of the bytes.

The paper has 10 and two hits for the main queue. With 20 and one we hit more on nearly all traces,
by 0.1 to 0.9 points, synthetic and real ones, and are nowhere 1 point behind TinyLFU or W-TinyLFU
(`python -m askonce_loadtest scale --only memory`)."""
MAX_FREQUENCY = 3
MIN_HITS_FOR_MAIN = 1
"""Hits in the small queue by which an entry earns its place in the main queue."""
MAX_ENTRY_SHARE = 8
"""An entry larger than one part in this many of the bytes is not admitted."""
MAX_REPRIEVES = 256
"""Entries spared by one eviction; then the next goes, hot or not. Bounds the pause of one `put`."""
ENTRY_OVERHEAD_BYTES = 450
"""What an entry costs beside its value: key, table slot, entry, queue slot, and a ghost's key and
slot. Measured with tracemalloc on CPython 3.11, 32-byte keys."""


class _Entry(Generic[V]):
    """A value in one of the two queues. A dropped entry stays in its queue until it gets there."""

    __slots__ = ("expires_at", "frequency", "in_main", "key", "live", "size_bytes", "value")

    def __init__(self, key: bytes, value: V, size_bytes: int, expires_at: float) -> None:
        self.key = key
        self.value: V | None = value
        self.size_bytes = size_bytes
        self.expires_at = expires_at
        self.frequency = 0
        self.in_main = False
        self.live = True


class MemoryTier(Generic[V]):
    """A cache of at most `max_bytes`, from cache key (bytes) to value. 0 bytes keep nothing.

    Times are monotonic seconds. For one thread: nothing awaits and nothing locks.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.evictions = 0
        """Entries dropped to make room, expired ones included."""
        self._size_bytes = 0
        self._small_bytes = 0
        self._entries: dict[bytes, _Entry[V]] = {}
        self._small: deque[_Entry[V]] = deque()
        self._main: deque[_Entry[V]] = deque()
        self._young_ghosts: set[bytes] = set()
        self._old_ghosts: set[bytes] = set()
        self._dead = 0
        self._now = float("-inf")

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size_bytes(self) -> int:
        """Bytes in use: the values as their owner counted them, plus our overhead for each."""
        return self._size_bytes

    def get(self, key: bytes, now: float) -> V | None:
        """Return the value of `key`, or None when there is none or it has expired."""
        return self.get_many((key,), now)[0]

    def get_many(self, keys: Sequence[bytes], now: float) -> list[V | None]:
        """Return the values of `keys`, in their order; None where there is none or it expired."""
        self._now = now
        found: list[V | None] = []
        append = found.append
        for entry in map(self._entries.get, keys):
            if entry is None:
                append(None)
            elif entry.expires_at > now:
                if entry.frequency < MAX_FREQUENCY:
                    entry.frequency += 1
                append(entry.value)
            else:
                self._drop(entry)
                append(None)
        return found

    def put(self, key: bytes, value: V, size_bytes: int, expires_at: float) -> None:
        """Keep `value` until `expires_at`, replacing what `key` had.

        `size_bytes` is the size of the value; `ENTRY_OVERHEAD_BYTES` is added to it. An entry
        larger than `max_bytes / MAX_ENTRY_SHARE` is not admitted, but what it would have replaced
        is dropped all the same.
        """
        size_bytes += ENTRY_OVERHEAD_BYTES
        entry = self._entries.get(key)
        if size_bytes * MAX_ENTRY_SHARE > self.max_bytes:
            self.discard(key)
        elif entry is None:
            self._insert(_Entry(key, value, size_bytes, expires_at))
        else:
            self._count(entry, size_bytes - entry.size_bytes)
            entry.size_bytes = size_bytes
            entry.value = value
            entry.expires_at = expires_at
            self._make_room(0)

    def discard(self, key: bytes) -> None:
        """Drop `key` if it is here."""
        entry = self._entries.get(key)
        if entry is not None:
            self._drop(entry)

    def clear(self) -> None:
        """Drop everything, ghosts too. `evictions` keeps counting."""
        self._entries.clear()
        self._small.clear()
        self._main.clear()
        self._young_ghosts.clear()
        self._old_ghosts.clear()
        self._size_bytes = self._small_bytes = self._dead = 0

    def _insert(self, entry: _Entry[V]) -> None:
        self._make_room(entry.size_bytes)
        if self.evictions:
            entry.in_main = entry.key in self._young_ghosts or entry.key in self._old_ghosts
        else:
            entry.in_main = self._small_bytes * SMALL_SHARE >= self.max_bytes
        (self._main if entry.in_main else self._small).append(entry)
        self._entries[entry.key] = entry
        self._count(entry, entry.size_bytes)

    def _make_room(self, size_bytes: int) -> None:
        while self._size_bytes + size_bytes > self.max_bytes:
            main_bytes = self._size_bytes - self._small_bytes
            main_is_full = main_bytes * SMALL_SHARE > self.max_bytes * (SMALL_SHARE - 1)
            if main_is_full or not self._small_bytes:
                self._evict_from_main()
            else:
                self._evict_from_small()

    def _evict_from_small(self) -> None:
        """Move entries to the main queue until one has not earned it; that one becomes a ghost."""
        reprieves = MAX_REPRIEVES
        entry = self._pop(self._small)
        while entry.frequency >= MIN_HITS_FOR_MAIN and entry.expires_at > self._now and reprieves:
            reprieves -= 1
            entry.frequency = 0
            entry.in_main = True
            self._small_bytes -= entry.size_bytes
            self._main.append(entry)
            if not self._small_bytes:
                return
            entry = self._pop(self._small)
        self._evict(entry)
        self._young_ghosts.add(entry.key)
        if len(self._young_ghosts) * 2 > len(self._entries):
            self._old_ghosts = self._young_ghosts
            self._young_ghosts = set()

    def _evict_from_main(self) -> None:
        """Give entries another round for each hit until one has none left; that one goes."""
        reprieves = MAX_REPRIEVES
        entry = self._pop(self._main)
        while entry.frequency and entry.expires_at > self._now and reprieves:
            reprieves -= 1
            entry.frequency -= 1
            self._main.append(entry)
            entry = self._pop(self._main)
        self._evict(entry)

    def _pop(self, queue: deque[_Entry[V]]) -> _Entry[V]:
        """Take the oldest live entry of a queue that has one."""
        entry = queue.popleft()
        while not entry.live:
            self._dead -= 1
            entry = queue.popleft()
        return entry

    def _evict(self, entry: _Entry[V]) -> None:
        self._forget(entry)
        self.evictions += 1

    def _drop(self, entry: _Entry[V]) -> None:
        """Forget an entry that stays in its queue; sweep the queues when most of them is dead."""
        self._forget(entry)
        entry.live = False
        entry.value = None
        self._dead += 1
        if self._dead > len(self._entries) + MAX_REPRIEVES:
            self._small = deque(entry for entry in self._small if entry.live)
            self._main = deque(entry for entry in self._main if entry.live)
            self._dead = 0

    def _forget(self, entry: _Entry[V]) -> None:
        del self._entries[entry.key]
        self._count(entry, -entry.size_bytes)

    def _count(self, entry: _Entry[V], size_bytes: int) -> None:
        self._size_bytes += size_bytes
        if not entry.in_main:
            self._small_bytes += size_bytes
