"""Fills: finished answers are written to the store in groups, then their flights land.

Group commit: while one write is under way, the answers that arrive are gathered for the next. The
fill comes before the replies, so a crash between the two replays as a hit.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

import anyio
import structlog
from anyio.lowlevel import checkpoint_if_cancelled

from askonce_queue.answer_scripts import Fill, Release
from askonce_queue.errors import StoreUnavailable
from askonce_queue.scripts import CHUNK
from askonce_worker.cache.entry import MOST_TAG_BYTES, Entry
from askonce_worker.cache.policy import Lifetime
from askonce_worker.cache.store_tier import StoreTier
from askonce_worker.calls import NewAnswer
from askonce_worker.clock import Clock
from askonce_worker.flights import Flight, FlightEnd
from askonce_worker.landing import Landing
from askonce_worker.leases import Leases

RETRY_S = 0.1
"""The pause before answers are written again to a shard that was away."""

log = structlog.get_logger("askonce.fills")

_ENDS = {"f": FlightEnd.FILLED, "x": FlightEnd.FENCED, "i": FlightEnd.INVALIDATED}


class _Finished(NamedTuple):
    flight: Flight
    new: NewAnswer
    lifetime: Lifetime


class Fills:
    """Writes answers and lands their flights; one loop a shard."""

    def __init__(
        self,
        tier: StoreTier,
        clock: Clock,
        rng: random.Random,
        leases: Leases,
        landing: Landing,
        shards: int,
    ) -> None:
        self._tier = tier
        self._clock = clock
        self._rng = rng
        self._leases = leases
        self._landing = landing
        self._finished: list[list[_Finished]] = [[] for _ in range(shards)]
        self._bells = [anyio.Event() for _ in range(shards)]

    def put(self, flight: Flight, new: NewAnswer) -> None:
        """Take the answer of a flight; one that may not be kept lands at once."""
        policy = flight.task.policy
        lifetime = policy.lifetime(new.answer, flight.most_ttl_s, self._rng)
        finished = _Finished(flight, new, lifetime)
        if not self._leases.may_fill(flight):
            self._land(finished, FlightEnd.FENCED if flight.leased_once else FlightEnd.UNKEPT)
            return
        self._finished[flight.shard].append(finished)
        self._bells[flight.shard].set()

    async def run(self, shard: int) -> None:
        """Write what is finished, for ever."""
        while True:
            await checkpoint_if_cancelled()
            finished = self._finished[shard]
            if not finished:
                self._bells[shard] = anyio.Event()
                await self._bells[shard].wait()
                continue
            batch, self._finished[shard] = finished[:CHUNK], finished[CHUNK:]
            await self._write(shard, batch)

    async def _write(self, shard: int, batch: Sequence[_Finished]) -> None:
        group = await self._fillable(shard, batch)
        if not group:
            return
        fills = [_fill(one) for one in group]
        for finished in group:
            # A renewal that overtakes the fill's reply would take the lease for lost.
            self._leases.drop(finished.flight)
            finished.flight.filling = True
        written: tuple[float, str] | None = None
        began = self._clock.monotonic()
        try:
            with anyio.move_on_after(self._tier.uncancelled_s, shield=True):
                written = await self._tier.fill(shard, fills)
        except StoreUnavailable as error:
            log.warning("answers could not be kept", answers=len(group), error=str(error))
            # Their leases run out: who gave them back would make their askers wait for that too.
            for finished in self._keep_for_later(shard, group):
                self._land(finished, FlightEnd.UNKEPT)
            await anyio.sleep(RETRY_S)
            return
        if written is None:
            await self._give_back(shard, group)
        letters = written[1] if written else "u" * len(group)
        for finished, letter in zip(group, letters, strict=True):
            self._land(
                finished,
                _ENDS.get(letter, FlightEnd.UNKEPT),
                valid=letter in "fm",
                created_ms=written[0] if written else 0.0,
                born=began,
            )

    def _keep_for_later(self, shard: int, group: list[_Finished]) -> list[_Finished]:
        """Try again while the leases last, and return those whose askers wait for no store."""
        again = [one for one in group if one.flight.task.without_store == "wait"]
        for finished in again:
            finished.flight.filling = False
            self._leases.add(finished.flight)
        self._finished[shard][:0] = again
        return [one for one in group if one.flight.task.without_store != "wait"]

    async def _fillable(self, shard: int, batch: Sequence[_Finished]) -> list[_Finished]:
        """The answers that may be kept; the flights of the others land."""
        group: list[_Finished] = []
        for finished in batch:
            flight = finished.flight
            if not self._leases.may_fill(flight):
                self._land(finished, FlightEnd.FENCED)
            elif not flight.task.policy.admits(finished.new.answer):
                remember_ms = int(flight.task.policy.hit_for_miss_s * 1000)
                await self._give_back(shard, [finished], "U" if remember_ms else "", remember_ms)
                self._land(finished, FlightEnd.UNADMITTED)
            elif not flight.may_keep:
                await self._give_back(shard, [finished])
                self._land(finished, FlightEnd.UNADMITTED)
            elif len(_tag_text(flight).encode()) > MOST_TAG_BYTES:
                # An entry must name all tags that can take it back, or not be.
                await self._give_back(shard, [finished])
                self._land(finished, FlightEnd.UNKEPT)
            else:
                # Others may have joined since it was finished, with a shorter `ttl_s`.
                lifetime = flight.task.policy.lifetime(
                    finished.new.answer, flight.most_ttl_s, self._rng
                )
                group.append(finished._replace(lifetime=lifetime))
        return group

    async def _give_back(
        self,
        shard: int,
        group: Sequence[_Finished],
        kind: Literal["", "U"] = "",
        remember_ms: int = 0,
    ) -> None:
        """Answers that are not kept: let others lead, or (`U`) for a while ask for themselves."""
        try:
            await self._tier.release(
                shard,
                [
                    Release(one.flight.key, one.flight.token or b"", kind, remember_ms)
                    for one in group
                ],
            )
        except StoreUnavailable:
            log.warning("leases could not be given back: they run out", leases=len(group))

    def _land(
        self,
        finished: _Finished,
        end: FlightEnd,
        *,
        valid: bool = False,
        created_ms: float = 0.0,
        born: float | None = None,
    ) -> None:
        """Give the answer to all who wait; `valid`: lease and stamps held, memory may keep it."""
        flight = finished.flight
        now = self._clock.monotonic() if born is None else born
        self._leases.drop(flight)
        entry = Entry(
            finished.new.answer,
            finished.new.json,
            born=now,
            built=flight.built,
            kept=now + finished.lifetime.memory_s,
            tags=flight.entry_tags,
            shard=flight.shard,
            fresh_until=now + finished.lifetime.fresh_ms / 1000,
            created_ms=created_ms,
            unread=end is FlightEnd.FILLED,
            cost_nano=finished.new.cost_nano,
        )
        self._landing.answer(flight, entry, end, keep=valid)


def _fill(finished: _Finished) -> Fill:
    flight = finished.flight
    assert flight.token is not None
    fresh_ms, keep_ms, _ = finished.lifetime
    return Fill(flight.key, flight.token, fresh_ms, keep_ms, _tag_text(flight), finished.new.body)


def _tag_text(flight: Flight) -> str:
    return "\n".join(flight.entry_tags)
