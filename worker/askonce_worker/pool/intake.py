"""The intake: fetches batches of one shard's lanes and hands them to the resolver.

A job that hits costs nothing of its own here: one XREADGROUP, one decode loop, one resolve call a
batch. After any error of a read the worker first looks at what is pending to it: the reply may have
been lost after the server had made the deliveries.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import anyio
import structlog
from redis.exceptions import RedisError, ResponseError

from askonce_queue import names, queue_scripts
from askonce_queue.envelope import read_envelope
from askonce_queue.queue_scripts import Lane, ensure_group
from askonce_queue.scripts import CHUNK
from askonce_queue.store import Store
from askonce_worker.clock import Clock
from askonce_worker.config import LaneWeights
from askonce_worker.pool.beat import Beat
from askonce_worker.pool.decode import Decoder, Entry
from askonce_worker.pool.delivery import Delivery
from askonce_worker.pool.gate import Gate
from askonce_worker.pool.held import Held
from askonce_worker.pool.outbox import Outbox

BLOCK_MS = 500
STRAY_CHECK_S = 5.0
STRAY_IDLE_MS = 5_000
"""Younger deliveries can be a reply still on its way."""
MOST_OVERDUE = 500
"""Deferred jobs past their deadline taken at once, of each lane."""

log = structlog.get_logger("askonce.intake")


class Intake:
    """Fetches for one shard. `resolve` takes the deliveries of a batch."""

    def __init__(
        self,
        store: Store,
        commands: Store,
        lanes: Sequence[Lane],
        *,
        beat: Beat,
        gate: Gate,
        held: Held,
        decoder: Decoder,
        resolve: Callable[[Sequence[Delivery]], None],
        outbox: Outbox,
        clock: Clock,
        batch: int,
        weights: LaneWeights | None = None,
    ) -> None:
        self._store = store
        self._commands = commands
        self._lanes = {lane.stream: lane for lane in lanes}
        self._deferred = {lane.deferred.stream: lane.deferred for lane in lanes}
        self._shard_tag = lanes[0].tag
        self._beat = beat
        self._gate = gate
        self._held = held
        self._decoder = decoder
        self._resolve = resolve
        self._outbox = outbox
        self._clock = clock
        self._batch = batch
        self._share = (weights or LaneWeights()).share("interactive")
        self._owed = 0.0
        """The part of a job that interactive has not had of the last fetches."""
        self._turns = itertools.cycle(self._lanes)
        self._full = False
        self._recover = True
        """At first too: the group must exist."""
        self._strays_due = clock.monotonic() + STRAY_CHECK_S
        self._rng = random.Random()
        self.read_at: float | None = None
        """When the last fetch succeeded, with or without jobs; monotonic."""

    async def run(self) -> None:
        """Fetch until the gate is closed for good."""
        failures = 0
        while True:
            await self._beat.wait_fresh(self._shard_tag)
            await self._held.wait_until(self._has_room)
            if not await self._gate.pass_through():
                return
            try:
                await self._step()
                failures = 0
            except (RedisError, OSError) as error:
                self._recover = True
                self._beat.note_failure(self._shard_tag)
                failures += 1
                log.warning("fetch failed", shard=self._shard_tag, error=str(error))
            finally:
                self._gate.stand_still()
            if failures:
                await anyio.sleep(self._rng.uniform(0, min(2.0, 0.05 * 2**failures)))

    def _has_room(self, held: Held) -> bool:
        """Whether to fetch: once full, only when the fetch is worth its round trip again."""
        if held.room == 0:
            self._full = True
        elif 4 * held.room >= min(self._batch, held.most):
            self._full = False
        return not self._full

    async def _step(self) -> None:
        try:
            if self._recover:
                for lane in self._every_lane():
                    await self._commands.run(ensure_group(lane))
                    await self._take_strays(lane, idle_ms=0)
                self._recover = False
            elif self._clock.monotonic() >= self._strays_due:
                for lane in self._every_lane():
                    await self._take_strays(lane, idle_ms=STRAY_IDLE_MS)
                self._strays_due = self._clock.monotonic() + STRAY_CHECK_S
            fetched = await self._fetch()
            self.read_at = self._clock.monotonic()
        except ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            for lane in self._every_lane():
                await self._commands.run(ensure_group(lane))
            return
        for stream, entries in fetched:
            self.accept(self._lanes[stream], entries)

    async def _fetch(self) -> list[tuple[bytes, list[Entry]]]:
        # COUNT is per stream, and what is resolved first is the first stream: interactive.
        streams, room = list(self._lanes), self._held.room
        count = self._batch
        if room < len(streams) * count:
            if fetched := await self._fetch_by_weight(streams, room):
                return fetched
            # There is nothing. With room for fewer than one of each, the lanes take turns to wait.
            count = room // len(streams)
            if count == 0:
                streams = [next(self._turns)]
                count = 1
        return await self._read(streams, count, block=True)

    async def _fetch_by_weight(
        self, streams: Sequence[bytes], room: int
    ) -> list[tuple[bytes, list[Entry]]]:
        """Share scarce room: each lane its part, bulk also what interactive does not need."""
        self._owed += room * self._share
        first = min(self._batch, int(self._owed))
        self._owed -= int(self._owed)
        fetched = await self._read(streams[:1], first) if first else []
        left = room - sum(len(entries) for _, entries in fetched)
        for stream in streams[1:] if left else ():
            fetched += await self._read([stream], min(self._batch, left))
        return fetched

    async def _read(
        self, streams: Sequence[bytes], count: int, *, block: bool = False
    ) -> list[tuple[bytes, list[Entry]]]:
        fetched: list[tuple[bytes, list[Entry]]] | None = await self._store.send(
            streams[0],
            *("XREADGROUP", "GROUP", names.GROUP, self._beat.consumer, "COUNT", count),
            *(("BLOCK", BLOCK_MS) if block else ()),
            "STREAMS",
            *streams,
            *([">"] * len(streams)),
        )
        return fetched or []

    @property
    def deferred_lanes(self) -> list[Lane]:
        """The lanes of deferred jobs."""
        return list(self._deferred.values())

    async def fetch_deferred(self) -> int:
        """Fetch deferred jobs, of each lane as many as there is room for; return how many came.

        Raises redis-py's errors; what the server gave away then is taken up by the next recovery.
        """
        came = 0
        for lane in self._deferred.values():
            if most := self._held.room_for_deferred(lane):
                came += await self._take_up(lane, most)
        return came

    async def look_at_deferred(self, most: int) -> bool:
        """Look at up to `most` deferred jobs of each lane that has no room for them.

        Those that still cannot be asked go back, to the end; return whether there may be more.
        Raises as `fetch_deferred`.
        """
        more = False
        for lane in self._deferred.values():
            count = min(most, self._held.room_to_look)
            if count and not self._held.room_for_deferred(lane):
                more |= await self._take_up(lane, count, only_look=True) >= min(count, self._batch)
        return more

    async def _take_up(self, lane: Lane, most: int, *, only_look: bool = False) -> int:
        """Fetch deferred jobs of a lane; return how many came."""
        came = 0
        if not self._beat.fresh(self._shard_tag):
            return came
        try:
            fetched = await self._read([lane.stream], min(self._batch, most))
        except (RedisError, OSError):
            self._recover = True
            raise
        for _, entries in fetched:
            self.accept(lane, entries, only_look=only_look)
            came += len(entries)
            await self._mind_deadlines(lane, entries)
        return came

    async def _mind_deadlines(self, lane: Lane, entries: Sequence[Entry]) -> None:
        """From now on it is us who mind the deadlines of these; the store need not."""
        timed = [entry_id for entry_id, fields in entries if fields and b"d" in fields[::2]]
        if timed:
            with suppress(RedisError, OSError):  # else it forgets them when they have passed
                await self._commands.send(lane.due, "ZREM", lane.due, *timed)

    async def take_overdue(self) -> int:
        """Take up deferred jobs whose deadline has passed; return how many were looked at.

        Raises redis-py's errors; what the server gave away then is taken up by the next recovery.
        """
        if not self._beat.fresh(self._shard_tag):
            return 0
        lanes = self.deferred_lanes
        results = await self._commands.run_many(
            [queue_scripts.take_overdue(lane, self._beat.consumer, MOST_OVERDUE) for lane in lanes]
        )
        seen = 0
        for lane, result in zip(lanes, results, strict=True):
            if isinstance(result, Exception):
                self._recover = True
                raise result
            looked_at, taken = result
            self.accept(lane, taken)
            seen += int(looked_at)
        return seen

    def _every_lane(self) -> list[Lane]:
        return [*self._lanes.values(), *self._deferred.values()]

    def accept(self, lane: Lane, entries: Sequence[Entry], *, only_look: bool = False) -> None:
        """Hold deliveries and start on them; `only_look`: those that cannot be asked may go."""
        self._held.add(lane, [entry_id for entry_id, _ in entries])
        good, bad = self._decoder.read(lane, entries)
        for one in bad:
            self._outbox.bury(lane, one)
        if only_look:
            for delivery in good:
                delivery.only_looked_at = True
        if good:
            self._resolve(good)

    def is_overdue(self, entry: Entry) -> bool:
        """Whether the deadline of a job has passed; no more of it is looked at."""
        return self._decoder.is_overdue(read_envelope(*entry))

    async def _take_strays(self, lane: Lane, idle_ms: int) -> None:
        """Take up deliveries that the server gave us and that never reached us."""
        start: bytes = b"-"
        while True:
            pending: list[list[Any]] = await self._commands.send(
                lane.stream,
                *("XPENDING", lane.stream, names.GROUP),
                *("IDLE", idle_ms, start, "+", CHUNK, self._beat.consumer),
            )
            strays = [row for row in pending if not self._held.has(lane, row[0])]
            if strays:
                log.warning("strays taken up", lane=lane.lane, entries=len(strays))
            for entry_id, _, _, deliveries in strays:
                # RETRYCOUNT: taking up one's own delivery is not another delivery.
                claimed: list[Entry] = await self._commands.send(
                    lane.stream,
                    *("XCLAIM", lane.stream, names.GROUP, self._beat.consumer, 0, entry_id),
                    *("RETRYCOUNT", deliveries),
                )
                self.accept(lane, claimed)
            if len(pending) < CHUNK:
                return
            start = b"(" + pending[-1][0]
