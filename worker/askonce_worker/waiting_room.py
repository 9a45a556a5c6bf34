"""The waiting room: flights that need the store's word, asked in batches.

A new flight is asked about at once; one whose question is being computed elsewhere is asked about
again with a backoff of 10 → 100 ms. One script answers all of them (`look_up.lua`): answers arrive
and dead leaders are replaced by the same mechanism. A waiter that has lost its patience takes a
live leader's lease over by compare-and-set.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Sequence

import anyio
import structlog
from anyio.lowlevel import checkpoint_if_cancelled

from askonce_queue.answer_scripts import Release
from askonce_queue.errors import StoreUnavailable
from askonce_queue.reply import ErrorInfo
from askonce_worker.asks import Ask
from askonce_worker.backend import Backend
from askonce_worker.cache.entry import Entry
from askonce_worker.cache.stamps import Stamps
from askonce_worker.cache.store_tier import (
    Batch,
    Busy,
    Free,
    Hit,
    Leased,
    Rejected,
    Result,
    Spared,
    StoreTier,
    Uncacheable,
)
from askonce_worker.clock import Clock
from askonce_worker.config import LaneWeights
from askonce_worker.flights import Flight, FlightEnd
from askonce_worker.landing import Landing
from askonce_worker.slot_queue import SlotQueue
from askonce_worker.waiting_queue import DueQueue, KeptSlots

BATCH = 256
FIRST_BACKOFF_S = 0.010
LONGEST_BACKOFF_S = 0.100
PATIENCE_S = 0.25
"""How long a look-up may take: then its shard is silent, and makes room for the others."""
LONGEST_SLOT_BACKOFF_S = 1.0
"""For flights that wait for a slot of ours: a freed slot wakes them, polling only finds luck."""
LONGEST_OUTAGE_BACKOFF_S = 10.0
"""The same while their model is down."""

log = structlog.get_logger("askonce.waiting_room")


class WaitingRoom:
    """All flights of a process that have neither answer nor lease yet.

    `take_off` is called with a flight that may be computed here; its slot is already taken, and
    comes back through `slot_freed`. `resolve` takes asks that need another look.
    """

    def __init__(
        self,
        tier: StoreTier,
        clock: Clock,
        rng: random.Random,
        landing: Landing,
        stamps: Stamps,
        shards: int,
        weights: LaneWeights,
        take_off: Callable[[Flight], None],
        resolve: Callable[[Sequence[Ask]], None],
    ) -> None:
        self._tier = tier
        self._clock = clock
        self._rng = rng
        self._landing = landing
        self._stamps = stamps
        self._take_off = take_off
        self._resolve = resolve
        self._queues = [DueQueue() for _ in range(shards)]
        self._for_slot: defaultdict[str, SlotQueue] = defaultdict(lambda: SlotQueue(weights))

    def enter(self, flight: Flight) -> None:
        """Ask about `flight` with the next batch."""
        queue = self._queues[flight.shard]
        if queue.silent:
            self._for_slot[flight.task.backend.name].chosen.discard(flight)
            if flight.may_defer():
                self._landing.defer(flight)
                return
        queue.due_now.append(flight)
        queue.bell.set()

    def enter_alone(self, flight: Flight) -> None:
        """Let a flight that shares nothing (not cacheable) take off as soon as a slot is free."""
        if self._landing.turn_away(flight):
            self.left(flight)
            return
        backend = flight.task.backend
        self._for_slot[backend.name].chosen.discard(flight)  # if its turn has come, it is spare
        if self._spare_slots(backend) > 0:
            self._take_off_alone(flight)
        elif flight.may_defer():
            self._landing.defer(flight)
        else:
            flight.waits_alone = True
            self._for_slot[backend.name].put(flight)
            self._listen_to(backend)

    def _take_off_alone(self, flight: Flight) -> None:
        flight.task.backend.in_flight += 1
        flight.waits_alone = False
        flight.flying = True
        self._take_off(flight)

    def hurry(self, flight: Flight) -> None:
        """A flight has become interactive: if it waits for a slot, it waits with those."""
        if flight.queued_in == "bulk":
            self._for_slot[flight.task.backend.name].put(flight)

    def left(self, flight: Flight) -> None:
        """A flight waits here no more, or for no slot: its turn, if it had come, is another's."""
        backend = flight.task.backend
        chosen = self._for_slot[backend.name].chosen
        if flight in chosen:
            chosen.discard(flight)
            if self._spare_slots(backend) > 0:  # it may have sunk since
                self._wake_next(backend)

    def is_wanted(self, backend: Backend) -> bool:
        """Whether a flight waits for a slot of a model."""
        queue = self._for_slot[backend.name]
        return bool(queue) or any(not (one.landed or one.flying) for one in queue.chosen)

    def _spare_slots(self, backend: Backend) -> int:
        """Free slots that are nobody's: each whose turn has come has one."""
        chosen = self._for_slot[backend.name].chosen
        spare = backend.free_slots - len(chosen)
        if chosen and spare <= 0:
            chosen.difference_update([one for one in chosen if one.landed or one.flying])
            spare = backend.free_slots - len(chosen)
        return spare

    def slot_freed(self, backend: Backend) -> None:
        """Take back a flight slot; the next that waits for one is served."""
        backend.in_flight -= 1
        if self._spare_slots(backend) > 0:
            self._wake_next(backend)
        elif backend.down:
            self._turn_away(backend)

    def opened(self, backend: Backend) -> None:
        """A limit of a model has opened: as many are served as there is room for."""
        for _ in range(self._spare_slots(backend)):
            if not self._wake_next(backend):
                return

    def _listen_to(self, backend: Backend) -> None:
        """Have a model's limits tell when they open, and know that somebody waits."""
        if self.opened not in backend.when_opened:
            backend.when_opened.append(self.opened)
            backend.who_waits.append(self.waiting)
        backend.wanted()

    def waiting(self, backend: Backend) -> int:
        """How many flights wait for a slot of a model; some may have got an answer meanwhile."""
        queue = self._for_slot[backend.name]
        return len(queue) + len(queue.chosen)

    def _wake_next(self, backend: Backend) -> bool:
        """Serve the next that waits for a slot; False when nobody does."""
        queue = self._for_slot[backend.name]
        while (flight := queue.pop()) is not None:
            if flight.waits_alone:
                if self._landing.turn_away(flight):
                    continue  # that leaves the slot to the next
                self._take_off_alone(flight)
                return True
            queue.chosen.add(flight)
            self.enter(flight)
            if flight in queue.chosen:  # else its shard is silent
                return True
        return False

    def _turn_away(self, backend: Backend) -> None:
        """Let nobody wait alone for a model that is down, if there is another."""
        for flight in list(self._for_slot[backend.name]):
            if flight.waits_alone:
                self._landing.turn_away(flight)

    async def run(self, shard: int) -> None:
        """Ask about what is due, for ever; what comes while one batch is asked is the next."""
        queue = self._queues[shard]
        while True:
            # All that follows may be shielded: without this, a cancelled loop could go on for ever.
            await checkpoint_if_cancelled()
            due = queue.take_due(self._clock.monotonic())
            if due:
                await self._ask(shard, due)
                continue
            queue.bell = anyio.Event()
            wait_s = queue.next_due - self._clock.monotonic()
            with anyio.move_on_after(max(0.0, wait_s)):
                await queue.bell.wait()

    def _ask_later(self, flight: Flight, longest_s: float) -> None:
        flight.backoff_s = min(longest_s, max(FIRST_BACKOFF_S, 2 * flight.backoff_s))
        due = self._clock.monotonic() + flight.backoff_s * self._rng.uniform(0.75, 1.0)
        self._queues[flight.shard].put_later(flight, due)

    async def _ask(self, shard: int, due: list[Flight]) -> None:
        groups: defaultdict[tuple[str, bool], list[Flight]] = defaultdict(list)
        for flight in due:
            groups[flight.task.backend.name, flight.task.over_budget].append(flight)
        parts = [
            flights[start : start + BATCH]
            for (name, _), group in groups.items()
            for flights in [sorted(group, key=self._for_slot[name].rank)]
            for start in range(0, len(flights), BATCH)
        ]
        batches = [self._batch(part) for part in parts]
        slots = [
            KeptSlots(part[0].task.backend, batch.max_new_leases)
            for part, batch in zip(parts, batches, strict=True)
        ]
        answers: list[list[Result]] = [[None] * len(part) for part in parts]
        outage: StoreUnavailable | None = None
        too_long = asyncio.get_running_loop().call_later(PATIENCE_S, self._no_answer, shard, slots)
        try:
            # Cancelled between the grant and its news, leases would be nobody's until they run out.
            with anyio.fail_after(self._tier.uncancelled_s, shield=True):
                answers = await self._tier.look_up(batches)
        except StoreUnavailable as error:
            outage = error
        except TimeoutError:
            outage = StoreUnavailable("the store did not answer in time")
        finally:
            too_long.cancel()
            self._queues[shard].silent = False
        too_late: list[Release] = []
        for part, kept, results in zip(parts, slots, answers, strict=True):
            for flight, result in zip(part, results, strict=True):
                # One that was due twice may have been deferred meanwhile.
                if isinstance(result, Leased) and (flight.landed or not kept.take()):
                    too_late.append(Release(flight.key, result.token))
                    result = Free()  # noqa: PLW2901 -- all that is left of it
                if not flight.landed:
                    self._sort(flight, result)
        self._pass_on(due)
        self._free(slots)
        if too_late:
            await self._give_back(shard, too_late)
        if outage is None:
            await self._lose_patience(shard, due)
        else:
            log.warning("look-up failed", shard=shard, flights=len(due), error=str(outage))
            self._do_without_store(due, outage)

    def _no_answer(self, shard: int, slots: Sequence[KeptSlots]) -> None:
        """A shard is silent: nothing of others may wait for it, neither for slots nor for room."""
        self._free(slots)
        queue = self._queues[shard]
        queue.silent = True
        waiting, queue.due_now = queue.due_now, []
        for flight in waiting:
            self.left(flight)
            if not (flight.landed or flight.flying):
                self.enter(flight)

    def _pass_on(self, flights: Sequence[Flight]) -> None:
        """The turn of some may have come while they were asked about; not all need it any more."""
        for flight in flights:
            if flight.landed or flight.flying:
                self.left(flight)

    def _free(self, slots: Sequence[KeptSlots]) -> None:
        """Let others have the slots that a look-up has not needed, or not yet."""
        for kept in slots:
            for _ in range(kept.give_up()):
                self.slot_freed(kept.backend)

    async def _give_back(self, shard: int, releases: Sequence[Release]) -> None:
        try:
            with anyio.move_on_after(self._tier.uncancelled_s, shield=True):
                await self._tier.release(shard, releases)
        except StoreUnavailable:
            log.warning("leases could not be given back: they run out", leases=len(releases))

    def _do_without_store(self, flights: Sequence[Flight], outage: StoreUnavailable) -> None:
        """Let those go that need not wait for the store to come back."""
        for flight in flights:
            if flight.landed:
                continue
            match flight.task.without_store:
                case "wait":
                    if flight.may_defer():
                        self._landing.defer(flight)
                        self.left(flight)
                case "call":
                    self._landing.count_outage(flight)
                    self.enter_alone(flight)
                case "raise":
                    error = ErrorInfo("store_unavailable", str(outage))
                    self._landing.fail(flight, error, FlightEnd.NO_STORE, outage)
                    self.left(flight)

    def _batch(self, flights: list[Flight]) -> Batch:
        """Reserve the slots and describe the look-up of flights of one shard and one model.

        All of them are of tasks over their budget, or none: those need no slots.
        """
        backend = flights[0].task.backend
        for flight in flights:
            flight.looked_up = len(flight.asks)
        self._for_slot[backend.name].chosen.difference_update(flights)
        room = 0 if flights[0].task.over_budget else max(0, self._spare_slots(backend))
        reserved = min(room, len(flights))
        backend.in_flight += reserved
        return Batch(
            flights[0].shard,
            [flight.key for flight in flights],
            [flight.tag_text for flight in flights],
            [flight.task.policy.memory_ttl_s for flight in flights],
            reserved,
            {number: demand for number, f in enumerate(flights) if (demand := f.demand())},
        )

    def _sort(self, flight: Flight, result: Result) -> None:
        """Send a flight where its result says; one that is leased has its slot."""
        match result:
            case Hit(entry):
                self._hit(flight, entry)
            case Leased():
                self._hold(flight, result)
            case _ if flight.only_if_cached:
                error = ErrorInfo("not_cached", "only_if_cached, and no stored answer will do")
                self._landing.fail(flight, error, FlightEnd.NOT_CACHED)
            case Busy(token):
                self._wait_for_leader(flight, token)
            case Free(spare):
                flight.spare = spare
                self._wait_for_slot(flight)
            case Rejected(error, spare):
                flight.spare = spare
                self._landing.fail(flight, error, FlightEnd.REJECTED)
            case Uncacheable():
                self.enter_alone(flight)
            case Spared():
                self._stand_in(flight, result)
            case None:
                self._ask_later(flight, LONGEST_SLOT_BACKOFF_S)

    def _hit(self, flight: Flight, entry: Entry) -> None:
        """Land; those who joined too late to be served this are looked at anew."""
        late = flight.split_late(entry, self._clock.monotonic(), self._stamps)
        self._landing.hit(flight, entry)
        if late:
            self._resolve(late)

    def _stand_in(self, flight: Flight, spared: Spared) -> None:
        """While the model is down, serve what there is to those who take it; the others wait."""
        if flight.task.backend.outage:
            self._landing.stand_in(flight, spared.spare)
        if not flight.landed:
            self._sort(flight, spared.result)

    def _hold(self, flight: Flight, lease: Leased) -> None:
        """Take off; where a stale answer will do, those who wait have it already."""
        flight.hold(lease)
        if lease.stale is not None:
            late = flight.split_late(lease.stale, self._clock.monotonic(), self._stamps)
            flight.unkept = not flight.may_keep
            self._landing.serve_stale(flight, lease.stale)
            flight.asks = late
        elif lease.spare is not None and flight.task.backend.outage:
            self._landing.stand_in(flight, lease.spare)  # it is a probe: it may take long to fail
        self._take_off(flight)

    def _wait_for_leader(self, flight: Flight, token: bytes) -> None:
        if flight.goes_elsewhere and not flight.wants_spare:  # whether there is one, the end tells
            self._landing.redirect(flight)
            return
        flight.note_busy(token, self._clock.monotonic())
        self._ask_later(flight, LONGEST_BACKOFF_S)

    def _wait_for_slot(self, flight: Flight) -> None:
        if self._landing.turn_away(flight):
            return
        if flight.may_defer():
            self._landing.defer(flight)
            return
        self._for_slot[flight.task.backend.name].put(flight)
        self._listen_to(flight.task.backend)
        outage = flight.task.backend.outage
        self._ask_later(flight, LONGEST_OUTAGE_BACKOFF_S if outage else LONGEST_SLOT_BACKOFF_S)

    async def _lose_patience(self, shard: int, flights: list[Flight]) -> None:
        """Take over the leases for which flights have waited too long, as slots allow."""
        now = self._clock.monotonic()
        waiters: list[Flight] = []
        for flight in flights:
            backend = flight.task.backend
            if (
                flight.busy_token is not None
                and not (flight.landed or flight.flying or flight.task.over_budget)
                and now - flight.busy_since > backend.patience_s
                and self._spare_slots(backend) > 0
            ):
                backend.in_flight += 1
                waiters.append(flight)
        if not waiters:
            return
        results: list[Result] = [None] * len(waiters)
        try:
            with anyio.move_on_after(self._tier.uncancelled_s, shield=True):
                results = await self._tier.take_over(
                    shard, [(f.key, f.busy_token or b"") for f in waiters]
                )
        except StoreUnavailable as error:
            log.warning("takeover failed", flights=len(waiters), error=str(error))
        too_late: list[Release] = []
        for flight, result in zip(waiters, results, strict=True):
            if isinstance(result, Leased) and flight.landed:
                too_late.append(Release(flight.key, result.token))
                self.slot_freed(flight.task.backend)
            elif isinstance(result, Leased):
                flight.hold(result)
                flight.taken_over = True
                self._take_off(flight)
            else:
                self.slot_freed(flight.task.backend)
        if too_late:
            await self._give_back(shard, too_late)
