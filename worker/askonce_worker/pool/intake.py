"""The intake: fetches batches of one shard's lanes and hands them to the resolver.

A job that hits costs nothing of its own here: one XREADGROUP, one decode loop, one resolve call a
batch. After any error of a read the worker first looks at what is pending to it: the reply may have
been lost after the server had made the deliveries.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import structlog
from redis.exceptions import RedisError, ResponseError

from askonce_queue import names
from askonce_queue.queue_scripts import Lane, ensure_group
from askonce_queue.scripts import CHUNK
from askonce_queue.store import Store
from askonce_worker.clock import Clock
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
        # COUNT is per stream. With room for fewer than one of each, the lanes take turns.
        streams = list(self._lanes)
        count = min(self._batch, self._held.room // len(streams))
        if count == 0:
            streams = [next(self._turns)]
            count = 1
        fetched: list[tuple[bytes, list[Entry]]] | None = await self._store.send(
            streams[0],
            *("XREADGROUP", "GROUP", names.GROUP, self._beat.consumer),
            *("COUNT", count, "BLOCK", BLOCK_MS, "STREAMS"),
            *streams,
            *([">"] * len(streams)),
        )
        return fetched or []

    async def fetch_deferred(self, most: int) -> int:
        """Fetch deferred jobs, at most `most` of all lanes; return how many came.

        Raises redis-py's errors; what the server gave away then is taken up by the next recovery.
        """
        if not self._beat.fresh(self._shard_tag):
            return 0
        count = max(1, min(self._batch, most // len(self._deferred)))
        streams = list(self._deferred)
        try:
            fetched: list[tuple[bytes, list[Entry]]] | None = await self._store.send(
                streams[0],
                *("XREADGROUP", "GROUP", names.GROUP, self._beat.consumer, "COUNT", count),
                "STREAMS",
                *streams,
                *([">"] * len(streams)),
            )
        except (RedisError, OSError):
            self._recover = True
            raise
        for stream, entries in fetched or ():
            self.accept(self._deferred[stream], entries)
        return sum(len(entries) for _, entries in fetched or ())

    def _every_lane(self) -> list[Lane]:
        return [*self._lanes.values(), *self._deferred.values()]

    def accept(self, lane: Lane, entries: Sequence[Entry]) -> None:
        """Hold deliveries and start on them."""
        self._held.add(lane, [entry_id for entry_id, _ in entries])
        good, bad = self._decoder.read(lane, entries)
        for one in bad:
            self._outbox.bury(lane, one)
        if good:
            self._resolve(good)

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
