"""The straight line from asks to answers: memory → flight → store or lease → model → fill → land.

`Resolver` is the only thing that sees tiers, flights, leases and models together. It serves any
intake that makes asks (streams, HTTP, callers in this process) and knows none of them.

    resolve()        memory tier; a miss joins a flight or begins one        (synchronous)
    waiting_room.py  new flights ask the store in batches: answer or lease
    calls.py         a leased flight asks its model
    fills.py         finished answers are written in groups
    landing.py       everyone who waits gets the outcome
    verifier.py      a stored answer is held against a fresh one, for who checks hits
"""

from __future__ import annotations

import math
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress

import anyio
import structlog
from anyio.abc import TaskGroup
from redis.exceptions import RedisError

from askonce_queue.answer_scripts import Release
from askonce_queue.errors import StoreUnavailable
from askonce_queue.shards import shard_of_digest
from askonce_queue.store import Store
from askonce_worker.asks import Ask, HitWatcher, SeenHit
from askonce_worker.cache.entry import Entry
from askonce_worker.cache.memory import MemoryTier
from askonce_worker.cache.stamps import Stamps
from askonce_worker.cache.store_tier import StoreTier
from askonce_worker.calls import Calls
from askonce_worker.clock import Clock, SystemClock
from askonce_worker.config import LaneWeights
from askonce_worker.deadlines import Deadlines
from askonce_worker.fills import Fills
from askonce_worker.flights import Flight, Flights, slot_of
from askonce_worker.landing import Landing
from askonce_worker.leases import Leases
from askonce_worker.observe.counters import Counters
from askonce_worker.observe.first_reads import FirstRead
from askonce_worker.tasks import Task
from askonce_worker.verifier import Verifier
from askonce_worker.waiting_room import WaitingRoom

log = structlog.get_logger("askonce.resolver")


class Resolver:
    """Answers asks. Use `running()` around it: its loops renew leases, ask the store and fill."""

    def __init__(
        self,
        store: Store,
        *,
        memory_bytes: int,
        lease_ttl_s: float = 10.0,
        lease_renew_s: float = 3.0,
        stamp_bound_s: float = 0.5,
        lanes: LaneWeights | None = None,
        counters: Counters | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        clock = clock or SystemClock()
        rng = rng or random.Random()
        self._clock = clock
        self._shards = shards = len(store.tags)
        self.counters = counters or Counters()
        self.memory: MemoryTier[Entry] = MemoryTier(memory_bytes)
        self.stamps = Stamps(store, clock, stamp_bound_s)
        self.flights = Flights()
        self._tier = StoreTier(store, clock, rng, lease_ttl_s=lease_ttl_s)
        self.leases = Leases(self._tier, clock, self.counters, renew_s=lease_renew_s)
        self.watchers: list[HitWatcher] = []
        """Who is told of the hits of tasks that are watched."""
        self._landing = landing = Landing(
            self.flights,
            self.memory,
            clock,
            self.counters,
            self.stamps,
            self.watchers,
            self.resolve,
        )
        self._fills = Fills(self._tier, clock, rng, self.leases, landing, shards)
        self._room = WaitingRoom(
            self._tier,
            clock,
            rng,
            landing,
            self.stamps,
            shards,
            lanes or LaneWeights(),
            self._take_off,
            self.resolve,
        )
        self._deadlines = Deadlines(clock, self._expire)
        self._calls = Calls(
            self._tier,
            rng,
            leases=self.leases,
            landing=landing,
            counters=self.counters,
            answered=self._fills.put,
            ask_again=self._ask_again,
            step_back=self._step_back,
        )
        self.verifier = Verifier(
            self._tier,
            clock,
            self.stamps,
            self.memory,
            shards=shards,
            calls=self._calls,
            leases=self.leases,
            room=self._room,
            answered=self._fills.put,
            take_off=self._take_off,
        )
        self._tasks: TaskGroup | None = None

    def resolve(self, asks: Sequence[Ask]) -> None:
        """Answer what memory knows, and see to the rest; every ask gets exactly one outcome.

        Synchronous: an ask that hits costs no task, no await and no round trip.
        """
        now = self._clock.monotonic()
        entries = self.memory.get_many([ask.key for ask in asks], now)
        usable = self.stamps.usable
        tallied: Task | None = None
        worths: dict[str, int] = {}
        seen: list[SeenHit] = []
        for ask, entry in zip(asks, entries, strict=True):
            if (
                entry is not None
                and ask.cacheable
                and usable(entry, ask.tags, ask.key, now)
                and (
                    (control := ask.control or ask.task.memory_control) is None
                    or control.accepts(entry, now)
                )
            ):
                task = ask.task
                if task is not tallied:
                    tallied = task
                    worths = self.counters.tally(task.name, task.price).memory
                tenant = ask.tenant
                worths[tenant] = worths.get(tenant, 0) + entry.worth
                if entry.unread:
                    self._note_read(ask, entry, now)
                if task.watched or (task.noted and ask.key[0] in task.noted):
                    seen.append(SeenHit(ask, entry, "memory", now - entry.born))
                ask.answered(entry, "memory", now - entry.born)
            elif ask.cacheable:
                self._join_or_begin(ask, now)
            elif ask.deadline > now:
                self._begin_alone(Flight(ask, 0, now), ask)
            else:
                self._landing.too_late(ask)
        for watcher in self.watchers if seen else ():
            watcher(seen)

    def _note_read(self, ask: Ask, entry: Entry, now: float) -> None:
        """It was filled here, and this is its first hit here."""
        read = FirstRead(ask.task.name, ask.key, entry.created_ms, now - entry.born)
        entry.unread = not self.counters.first_reads.note(entry.shard, read)

    def _begin_alone(self, flight: Flight, ask: Ask) -> None:
        self._room.enter_alone(flight)
        if ask.deadline < math.inf:
            self._deadlines.watch(flight, ask.deadline)

    def _join_or_begin(self, ask: Ask, now: float) -> None:
        if ask.deadline <= now:
            self._landing.too_late(ask)
            return
        control = ask.control
        refresh = control is not None and control.refresh
        alone = control is not None and control.only_if_cached
        flight = None if alone else self.flights.get(slot_of(ask.key, refresh=refresh))
        if flight is not None and self._may_join(flight, ask, now):
            stale = flight.stale
            if (
                stale is not None
                and (control or ask.task.plain_control).accepts(stale, now)
                and self.stamps.usable(stale, ask.tags, ask.key, now)
            ):
                flight.unkept &= control is not None and control.no_store
                self._landing.serve([ask], stale, "stale", now)
            elif (
                (spare := flight.spare) is not None
                and ask.task.backend.outage
                and self._landing.may_stand_in(spare, ask, now)
            ):
                self._landing.serve([ask], spare, "stale", now)
            elif flight.queued_in and ask.may_defer():
                ask.deferred()  # a hot question that nobody answers must not fill the worker either
            else:
                self._join(flight, ask)
            return
        flight = Flight(ask, shard_of_digest(ask.key, self._shards), now)
        if not alone:
            self.flights.register(flight)
        self._room.enter(flight)
        if ask.deadline < math.inf:
            self._deadlines.watch(flight, ask.deadline)

    def _join(self, flight: Flight, ask: Ask) -> None:
        flight.join(ask)
        if not flight.bulk:
            self._room.hurry(flight)
        if ask.deadline < math.inf:
            self._deadlines.watch(flight, ask.deadline)

    def _expire(self, flight: Flight) -> None:
        """Tell those whose deadline has passed. What flies ends by itself: `calls.py`."""
        if self._landing.tell_late(flight) and not flight.flying:
            self._landing.abandon(flight)
            self._room.left(flight)

    def _may_join(self, flight: Flight, ask: Ask, now: float) -> bool:
        """A flight begun before an invalidation answers nobody who came after it."""
        if not flight.flying:
            return True
        if flight.refresh:
            return False  # it began before the ask
        if flight.filling and not flight.tags.issuperset(ask.tags):
            return False  # its tags are on their way to the store
        return self.stamps.seen(flight.shard, now) and self.stamps.valid(
            flight.shard, flight.built, flight.entry_tags, ask.tags, ask.key
        )

    def _take_off(self, flight: Flight) -> None:
        assert self._tasks is not None, "the resolver is not running"
        if flight.token is not None:
            self.leases.add(flight)
        self._tasks.start_soon(self._fly, flight)

    async def _fly(self, flight: Flight) -> None:
        try:
            await self._calls.fly(flight)
        finally:
            self._room.slot_freed(flight.task.backend)

    def _ask_again(self, flight: Flight) -> None:
        """The lease is another's now: wait for its answer, with those who came later."""
        newer = self.flights.get(flight.slot)
        if newer in {None, flight} and flight.asks:
            flight.flying = False
            flight.note_busy(b"", self._clock.monotonic())
            self._room.enter(flight)
        else:
            self._landing.merge(flight, newer or flight, self._join)

    def _step_back(self, flight: Flight) -> None:
        """Its model may not be asked now: wait for room like those that never took off."""
        newer = self.flights.get(flight.slot)
        flight.flying = False
        if flight.abandoned:
            self._landing.abandon(flight)
        elif not flight.leased_once:
            self._room.enter_alone(flight)
        elif newer in {None, flight} and flight.asks:
            self._room.enter(flight)
        else:
            self._landing.merge(flight, newer or flight, self._join)

    async def see_invalidations(self) -> None:
        """Look at what was invalidated, now. A shard that cannot be asked is seen when it can."""

        async def see(shard: int) -> None:
            with suppress(RedisError, OSError):
                await self.stamps.read(shard)

        async with anyio.create_task_group() as tasks:
            for shard in range(self._shards):
                tasks.start_soon(see, shard)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Resolver]:
        """Run the loops, of every shard its own, so that a dead one delays no other.

        On exit cancel what still flies and give its leases back.
        """
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                for shard in range(self._shards):
                    tasks.start_soon(self.stamps.watch, shard)
                    tasks.start_soon(self.leases.renew_forever, shard)
                    tasks.start_soon(self._room.run, shard)
                    tasks.start_soon(self._fills.run, shard)
                tasks.start_soon(self._deadlines.run)
                yield self
                tasks.cancel_scope.cancel()
        finally:
            self._tasks = None
            with anyio.CancelScope(shield=True), anyio.move_on_after(5):
                await self._give_leases_back()

    async def _give_leases_back(self) -> None:
        """What is not finished is somebody else's to lead, at once rather than after a TTL."""
        async with anyio.create_task_group() as tasks:
            for shard in range(self._shards):
                tasks.start_soon(self._give_back, shard)

    async def _give_back(self, shard: int) -> None:
        releases: list[Release] = []
        for flight in self.leases.held(shard):
            if flight.token is not None:
                releases.append(Release(flight.key, flight.token))
                self.leases.drop(flight)
        if not releases:
            return
        try:
            await self._tier.release(shard, releases)
        except StoreUnavailable:
            log.warning("leases could not be given back: they run out", leases=len(releases))
