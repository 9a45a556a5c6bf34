"""Looking for dead letters: page by page, the newest first over all shards."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple

from askonce_queue import names
from askonce_queue.store import Store
from askonce_worker.dead_letters.letter import DeadLetter, read_letter

PAGE = 100
"""Most letters in one read."""
PAGE_BYTES = 1 << 20
"""How large a page should be: a letter is as large as its job, so large ones come a few at once."""
FIRST_PAGE = 10


class Wanted(NamedTuple):
    """Which letters: all that are given must hold. Times are of the burial, Unix ms, inclusive."""

    code: str | None = None
    task: str | None = None
    tenant: str | None = None
    client: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None

    def covers(self, letter: DeadLetter) -> bool:
        """Whether a letter is wanted. Times are left to the store."""
        return (
            self.code in (None, letter.code)
            and self.tenant in (None, letter.envelope.tenant)
            and self.client in (None, letter.envelope.client)
            and (self.task is None or self.task == letter.task)
        )


class Search:
    """The letters that are wanted, newest first; iterate it with `async for`.

    Iterated again it gives no letter that came after the first time: what was counted is what will
    be dropped. `looked_at` counts the letters read. A shard that fails is in `failures`, and the
    search goes on without it.
    """

    def __init__(self, store: Store, pool: str, wanted: Wanted) -> None:
        self.looked_at = 0
        self.failures: dict[str, Exception] = {}
        self._store = store
        self._pool = pool
        self._wanted = wanted
        self._newest: dict[str, bytes] = {}

    async def __aiter__(self) -> AsyncGenerator[DeadLetter]:
        self.looked_at = 0
        self.failures.clear()
        shards = {tag: _ShardPages(tag, self._first(tag)) for tag in self._store.tags}
        nearest: list[tuple[int, int, str, DeadLetter]] = []

        async def push_next(tag: str) -> None:
            letter = await self._next(shards[tag])
            if letter is not None:
                heapq.heappush(nearest, (-letter.id.ms, -letter.id.sequence, tag, letter))

        for tag in shards:
            await push_next(tag)
        while nearest:
            _, _, tag, letter = heapq.heappop(nearest)
            yield letter
            await push_next(tag)

    def _first(self, tag: str) -> bytes:
        """Where to begin on a shard."""
        until_ms = self._wanted.until_ms
        return self._newest.get(tag, b"+" if until_ms is None else b"%d" % until_ms)

    async def _next(self, shard: _ShardPages) -> DeadLetter | None:
        """The next letter of a shard that is wanted."""
        while True:
            while shard.page:
                letter = shard.page.popleft()
                if self._wanted.covers(letter):
                    return letter
            if not await self._turn(shard):
                return None

    async def _turn(self, shard: _ShardPages) -> bool:
        """Read the next page of a shard; whether there is one."""
        tag, since_ms = shard.tag, self._wanted.since_ms
        key = names.dead(tag, self._pool)
        since = b"-" if since_ms is None else b"%d" % since_ms
        words = ("XREVRANGE", key, shard.before, since, "COUNT", shard.count)
        (entries,) = await self._store.send_many([(key, words)])
        if isinstance(entries, Exception):
            self.failures[tag] = entries
            return False
        self._newest.setdefault(tag, entries[0][0] if entries else b"0-0")
        self.looked_at += len(entries)
        shard.take(entries)
        return bool(entries)


class _ShardPages:
    """The page of one shard that is being read, and where the next one begins."""

    def __init__(self, tag: str, before: bytes) -> None:
        self.tag = tag
        self.before = before
        self.count = FIRST_PAGE
        self.page: deque[DeadLetter] = deque()

    def take(self, entries: Sequence[tuple[bytes, list[bytes]]]) -> None:
        self.page.extend(read_letter(self.tag, *entry) for entry in entries)
        if entries:
            size = sum(len(part) for _, fields in entries for part in fields)
            self.before = b"(" + entries[-1][0]
            self.count = max(1, min(PAGE, len(entries) * PAGE_BYTES // max(1, size)))
