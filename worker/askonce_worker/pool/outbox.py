"""The outbox of a shard: replies are settled in groups, one atomic script a lane and group.

Group commit: while one write is under way, what arrives is gathered for the next. A reply stays
here, and its delivery stays held, until the store has confirmed the settle; settling twice is
harmless, so every failure is simply repeated.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
import structlog

from askonce_queue import queue_scripts
from askonce_queue.queue_scripts import Lane, SettleGroup
from askonce_queue.reply import ErrorInfo, WireReply, encode_replies
from askonce_queue.scripts import CHUNK, Call
from askonce_queue.store import Store
from askonce_worker.clock import Clock
from askonce_worker.landing import DEADLINE_EXCEEDED
from askonce_worker.observe.counters import Counters
from askonce_worker.pool.decode import Bad
from askonce_worker.pool.delivery import Delivery, DeliveryEnd
from askonce_worker.pool.held import Held
from askonce_worker.pool.moving import Moving
from askonce_worker.pool.repeated import until_done

MOST_DEAD_FIELDS = 200
"""Most names and values of an entry that its dead letter keeps; an envelope has at most 16."""
MOST_CALLS = 8
"""Most chunks in one round trip: bounds the time until its first reply is out."""

Settled = tuple[Delivery, WireReply]
T = TypeVar("T")

log = structlog.get_logger("askonce.outbox")


class Outbox:
    """Settles the deliveries of one shard."""

    def __init__(
        self,
        store: Store,
        held: Held,
        clock: Clock,
        counters: Counters,
        *,
        max_dead: int,
        max_deferred: int,
    ) -> None:
        self._store = store
        self._held = held
        self._clock = clock
        self._counters = counters
        self._max_dead = max_dead
        self._moving = Moving(store, held, counters, max_deferred=max_deferred)
        self._waiting: list[Settled] = []
        self._bad: list[tuple[Lane, Bad]] = []
        self._writing = 0
        self._bell = anyio.Event()
        self._emptied = anyio.Event()
        self._rng = random.Random()

    @property
    def empty(self) -> bool:
        """Whether nothing waits and no write is under way."""
        return self.size == 0

    @property
    def size(self) -> int:
        """Deliveries that are answered and not yet settled."""
        return len(self._waiting) + len(self._bad) + self._moving.size + self._writing

    def put(self, delivery: Delivery, reply: WireReply) -> None:
        """Take the one reply of a delivery."""
        self._waiting.append((delivery, reply))
        self._bell.set()

    def crowded(self, stream: Lane, *, beyond: bool) -> bool:
        """Whether deliveries of a lane that cannot be asked now should wait in the store."""
        return self._held.crowded_beyond() if beyond else self._held.crowded(stream)

    def defer(self, delivery: Delivery) -> None:
        """Take a delivery that shall wait in the store."""
        self._moving.put(delivery)

    def too_late(self, delivery: Delivery) -> None:
        """Reply to a delivery that came when its deadline had passed."""
        self._counters.count(delivery.task.name, "errors")
        self._counters.count(delivery.task.name, "expired")
        delivery.failed(DEADLINE_EXCEEDED, None)

    def bury(self, lane: Lane, bad: Bad) -> None:
        """Take an entry that cannot be answered: it becomes an error reply and a dead letter."""
        self._bad.append((lane, bad))
        self._bell.set()

    async def run(self) -> None:
        """Settle for ever."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._moving.run, self._tell)
            while True:
                if not (self._waiting or self._bad):
                    self._bell = anyio.Event()
                    await self._bell.wait()
                await self._flush()
                self._tell()

    def _tell(self) -> None:
        """Wake who waits until it is empty."""
        if self.empty:
            self._emptied.set()

    async def wait_empty(self) -> None:
        """Return when everything put here is settled."""
        while not self.empty:
            self._emptied = anyio.Event()
            await self._emptied.wait()

    async def _flush(self) -> None:
        """Settle what waits now, and come back when the store has confirmed all of it."""
        most = CHUNK * MOST_CALLS
        if len(self._waiting) > most:  # else they go together
            self._waiting.sort(key=lambda settled: settled[0].lane == "bulk")
        batch, self._waiting = self._waiting[:most], self._waiting[most:]
        bad, self._bad = self._bad[:most], self._bad[most:]
        self._writing = len(batch) + len(bad)
        if batch:
            await self._settle(batch)
        for lane, one in bad:
            await self._bury(lane, one)

    async def _settle(self, batch: list[Settled]) -> None:
        now_ms = self._clock.wall_ms()
        by_lane = _split(batch, lambda delivery: delivery.stream)
        calls: list[Call] = []
        parts: list[list[Settled]] = []
        for lane, settled in sorted(by_lane.items(), key=lambda item: item[0].home == "bulk"):
            for start in range(0, len(settled), CHUNK):
                part = settled[start : start + CHUNK]
                parts.append(part)
                calls.append(queue_scripts.settle(lane, _groups(part, int(now_ms))))
        results = await self._until_done(calls)
        for part, counted in zip(parts, results, strict=True):
            self._writing -= len(part)
            self._held.remove(part[0][0].stream, [delivery.entry_id for delivery, _ in part])
            lost = len(part) - int(counted)
            if lost:
                self._count(DeliveryEnd.RECLAIMED, lost)
            self._count(DeliveryEnd.SETTLED, len(part) - lost)

    async def _bury(self, lane: Lane, bad: Bad) -> None:
        envelope = bad.envelope
        address = envelope.address if envelope.job_id else ""
        reply = WireReply(id=envelope.job_id, error=ErrorInfo(bad.code, bad.message))
        call = queue_scripts.bury(
            lane,
            address=address,
            entry_id=envelope.entry_id,
            record=envelope.record,
            reply=encode_replies([reply]),
            max_dead=self._max_dead,
            code=bad.code,
            message=bad.message,
            fields=bad.fields[:MOST_DEAD_FIELDS],
        )
        ((counted, dropped),) = await self._until_done([call])
        self._writing -= 1
        self._held.remove(lane, [envelope.entry_id])
        log.warning("job buried", job=envelope.job_id, code=bad.code, error=bad.message)
        if counted:
            self._count(DeliveryEnd.BURIED, 1)
        if dropped:
            self._counters.count("*", "dead_letters_dropped", dropped)

    def _count(self, end: DeliveryEnd, amount: int) -> None:
        if amount:
            self._counters.count("*", f"jobs_{end.value}", amount)

    async def _until_done(self, calls: list[Call]) -> list[Any]:
        """Run idempotent calls until each has succeeded."""
        return await until_done(self._store, calls, self._held.look_again, self._rng)


def _split(batch: list[Settled], by: Callable[[Delivery], T]) -> dict[T, list[Settled]]:
    """Split by lane or address. Neighbours mostly share both, so look up only what changes."""
    parts: dict[T, list[Settled]] = {}
    last: T | None = None
    part: list[Settled] = []
    for one in batch:
        value = by(one[0])
        if value != last or not parts:
            part = parts.setdefault(value, [])
            last = value
        part.append(one)
    return parts


def _groups(part: list[Settled], now_ms: int) -> list[SettleGroup]:
    groups: list[SettleGroup] = []
    for address, settled in _split(part, lambda delivery: delivery.address).items():
        prefix, took_ms = b"?", 0
        deferred = settled[0][0].stream.is_deferred
        for delivery, reply in settled:
            if deferred and delivery.origin_ms:
                reply.took_ms = max(0, now_ms - delivery.origin_ms)
                continue
            # Jobs of one enqueue call have the same time in their ids.
            if not delivery.entry_id.startswith(prefix):
                enqueued_ms, dash, _ = delivery.entry_id.partition(b"-")
                prefix, took_ms = enqueued_ms + dash, max(0, now_ms - int(enqueued_ms))
            reply.took_ms = took_ms
        groups.append(
            SettleGroup(
                address,
                encode_replies([reply for _, reply in settled]),
                [(delivery.entry_id, delivery.record) for delivery, _ in settled],
            )
        )
    return groups
