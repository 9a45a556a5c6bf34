"""Fills: finished answers are written to the store in groups, then their flights land.

Group commit: while one write is under way, the answers that arrive are gathered for the next. The
fill comes before the replies, so a crash between the two replays as a hit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import anyio
import structlog
from anyio.lowlevel import checkpoint_if_cancelled

from askonce_queue.answer_scripts import Fill, Release
from askonce_queue.errors import StoreUnavailable
from askonce_queue.scripts import CHUNK
from askonce_worker.cache.entry import MOST_TAG_BYTES, Entry
from askonce_worker.cache.store_tier import UNCANCELLED_S, StoreTier
from askonce_worker.calls import NewAnswer
from askonce_worker.clock import Clock
from askonce_worker.flights import Flight, FlightEnd
from askonce_worker.landing import Landing
from askonce_worker.leases import Leases

log = structlog.get_logger("askonce.fills")

_ENDS = {"f": FlightEnd.FILLED, "x": FlightEnd.FENCED, "i": FlightEnd.INVALIDATED}


class _Finished(NamedTuple):
    flight: Flight
    new: NewAnswer


class Fills:
    """Writes answers and lands their flights."""

    def __init__(self, tier: StoreTier, clock: Clock, leases: Leases, landing: Landing) -> None:
        self._tier = tier
        self._clock = clock
        self._leases = leases
        self._landing = landing
        self._finished: list[_Finished] = []
        self._bell = anyio.Event()

    def put(self, flight: Flight, new: NewAnswer) -> None:
        """Take the answer of a flight."""
        self._finished.append(_Finished(flight, new))
        self._bell.set()

    async def run(self) -> None:
        """Write what is finished, for ever."""
        while True:
            await checkpoint_if_cancelled()
            if not self._finished:
                self._bell = anyio.Event()
                await self._bell.wait()
            batch, self._finished = self._finished[:CHUNK], self._finished[CHUNK:]
            await self._write(batch)

    async def _write(self, batch: Sequence[_Finished]) -> None:
        by_shard = await self._fillable(batch)
        if not by_shard:
            return
        fills = {shard: [_fill(one) for one in group] for shard, group in by_shard.items()}
        for group in by_shard.values():
            for finished in group:
                # A renewal that overtakes the fill's reply would take the lease for lost.
                self._leases.drop(finished.flight)
                finished.flight.filling = True
        written: dict[int, tuple[float, str] | None] = dict.fromkeys(by_shard)
        try:
            with anyio.move_on_after(UNCANCELLED_S, shield=True):
                written = await self._tier.fill(fills)
        except StoreUnavailable as error:
            log.warning("answers could not be kept", answers=len(batch), error=str(error))
        for shard, group in by_shard.items():
            result = written[shard]
            if result is None:
                await self._give_back(shard, group)
            letters = result[1] if result else "u" * len(group)
            for finished, letter in zip(group, letters, strict=True):
                self._land(finished, _ENDS.get(letter, FlightEnd.UNKEPT))

    async def _fillable(self, batch: Sequence[_Finished]) -> dict[int, list[_Finished]]:
        """The answers that may be kept, by shard; the flights of the others land."""
        by_shard: defaultdict[int, list[_Finished]] = defaultdict(list)
        for finished in batch:
            flight = finished.flight
            if not self._leases.may_fill(flight):
                self._land(finished, FlightEnd.FENCED if flight.leased_once else FlightEnd.UNKEPT)
            elif len(flight.tag_text.encode()) > MOST_TAG_BYTES:
                # An entry must name all tags that can take it back, or not be.
                await self._give_back(flight.shard, [finished])
                self._land(finished, FlightEnd.UNKEPT)
            else:
                by_shard[flight.shard].append(finished)
        return by_shard

    async def _give_back(self, shard: int, group: Sequence[_Finished]) -> None:
        """The store took no answers (memory pressure): let others lead."""
        try:
            await self._tier.release(
                {shard: [Release(one.flight.key, one.flight.token or b"") for one in group]}
            )
        except StoreUnavailable:
            log.warning("leases could not be given back: they run out", leases=len(group))

    def _land(self, finished: _Finished, end: FlightEnd) -> None:
        flight, now = finished.flight, self._clock.monotonic()
        self._leases.drop(flight)
        entry = Entry(
            finished.new.answer,
            finished.new.json,
            born=now,
            built=flight.built,
            kept=now + flight.task.memory_ttl_s,
            tags=tuple(flight.tags),
            shard=flight.shard,
        )
        self._landing.answer(flight, entry, end)


def _fill(finished: _Finished) -> Fill:
    flight = finished.flight
    assert flight.token is not None
    ttl_ms = int(flight.task.ttl_s * 1000)
    return Fill(flight.key, flight.token, ttl_ms, ttl_ms, flight.tag_text, finished.new.body)
