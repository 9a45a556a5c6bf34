"""Moving jobs out of the way: deliveries that cannot be asked now go to their deferred stream.

Apart from the outbox, so that no reply waits for it, and in large groups: nobody waits for a job to
be deferred, and while a model is dead all that misses passes through here beside the hits.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable

import anyio

from askonce_queue import queue_scripts
from askonce_queue.queue_scripts import Lane
from askonce_queue.reply import ErrorInfo
from askonce_queue.scripts import CHUNK
from askonce_queue.store import Store
from askonce_worker.observe.counters import Counters
from askonce_worker.pool.delivery import Delivery, DeliveryEnd
from askonce_worker.pool.held import Held
from askonce_worker.pool.repeated import until_done

GATHER_S = 0.05
"""How long the first of a group waits for others."""
MOST_CALLS = 8
"""Most chunks in one round trip."""

_DEFERRED_FULL = ErrorInfo(
    "deferred_full", "the model is saturated and no more jobs may wait for it (max_deferred)"
)


class Moving:
    """Defers the deliveries of one shard; those for which there is no room get an error."""

    def __init__(self, store: Store, held: Held, counters: Counters, *, max_deferred: int) -> None:
        self._store = store
        self._held = held
        self._counters = counters
        self._max_deferred = max_deferred
        self._waiting: list[Delivery] = []
        self._writing = 0
        self._bell = anyio.Event()
        self._enough = anyio.Event()
        self._rng = random.Random()

    @property
    def size(self) -> int:
        """Deliveries that are not moved yet."""
        return len(self._waiting) + self._writing

    def put(self, delivery: Delivery) -> None:
        """Take a delivery that shall wait in the store."""
        self._waiting.append(delivery)
        if len(self._waiting) == 1:
            self._bell.set()
        elif len(self._waiting) >= CHUNK:
            self._enough.set()

    async def run(self, moved: Callable[[], None]) -> None:
        """Move for ever; `moved` is called after each group."""
        while True:
            if not self._waiting:
                self._bell = anyio.Event()
                await self._bell.wait()
            if len(self._waiting) < CHUNK:
                self._enough = anyio.Event()
                with anyio.move_on_after(GATHER_S):
                    await self._enough.wait()
            most = CHUNK * MOST_CALLS
            batch, self._waiting = self._waiting[:most], self._waiting[most:]
            self._writing = len(batch)
            await self._move(batch)
            moved()

    async def _move(self, deliveries: list[Delivery]) -> None:
        by_lane: defaultdict[Lane, list[Delivery]] = defaultdict(list)
        for delivery in deliveries:
            by_lane[delivery.stream].append(delivery)
        parts = [
            (lane, waiting[start : start + CHUNK])
            for lane, waiting in by_lane.items()
            for start in range(0, len(waiting), CHUNK)
        ]
        calls = [
            queue_scripts.defer(lane, self._max_deferred, [(d.entry_id, d.record) for d in part])
            for lane, part in parts
        ]
        results = await until_done(self._store, calls, self._held.look_again, self._rng)
        for (lane, part), result in zip(parts, results, strict=True):
            letters = result.decode()
            self._writing -= len(part)
            moved = [d for d, letter in zip(part, letters, strict=True) if letter != "f"]
            self._held.remove(lane, [delivery.entry_id for delivery in moved])
            if deferred := letters.count("d"):
                self._counters.count("*", f"jobs_{DeliveryEnd.DEFERRED.value}", deferred)
            for delivery, letter in zip(part, letters, strict=True):
                if letter == "f":
                    self._counters.count(delivery.task.name, "errors")
                    delivery.failed(_DEFERRED_FULL, None)
