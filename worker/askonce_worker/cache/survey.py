"""Looks at every stored answer, without its body: what it was built on, and when.

For counting what an invalidation takes, and for purging old versions. The server keeps answers and
all else in one table, so the only way is to walk it: a page of a few hundred keys at a time, one
page under way a server, up to a limit of answers and of time. What did not reach the end says so:
its count is a lower bound, and what it counts is unknown.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

import anyio
from redis.exceptions import NoPermissionError, RedisError

from askonce_queue import answer_scripts, names
from askonce_queue.scripts import CHUNK
from askonce_queue.store import Store

PAGE = 300
"""Keys that the server walks at once: about 0.2 ms of its time, and as much for what is found."""
MOST_ANSWERS = 1_000_000
MOST_S = 60.0

_KEY = re.compile(rb"a:\{([^}]*)\}:(.{32})", re.DOTALL)
_BUILT = struct.Struct("<d")


class Limits(NamedTuple):
    """When to stop looking: after so many stored answers, or so many seconds."""

    answers: int = MOST_ANSWERS
    seconds: float = MOST_S


class Found(NamedTuple):
    """A stored answer that is valid: its key, stamp and tags."""

    digest: bytes
    built: float
    tags: tuple[str, ...]


class Before(NamedTuple):
    """What a shard's stamps were before an invalidation, as `peek_stamps.lua` told them."""

    base: bytes
    stamps: Sequence[tuple[bytes | str, bytes]]


class Tally(NamedTuple):
    """What was found: so many `answers` of those `seen`. `unfinished`: why that is not all."""

    answers: int
    seen: int
    unfinished: str = ""

    @property
    def exact(self) -> bool:
        """Whether all stored answers were looked at."""
        return not self.unfinished


Wanted = Callable[[str, Found], bool]
"""Whether to count an answer of a shard."""
Act = Callable[[str, Sequence[bytes]], Awaitable[None]]
"""What to do about answers (digests) of a shard that are counted; raises redis-py's errors."""
Progress = Callable[[int], None]
"""Is told how many more keys of the store were walked."""


class Survey:
    """A walk over all stored answers. `before` may give the stamps of shards an earlier state."""

    def __init__(
        self,
        store: Store,
        wanted: Wanted,
        limits: Limits,
        *,
        before: Mapping[str, Before] | None = None,
        act: Act | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._store = store
        self._wanted = wanted
        self._limits = limits
        self._before = before or {}
        self._act = act
        self._progress = progress
        self._shards = frozenset(store.tags)
        self._counted: set[bytes] = set()
        self._seen = 0
        self._unfinished = ""
        self._over = False
        """Whether a limit was reached."""

    async def run(self) -> Tally:
        """Walk all servers at once. Never raises for what the store does: see `unfinished`."""
        until = anyio.current_time() + self._limits.seconds
        async with anyio.create_task_group() as tasks:
            for group in self._store.groups:
                tasks.start_soon(self._walk, group, until)
        return Tally(len(self._counted), self._seen, self._unfinished)

    async def look_at(self, digests: Mapping[str, Sequence[bytes]]) -> Tally:
        """The same for answers whose keys are known (shard tag → digests), without a walk."""
        for tag, some in digests.items():
            for start in range(0, len(some), CHUNK):
                try:
                    await self._look(tag, some[start : start + CHUNK])
                except (RedisError, OSError) as error:
                    self._missed(_reason(error))
        return Tally(len(self._counted), self._seen, self._unfinished)

    def _missed(self, why: str) -> None:
        self._unfinished = self._unfinished or why

    def _stop(self, why: str) -> None:
        self._missed(why)
        self._over = True

    async def _walk(self, group: Sequence[str], until: float) -> None:
        """Walk the keys of a server; in a cluster, those of one shard."""
        first = names.answer_prefix(group[0])
        pattern = first + b"*" if len(group) == 1 else b"a:{*}:*"
        cursor = b"0"
        server = self._store.server_of(first)
        try:
            while not self._over:
                page = await self._store.send(
                    first, "SCAN", cursor, "MATCH", pattern, "COUNT", PAGE
                )
                if self._progress is not None:
                    self._progress(PAGE)
                await self._page(page[1])
                now = self._store.server_of(first)
                if server not in (None, now):
                    self._missed("another server took over while it was walked")
                cursor, server = page[0], now
                if cursor == b"0":
                    return
                if self._seen >= self._limits.answers:
                    self._stop(f"the limit of {self._limits.answers:,} answers was reached")
                if anyio.current_time() >= until:
                    self._stop(f"the limit of {self._limits.seconds:g} s was reached")
        except (RedisError, OSError) as error:
            self._missed(_reason(error))

    async def _page(self, keys: Sequence[bytes]) -> None:
        by_shard: dict[str, list[bytes]] = {}
        for key in keys:
            found = _KEY.fullmatch(key)
            if found is not None and (tag := found[1].decode(errors="replace")) in self._shards:
                by_shard.setdefault(tag, []).append(found[2])
        for tag, digests in by_shard.items():
            for start in range(0, len(digests), CHUNK):
                await self._look(tag, digests[start : start + CHUNK])

    async def _look(self, tag: str, digests: Sequence[bytes]) -> None:
        before = self._before.get(tag)
        call = answer_scripts.survey(
            tag,
            digests,
            base=before.base if before is not None else b"",
            before=before.stamps if before is not None else (),
        )
        self._seen += len(digests)
        hits: list[bytes] = []
        for digest, told in zip(digests, await self._store.run(call), strict=True):
            if told and digest not in self._counted and self._wanted(tag, _found(digest, told)):
                hits.append(digest)
        if hits and self._act is not None:
            await self._act(tag, hits)
        self._counted.update(hits)  # a walk may come by the same key twice


def _found(digest: bytes, told: bytes) -> Found:
    (built,) = _BUILT.unpack_from(told)
    tags = told[_BUILT.size :].decode(errors="replace")
    return Found(digest, built, tuple(tags.split("\n")) if tags else ())


def _reason(error: Exception) -> str:
    if isinstance(error, NoPermissionError):
        return f"this user of the store may not look at answers ({error})"
    return f"the store failed: {error}"
