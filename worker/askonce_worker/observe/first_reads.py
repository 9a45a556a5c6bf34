"""First reads of answers from this worker's memory, told to the store where the others are marked.

The look-up script marks an answer as read when it serves it. A worker that fills an answer keeps it
in memory, and may be the only one that ever serves it: its first hit there is noted here, and
marked within seconds, many in one script. Who was first is decided in the store.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import anyio
from redis.exceptions import RedisError

from askonce_queue import answer_scripts
from askonce_queue.scripts import CHUNK
from askonce_queue.store import Store

EVERY_S = 1.0
MOST_NOTED = 20_000
"""First reads of a shard that wait to be told. Beyond them, an answer's next read counts as its
first."""


class FirstRead(NamedTuple):
    """An answer that was read here: its key, the server's time of its creation (ms), its age."""

    task: str
    key: bytes
    created_ms: float
    age_s: float


class FirstReads:
    """First reads that the store does not know of. `count` takes those that were the first of all.

    `note` is for the hot path; the rest runs beside it, a loop a shard.
    """

    def __init__(self, count: Callable[[FirstRead], None]) -> None:
        self._count = count
        self._noted: dict[int, list[FirstRead]] = {}

    def note(self, shard: int, read: FirstRead) -> bool:
        """Note a read; False when there is no room, and the answer should stay unread here."""
        noted = self._noted.setdefault(shard, [])
        if len(noted) >= MOST_NOTED:
            return False
        noted.append(read)
        return True

    async def tell_forever(self, store: Store, shard: int) -> None:
        """Tell the store of the first reads of a shard, every second."""
        while True:
            await anyio.sleep(EVERY_S)
            try:
                await self.tell(store, shard)
            except (RedisError, OSError):
                continue  # told with the next; the other loops report the outage

    async def tell(self, store: Store, shard: int) -> None:
        """Tell the store of all first reads of a shard. Raises redis-py's errors."""
        while noted := self._noted.get(shard):
            part, self._noted[shard] = noted[:CHUNK], noted[CHUNK:]
            call = answer_scripts.mark_read(
                store.tags[shard], [(read.key, read.created_ms) for read in part]
            )
            try:
                letters: bytes = await store.run(call)
            except (RedisError, OSError):
                self._noted[shard][:0] = part
                raise
            for read, letter in zip(part, letters.decode(), strict=True):
                if letter == "f":
                    self._count(read)
