"""The verifier: asks a model again about an answer that was served, and replaces one that differs.

It asks for nobody, so it stands behind everybody: it takes a slot only where there are some to
spare and no flight waits for one. The call itself needs no lease, because its answer is only
compared. To keep it, one is taken; but a fill says that its answer was computed since its lease was
granted. So the answer at hand is kept only if nothing was invalidated since before the model was
asked, which the lease's stamp tells. Otherwise the model is asked once more, under the lease, as by
any flight that refreshes.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple

import anyio
import structlog

from askonce_queue.answer_scripts import Demand
from askonce_queue.errors import InvalidJob, StoreUnavailable
from askonce_queue.reply import Answer
from askonce_queue.shards import shard_of_digest
from askonce_worker.asks import Ask
from askonce_worker.backend import Backend
from askonce_worker.cache.canonical import canonical
from askonce_worker.cache.entry import Entry
from askonce_worker.cache.memory import MemoryTier
from askonce_worker.cache.stamps import Stamps
from askonce_worker.cache.store_tier import Batch, Busy, Hit, Leased, Result, StoreTier
from askonce_worker.calls import Call, Calls, NewAnswer
from askonce_worker.clock import Clock
from askonce_worker.flights import Flight
from askonce_worker.leases import Leases
from askonce_worker.models.batching import NotAsked
from askonce_worker.models.protocol import ModelFailure
from askonce_worker.waiting_room import WaitingRoom

log = structlog.get_logger("askonce.verifier")


class Replacement(enum.Enum):
    """Every way the replacing of an answer that differs can end."""

    FILLED = "filled"
    """The fresh answer is on its way to the store, under a lease."""
    ASKED_ANEW = "asked_anew"
    """Something was invalidated meanwhile: the model is asked once more, under a lease."""
    DROPPED = "dropped"
    """The task does not keep such an answer as the fresh one: there is none any more."""
    LEFT = "left"
    """Somebody else has replaced it, or is about to."""
    FAILED = "failed"
    """The store could not be asked, or gave no lease: the old answer stays until its TTL."""


class Comparison(NamedTuple):
    """A stored answer, held against a fresh one.

    `age_s` is how old it was when the model was asked. `replacement` is None where they agree.
    """

    agrees: bool
    age_s: float
    replacement: Replacement | None


class Verifier:
    """Compares and replaces. `answered` takes a flight with its answer, `take_off` one without."""

    def __init__(
        self,
        tier: StoreTier,
        clock: Clock,
        stamps: Stamps,
        memory: MemoryTier[Entry],
        *,
        shards: int,
        calls: Calls,
        leases: Leases,
        room: WaitingRoom,
        answered: Callable[[Flight, NewAnswer], None],
        take_off: Callable[[Flight], None],
    ) -> None:
        self._tier = tier
        self._clock = clock
        self._stamps = stamps
        self._memory = memory
        self._shards = shards
        self._calls = calls
        self._leases = leases
        self._room = room
        self._answered = answered
        self._take_off = take_off

    def reserve(self, backend: Backend) -> bool:
        """Take a slot of a model if at most half of them are in use then and nobody waits for one.

        The slot goes to the next call of `verify`. A model with one slot is asked when it is idle.
        """
        spare = backend.in_flight < max(1, backend.slots // 2)
        if not spare or backend.outage or self._room.is_wanted(backend):
            return False
        if backend.free_slots <= 0:
            backend.wanted()
            return False
        backend.in_flight += 1
        return True

    async def verify(self, ask: Ask, entry: Entry) -> Comparison | None:
        """Compare an answer that `ask` was served with a fresh one; its slot is reserved.

        None: there is nothing to compare, because the model gave no answer, or the stored one was
        invalidated meanwhile.
        """
        task = ask.task
        flight = Flight(ask, shard_of_digest(ask.key, self._shards), self._clock.monotonic())
        flight.asks.clear()  # it has its answer already
        flight.tags.update(entry.tags)
        inv = self._stamps.inv(flight.shard)
        comparison: Comparison | None = None
        try:
            if not await task.backend.admit():
                return None  # it is down: this is not how to find out whether it is back
            new = await self._calls.ask(Call.of(flight, "verify"))
            if self._stamps.valid(flight.shard, entry.built, entry.tags, ask.tags, ask.key):
                agrees = agree(entry.answer, new.answer)
                replacement = None if agrees else await self._replace(flight, new, inv)
                comparison = Comparison(agrees, max(0.0, flight.began - entry.born), replacement)
        except (ModelFailure, NotAsked):
            pass  # logged and counted where it happened
        finally:
            if not flight.flying:  # else its slot is the flight's
                self._room.slot_freed(task.backend)
        return comparison

    async def _replace(self, flight: Flight, new: NewAnswer, inv: float) -> Replacement:
        """Put the fresh answer where the old one was. `inv` is from before the model was asked."""
        result: Result = None
        try:
            # Cancelled between the grant and its news, the lease would be nobody's for its TTL.
            with anyio.fail_after(self._tier.uncancelled_s, shield=True):
                if not flight.task.policy.admits(new.answer):
                    self._memory.discard(flight.key)
                    await self._tier.forget(flight.shard, flight.key)
                    return Replacement.DROPPED
                ((result,),) = await self._tier.look_up([self._batch(flight)])
        except (StoreUnavailable, TimeoutError) as error:
            log.warning("an answer that differs stays", task=flight.task.name, error=str(error))
            return Replacement.FAILED
        if isinstance(result, Hit | Busy):
            return Replacement.LEFT
        if not isinstance(result, Leased):
            return Replacement.FAILED
        flight.hold(result)
        if flight.built != inv:
            flight.refresh = True
            self._take_off(flight)
            return Replacement.ASKED_ANEW
        flight.flying = False
        self._leases.add(flight)
        self._answered(flight, new)
        return Replacement.FILLED

    def _batch(self, flight: Flight) -> Batch:
        """A look-up that takes the lease unless there is an answer from after the model was asked.

        Whoever computes it now will do as well: unlike a refresh, this takes no leader's lease.
        """
        since_ms = (self._clock.monotonic() - flight.began) * 1000
        demand = Demand(max_age_ms=since_ms - 1)  # the store counts in whole ones
        return Batch(
            flight.shard,
            [flight.key],
            [flight.tag_text],
            [flight.task.policy.memory_ttl_s],
            1,
            {0: demand.pack()},
        )


def agree(stored: Answer, fresh: Answer) -> bool:
    """Whether two answers say the same: by their labels, or without any, by their values."""
    if stored.label is not None or fresh.label is not None:
        return stored.label == fresh.label
    try:
        return canonical(stored.value) == canonical(fresh.value)
    except InvalidJob:  # kept all the same, as MessagePack has more than JSON
        return bool(stored.value == fresh.value)
