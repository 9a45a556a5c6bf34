"""What a worker counts, and the loop that adds it to the fleet's totals in the store.

Totals are kept per task in one hash (`stats:{tag}`, field `task|name`). A flush that fails is
repeated with the next; counts that were flushed twice because a reply was lost are possible and
tolerable (they are numbers to steer by, not the ledger).
"""

from __future__ import annotations

from collections import Counter

import anyio
from redis.exceptions import RedisError

from askonce_queue import queue_scripts
from askonce_queue.store import Store

FLUSH_EVERY_S = 1.0


class Counters:
    """Counts since the start of this process, and what is not flushed yet."""

    def __init__(self) -> None:
        self.totals: Counter[tuple[str, str]] = Counter()
        self._unflushed: Counter[tuple[str, str]] = Counter()

    def count(self, task: str, name: str, amount: int = 1) -> None:
        """Add `amount` to counter `name` of `task`."""
        self._unflushed[task, name] += amount

    def total(self, name: str) -> int:
        """The sum of a counter over all tasks, in this process."""
        return sum(
            amount
            for counts in (self.totals, self._unflushed)
            for (_, counted), amount in counts.items()
            if counted == name
        )

    async def flush_forever(self, store: Store, shard_tag: str) -> None:
        """Flush every second."""
        while True:
            await anyio.sleep(FLUSH_EVERY_S)
            try:
                await self.flush(store, shard_tag)
            except (RedisError, OSError):
                continue  # counted again with the next flush; the other loops report the outage

    async def flush(self, store: Store, shard_tag: str) -> None:
        """Add the unflushed counts to the fleet's totals. Raises redis-py's errors."""
        batch, self._unflushed = self._unflushed, Counter()
        if not batch:
            return
        self.totals += batch
        counts = {f"{task}|{name}": amount for (task, name), amount in batch.items()}
        try:
            await store.run(queue_scripts.count(shard_tag, counts))
        except (RedisError, OSError):
            self.totals -= batch
            self._unflushed += batch
            raise
