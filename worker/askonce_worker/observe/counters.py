"""What a worker counts and times, and the loop that adds the counts to the fleet's totals.

Totals are kept per task in one hash of the store (`stats:{tag}`, field `task|name`). A flush that
fails is repeated with the next; counts that were flushed twice because a reply was lost are
possible and tolerable (they are numbers to steer by, not the ledger).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

import anyio
from redis.exceptions import RedisError

from askonce_queue import queue_scripts
from askonce_queue.store import Store
from askonce_worker.clock import Clock, SystemClock
from askonce_worker.observe.histogram import CALL_BOUNDS_S, Histogram

FLUSH_EVERY_S = 1.0


class Counters:
    """Counts since the start of this process, and what is not flushed yet."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.totals: Counter[tuple[str, str]] = Counter()
        self.call_durations: dict[str, Histogram] = {}
        """How long model calls took, by model."""
        self._clock = clock or SystemClock()
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

    def since_start(self) -> Counter[tuple[str, str]]:
        """All counts of this process, by task and name."""
        return self.totals + self._unflushed

    @contextmanager
    def model_call(self, model: str) -> Generator[None]:
        """Time a call of `model`, whether it succeeds or fails; not one that is cancelled."""
        began = self._clock.monotonic()
        try:
            yield
        except Exception:
            self._time_call(model, began)
            raise
        self._time_call(model, began)

    def _time_call(self, model: str, began: float) -> None:
        durations = self.call_durations.get(model)
        if durations is None:
            durations = self.call_durations[model] = Histogram(CALL_BOUNDS_S)
        durations.observe(self._clock.monotonic() - began)

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
