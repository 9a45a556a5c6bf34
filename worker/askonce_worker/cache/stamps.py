"""What a worker knows of invalidations, so that its memory tier can serve without asking.

Each answer shard keeps `inv`, `base` and `last[tag]` (see DESIGN, "Invalidation by stamps"). A
worker reads what changed every half of `bound_s`; an answer from memory is served only while its
shard was seen within `bound_s`, so an invalidation reaches every worker within that bound.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Sequence

import anyio
import structlog
from redis.exceptions import RedisError

from askonce_queue import answer_scripts
from askonce_queue.answer_scripts import GLOB_MARK, KEY_MARK
from askonce_queue.store import Store
from askonce_worker.cache.entry import Entry
from askonce_worker.cache.globs import Matches, glob_matcher
from askonce_worker.clock import Clock

MOST_TAGS = 10_000
"""Tags remembered a shard; past it everything older is treated as invalid (safe, and rare)."""

_WITHOUT_CHANGES = 2

log = structlog.get_logger("askonce.stamps")


class Stamps:
    """The invalidations of every answer shard, as last seen."""

    def __init__(self, store: Store, clock: Clock, bound_s: float) -> None:
        self._store = store
        self._shard_tags = shard_tags = store.tags
        self._clock = clock
        self._bound_s = bound_s
        self._inv = [math.inf] * len(shard_tags)
        self._base = [math.inf] * len(shard_tags)
        self._last: list[dict[str, float]] = [{} for _ in shard_tags]
        self._keys: list[dict[bytes, float]] = [{} for _ in shard_tags]
        self._globs: list[dict[bytes, tuple[Matches, float]]] = [{} for _ in shard_tags]
        self._latest: list[dict[str, float]] = [{} for _ in shard_tags]
        """While there are globs: tag → its last invalidation, by name or by glob; a memo."""
        self._seen_at = [-math.inf] * len(shard_tags)
        self._locks = [asyncio.Lock() for _ in shard_tags]

    def usable(self, entry: Entry, asker_tags: Sequence[str], key: bytes, now: float) -> bool:
        """Whether `entry` of a key may be served from memory at monotonic time `now`."""
        shard = entry.shard
        if now - self._seen_at[shard] > self._bound_s:
            return False
        return entry.built >= self._inv[shard] or self.valid(
            shard, entry.built, entry.tags, asker_tags, key
        )

    def inv(self, shard: int) -> float:
        """The stamp of a shard's newest invalidation, as last seen; infinite before it was."""
        return self._inv[shard]

    def seen(self, shard: int, now: float) -> bool:
        """Whether a shard was looked at within the bound."""
        return now - self._seen_at[shard] <= self._bound_s

    def valid(
        self,
        shard: int,
        built: float,
        tags: Collection[str],
        asker_tags: Collection[str],
        key: bytes,
    ) -> bool:
        """The validity rule of `look_up.lua`, on what was last seen; nothing is, at first."""
        if built >= self._inv[shard]:
            return True
        keys = self._keys[shard]
        if built < self._base[shard] or (keys and keys.get(key, 0.0) > built):
            return False
        if self._globs[shard]:
            latest = self._latest_of
            return not any(latest(shard, tag) > built for tag in (*tags, *asker_tags))
        # Loops, because after an invalidation of anything every older hit comes by here.
        stamp_of = self._last[shard].get
        for tag in tags:
            if stamp_of(tag, 0.0) > built:
                return False
        for tag in asker_tags:  # noqa: SIM110 -- see above
            if stamp_of(tag, 0.0) > built:
                return False
        return True

    def _latest_of(self, shard: int, tag: str) -> float:
        """The last invalidation of a tag, 0 for none."""
        memo = self._latest[shard]
        latest = memo.get(tag)
        if latest is None:
            if len(memo) >= MOST_TAGS:
                memo.clear()
            latest, name = self._last[shard].get(tag, 0.0), tag.encode()
            for matches, stamp in self._globs[shard].values():
                if stamp > latest and matches(name):
                    latest = stamp
            memo[tag] = latest
        return latest

    async def watch(self, shard: int) -> None:
        """Read what changed on a shard, for ever.

        A failure leaves its answers in memory unused, nothing else.
        """
        while True:
            try:
                await self.read(shard)
            except (RedisError, OSError) as error:
                log.warning("invalidations cannot be read", shard=shard, error=str(error))
            await anyio.sleep(self._bound_s / 2)

    async def read(self, shard: int) -> None:
        """Read what changed on a shard. Raises redis-py's errors."""
        async with self._locks[shard]:  # an older reply may not overwrite what a newer one told
            await self._read(shard)

    async def _read(self, shard: int) -> None:
        asked_at = self._clock.monotonic()
        inv = self._inv[shard]
        call = answer_scripts.read_stamps(
            self._shard_tags[shard],
            seen_inv=int(inv) if math.isfinite(inv) else 0,
            most_tags=MOST_TAGS,
        )
        result = await self._store.run(call)
        try:
            self._note(shard, result)
        except (TypeError, ValueError) as error:  # written by others; a look-up makes them anew
            self._seen_at[shard] = -math.inf
            raise RedisError(f"stamps cannot be read: {error}") from error
        self._seen_at[shard] = asked_at

    def _note(self, shard: int, result: list[bytes]) -> None:
        inv, base = float(result[0]), float(result[1])
        last, keys, globs = self._last[shard], self._keys[shard], self._globs[shard]
        if len(result) > _WITHOUT_CHANGES:
            self._latest[shard].clear()
            globs.clear()  # all of them come with every change
        for tag, stamp in zip(result[2::2], result[3::2], strict=True):
            if tag[:1] == GLOB_MARK:
                globs[tag] = (glob_matcher(tag[1:]), float(stamp))
            elif tag[:1] == KEY_MARK:
                keys[tag[1:]] = float(stamp)
            else:
                last[tag.decode(errors="replace")] = float(stamp)
        if len(last) + len(keys) > MOST_TAGS:
            last.clear()
            keys.clear()
            base = inv
        # A base raised here (too many tags) outlives the server's own, which is lower.
        known = self._base[shard]
        self._base[shard] = max(base, known) if math.isfinite(known) else base
        self._inv[shard] = inv
