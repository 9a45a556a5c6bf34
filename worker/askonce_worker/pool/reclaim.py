"""Reclaim: takes over what dead workers held, without letting one poisonous job condemn others.

What a draining worker handed back is simply taken. What a dead worker held is suspect: one of those
jobs may have killed it. Suspects are retried with nothing else under way in this worker, in groups
that shrink with every delivery (64, 8, 1); only a crash of a job that was tried alone counts
towards the poison limit. (DESIGN retries every suspect alone at once; after a plain kill −9 of a
worker with 2,000 cold jobs in hand that is 2,000 model calls one after the other.)
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import anyio
import structlog
from redis.exceptions import RedisError

from askonce_queue import names, queue_scripts
from askonce_queue.envelope import read_envelope
from askonce_queue.queue_scripts import Lane
from askonce_queue.store import Store
from askonce_worker.observe.counters import Counters
from askonce_worker.pool.beat import Beat
from askonce_worker.pool.decode import Bad, Entry
from askonce_worker.pool.gate import Gate
from askonce_worker.pool.held import Held
from askonce_worker.pool.intake import Intake
from askonce_worker.pool.outbox import Outbox

MOST = 256
"""Most deliveries taken a lane and round."""
LOOK_EVERY_S = 1.0
GROUPS = {1: 64, 2: 8}
"""How many suspects are retried together, by deliveries so far; after more deliveries, alone."""

log = structlog.get_logger("askonce.reclaim")


class _Suspect(NamedTuple):
    lane: Lane
    entry: Entry


class Reclaim:
    """Takes over deliveries for one worker. `intakes` and `outboxes` are by shard tag."""

    def __init__(
        self,
        store: Store,
        lanes: Sequence[Lane],
        *,
        beat: Beat,
        gate: Gate,
        held: Held,
        outboxes: Mapping[str, Outbox],
        counters: Counters,
        intakes: Mapping[str, Intake],
        poison_limit: int,
    ) -> None:
        self._store = store
        self._lanes = lanes
        self._beat = beat
        self._gate = gate
        self._held = held
        self._outboxes = outboxes
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
            more = await self.once()
            pause_s = 0.0 if more else self._beat.ttl_s / 2

    async def once(self) -> bool:
        """Take over what can be taken now; whether there may be more. Nothing is forgotten."""
        taken = 0
        if not any(self._suspects.values()) and self._held.room:
            for lane in self._lanes:
                if self._beat.may_reclaim(lane.tag):
                    taken = max(taken, await self._take(lane))
        self._let_overdue_go()
        # A delivery that waits for a dead shard would be waited for, and all fetching with it.
        if any(self._suspects.values()) and not self._store.down():
            await self._retry()
        return taken >= MOST

    async def _take(self, lane: Lane) -> int:
        most = max(1, min(MOST, self._held.room))
        try:
            taken = await self._store.run(queue_scripts.claim(lane, self._beat.consumer, most))
        except (RedisError, OSError) as error:
            self._beat.note_failure(lane.tag)
            log.warning("reclaim failed", shard=lane.tag, error=str(error))
            return 0
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

    def _let_overdue_go(self) -> None:
        """Suspects whose deadline has passed are not tried: there is nothing to wait for."""
        for size, waiting in self._suspects.items():
            overdue = [one for one in waiting if self._intakes[one.lane.tag].is_overdue(one.entry)]
            for lane, entry in overdue:
                self._intakes[lane.tag].accept(lane, [entry])
            if overdue:
                self._suspects[size] = deque(one for one in waiting if one not in overdue)

    async def _retry(self) -> None:
        """Retry suspects with nothing else under way, the largest groups first."""
        await self._gate.pause()
        try:
            for size, waiting in sorted(self._suspects.items(), reverse=True):
                while waiting and not self._gate.stopping:
                    if not await self._is_quiet():
                        return  # they wait for the next round
                    group = [waiting[i] for i in range(min(size, len(waiting)))]
                    await self._retry_together(group, alone=size == 1)
                    for _ in group:
                        waiting.popleft()
        except (RedisError, OSError) as error:
            log.warning("suspects could not be retried, will be repeated", error=str(error))
        finally:
            self._gate.resume()

    async def _is_quiet(self) -> bool:
        """Wait a while until all that is held is answered, and nothing is under way."""
        with anyio.move_on_after(self._beat.ttl_s):
            await self._held.wait_until(self._all_answered)
        return self._all_answered(self._held)

    async def _until_answered(self) -> bool:
        """Wait for what is under way; False when a shard went down, on which it may wait long."""
        while not self._all_answered(self._held):
            if self._store.down():
                return False
            with anyio.move_on_after(LOOK_EVERY_S):
                await self._held.wait_until(self._all_answered)
        return True

    def _all_answered(self, held: Held) -> bool:
        return len(held) <= sum(outbox.size for outbox in self._outboxes.values())

    async def _retry_together(self, group: Sequence[_Suspect], *, alone: bool) -> None:
        for lane, entry in group:
            if alone and await self._is_poison(lane, entry[0]):
                message = f"every worker that tried it alone died ({self._poison_limit} times)"
                bad = Bad(read_envelope(*entry), entry[1] or [], "poison", message)
                self._held.add(lane, [entry[0]])
                self._outboxes[lane.tag].bury(lane, bad)
            else:
                self._intakes[lane.tag].accept(lane, [entry])
        if await self._until_answered() and alone:
            for lane, entry in group:
                key = names.solo(lane.tag, lane.pool)
                await self._store.send(key, "HDEL", key, queue_scripts.solo_field(lane, entry[0]))

    async def _is_poison(self, lane: Lane, entry_id: bytes) -> bool:
        call = queue_scripts.count_solo(lane, entry_id, self._beat.consumer)
        before = await self._store.run(call)
        return int(before) >= self._poison_limit
