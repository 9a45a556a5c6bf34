"""The hit log of a worker: notes sampled hits as they happen, and writes them once a second.

On the hot path it costs a look at the first byte of the key (`Task.noted`). Redaction and the store
come later, a few hits at a time; a log that cannot be written drops what it has, and counts it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import anyio
import structlog
from anyio.lowlevel import checkpoint
from redis.exceptions import RedisError

from askonce_queue import queue_scripts
from askonce_queue.shards import shard_of_digest
from askonce_queue.store import Store
from askonce_worker.asks import SeenHit
from askonce_worker.clock import Clock
from askonce_worker.hits.record import record
from askonce_worker.hits.sampler import Sampler
from askonce_worker.observe.counters import Counters
from askonce_worker.observe.fields import WORKER
from askonce_worker.tasks import Task

FLUSH_EVERY_S = 1.0
MOST_PENDING = 100
"""Hits of one shard that wait to be written; past it, those that come are left to later ones of
the same question."""
AT_ONCE = 8
"""Hits redacted without letting anybody else run: each takes some ten microseconds."""

log = structlog.get_logger("askonce.hits")


class HitLog:
    """Logs the hits of `tasks` that have a hit log; put `note` among the resolver's watchers."""

    def __init__(
        self,
        store: Store,
        tasks: Iterable[Task],
        clock: Clock,
        counters: Counters,
        *,
        max_hits: int,
    ) -> None:
        self._store = store
        self._clock = clock
        self._counters = counters
        self._max_hits = max_hits
        self._tasks = [task for task in tasks if task.hit_log is not None]
        shares = {task.name: task.hit_log.share for task in self._tasks if task.hit_log}
        self._sampler = Sampler(shares, clock.wall_ms())
        self._choose()
        self._pending: list[deque[SeenHit]] = [deque() for _ in store.tags]

    @property
    def active(self) -> bool:
        """Whether any task has one."""
        return bool(self._tasks)

    def _choose(self) -> None:
        for task in self._tasks:
            task.noted = self._sampler.windows[task.name].first_bytes()

    def note(self, seen: Sequence[SeenHit]) -> None:
        """Note hits, if they are in the sample. Neither awaits nor fails."""
        windows = self._sampler.windows
        for hit in seen:
            ask = hit.ask
            key = ask.key
            window = windows.get(ask.task.name)
            if window is None:
                continue
            low, high, rest = window
            if low <= key < high or key < rest:
                self._take(hit, key)

    def _take(self, hit: SeenHit, key: bytes) -> None:
        pending = self._pending[shard_of_digest(key, len(self._pending))]
        if len(pending) < MOST_PENDING and self._sampler.take(key):
            pending.append(hit)

    async def run(self, shard: int) -> None:
        """Write what was noted of one shard, every second, for ever."""
        while True:
            await anyio.sleep(FLUSH_EVERY_S)
            if self._sampler.turn(self._clock.wall_ms()):
                self._choose()
            await self.flush(shard)

    async def flush(self, shard: int) -> None:
        """Write what was noted of one shard. Never raises for what the store does.

        What cannot be written is dropped and counted: it is a sample.
        """
        pending = self._pending[shard]
        if not pending:
            return
        hits = [pending.popleft() for _ in range(len(pending))]
        logged: list[queue_scripts.LoggedHit] = []
        for number, hit in enumerate(hits, 1):
            logged.append(record(hit))
            if number % AT_ONCE == 0:
                await checkpoint()
        call = queue_scripts.log_hits(self._store.tags[shard], self._max_hits, logged)
        try:
            dropped = int(await self._store.run(call))
        except (RedisError, OSError) as error:
            dropped = len(logged)
            log.debug("hits could not be logged", hits=len(logged), error=str(error))
        if dropped:
            self._counters.count(WORKER, "hits_dropped", dropped)

    async def flush_all(self) -> None:
        """Write what was noted of all shards."""
        async with anyio.create_task_group() as tasks:
            for shard in range(len(self._pending)):
                tasks.start_soon(self.flush, shard)
