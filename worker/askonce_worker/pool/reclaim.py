"""Reclaim: takes over what dead workers held, without letting one poisonous job condemn others.

What a draining worker handed back is simply taken. What a dead worker held is suspect: one of those
jobs may have killed it. Suspects are retried with nothing else under way in this worker, in groups
that shrink with every delivery (64, 8, 1); only a crash of a job that was tried alone counts
towards the poison limit. (DESIGN retries every suspect alone at once; after a plain kill −9 of a
worker with 2,000 cold jobs in hand that is 2,000 model calls one after the other.)
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import NamedTuple

import anyio
import structlog
from redis.exceptions import RedisError

from askonce_queue import names, queue_scripts
from askonce_queue.envelope import read_envelope
from askonce_queue.queue_scripts import Lane
from askonce_queue.scripts import AsyncStore, run
from askonce_worker.observe.counters import Counters
from askonce_worker.pool.beat import Beat
from askonce_worker.pool.decode import Bad, Entry
from askonce_worker.pool.gate import Gate
from askonce_worker.pool.held import Held
from askonce_worker.pool.intake import Intake
from askonce_worker.pool.outbox import Outbox

MOST = 256
"""Most deliveries taken a lane and round."""
GROUPS = {1: 64, 2: 8}
"""How many suspects are retried together, by deliveries so far; after more deliveries, alone."""

log = structlog.get_logger("askonce.reclaim")


class _Suspect(NamedTuple):
    lane: Lane
    entry: Entry


class Reclaim:
    """Takes over deliveries for one worker. `intakes` maps shard tags to their intake."""

    def __init__(
        self,
        store: AsyncStore,
        lanes: Sequence[Lane],
        *,
        beat: Beat,
        gate: Gate,
        held: Held,
        outbox: Outbox,
        counters: Counters,
        intakes: dict[str, Intake],
        poison_limit: int,
    ) -> None:
        self._store = store
        self._lanes = lanes
        self._beat = beat
        self._gate = gate
        self._held = held
        self._outbox = outbox
        self._counters = counters
        self._intakes = intakes
        self._poison_limit = poison_limit
        self._suspects: defaultdict[int, deque[_Suspect]] = defaultdict(deque)
        """By the size of the group in which they are retried."""

    async def run(self) -> None:
        """Look for dead workers every half heartbeat TTL, until the worker stops."""
        pause_s = self._beat.ttl_s / 2
        while True:
            await anyio.sleep(pause_s)
            if self._gate.stopping:
                return  # or it would take back what it hands to others
            if not self._beat.may_reclaim:
                continue
            try:
                more = await self.once()
                pause_s = 0.0 if more else self._beat.ttl_s / 2
            except (RedisError, OSError) as error:
                self._beat.note_failure()
                log.warning("reclaim failed", error=str(error))

    async def once(self) -> bool:
        """Take over what can be taken now; whether there may be more.

        Raises redis-py's errors; nothing taken is forgotten.
        """
        taken = 0
        if not any(self._suspects.values()) and self._held.room:
            for lane in self._lanes:
                taken = max(taken, await self._take(lane))
        if any(self._suspects.values()):
            await self._retry()
        return taken >= MOST

    async def _take(self, lane: Lane) -> int:
        most = max(1, min(MOST, self._held.room))
        taken = await run(self._store, queue_scripts.claim(lane, self._beat.consumer, most))
        if not taken:
            return 0
        returned: list[Entry] = []
        for entry_id, fields, deliveries, handed_back in taken:
            if handed_back:
                returned.append((entry_id, fields))
            else:
                self._held.park(lane, [entry_id])
                suspect = _Suspect(lane, (entry_id, fields))
                self._suspects[GROUPS.get(deliveries, 1)].append(suspect)
        self._counters.count("*", "deliveries_reclaimed", len(taken))
        log.warning("deliveries reclaimed", lane=lane.lane, entries=len(taken))
        if returned:
            self._intakes[lane.tag].accept(lane, returned)
        return len(taken)

    async def _retry(self) -> None:
        """Retry suspects with nothing else under way, the largest groups first."""
        await self._gate.pause()
        try:
            await self._held.wait_until(lambda held: not len(held))
            for size, waiting in sorted(self._suspects.items(), reverse=True):
                while waiting and not self._gate.stopping:
                    group = [waiting[i] for i in range(min(size, len(waiting)))]
                    await self._retry_together(group, alone=size == 1)
                    for _ in group:
                        waiting.popleft()
        finally:
            self._gate.resume()

    async def _retry_together(self, group: Sequence[_Suspect], *, alone: bool) -> None:
        for lane, entry in group:
            if alone and await self._is_poison(lane, entry[0]):
                message = f"every worker that tried it alone died ({self._poison_limit} times)"
                bad = Bad(read_envelope(*entry), entry[1] or [], "poison", message)
                self._held.add(lane, [entry[0]])
                self._outbox.bury(lane, bad)
            else:
                self._intakes[lane.tag].accept(lane, [entry])
        await self._held.wait_until(lambda held: not len(held))
        if alone:
            for lane, entry in group:
                field = queue_scripts.solo_field(lane, entry[0])
                await self._store.hdel(names.solo(lane.tag, lane.pool).decode(), field)

    async def _is_poison(self, lane: Lane, entry_id: bytes) -> bool:
        call = queue_scripts.count_solo(lane, entry_id, self._beat.consumer)
        before = await run(self._store, call)
        return int(before) >= self._poison_limit
