"""What a worker knows of invalidations, so that its memory tier can serve without asking.

Each answer shard keeps `inv`, `base` and `last[tag]` (see DESIGN, "Invalidation by stamps"). A
worker reads what changed every half of `bound_s`; an answer from memory is served only while its
shard was seen within `bound_s`, so an invalidation reaches every worker within that bound.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Sequence

import anyio
import structlog
from redis.exceptions import RedisError

from askonce_queue import answer_scripts
from askonce_queue.store import Store
from askonce_worker.cache.entry import Entry
from askonce_worker.clock import Clock

MOST_TAGS = 10_000
"""Tags remembered a shard; past it everything older is treated as invalid (safe, and rare)."""

KEY, GLOB = b"\0", b"*"
"""What stands before a key, and before a glob, among the tags."""
_WITHOUT_CHANGES = 2

Matches = Callable[[bytes], object]

log = structlog.get_logger("askonce.stamps")


def glob_matcher(glob: bytes) -> Matches:
    """As the scripts read a glob: `*` is any bytes, `?` one."""
    pattern = re.escape(glob).replace(rb"\*", b".*").replace(rb"\?", b".")
    return re.compile(pattern, re.DOTALL).fullmatch


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
        self._seen_at = [-math.inf] * len(shard_tags)

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
        if built < self._base[shard]:
            return False
        keys, last, globs = self._keys[shard], self._last[shard], self._globs[shard]
        if keys and keys.get(key, 0.0) > built:
            return False
        if any(last.get(tag, 0.0) > built for tag in tags) or any(
            last.get(tag, 0.0) > built for tag in asker_tags
        ):
            return False
        newer = [match for match, stamp in globs.values() if stamp > built] if globs else ()
        return not any(match(tag.encode()) for match in newer for tag in (*tags, *asker_tags))

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
        asked_at = self._clock.monotonic()
        inv = self._inv[shard]
        call = answer_scripts.read_stamps(
            self._shard_tags[shard],
            seen_inv=int(inv) if math.isfinite(inv) else 0,
            most_tags=MOST_TAGS,
        )
        self._note(shard, await self._store.run(call))
        self._seen_at[shard] = asked_at

    def _note(self, shard: int, result: list[bytes]) -> None:
        inv, base = float(result[0]), float(result[1])
        last = self._last[shard]
        if len(result) > _WITHOUT_CHANGES:
            self._globs[shard].clear()  # all of them come with every change
        for tag, stamp in zip(result[2::2], result[3::2], strict=True):
            if tag[:1] == GLOB:
                self._globs[shard][tag] = (glob_matcher(tag[1:]), float(stamp))
            elif tag[:1] == KEY:
                self._keys[shard][tag[1:]] = float(stamp)
            else:
                last[tag.decode()] = float(stamp)
        if len(last) + len(self._keys[shard]) > MOST_TAGS:
            last.clear()
            self._keys[shard].clear()
            base = inv
        # A base raised here (too many tags) outlives the server's own, which is lower.
        known = self._base[shard]
        self._base[shard] = max(base, known) if math.isfinite(known) else base
        self._inv[shard] = inv
