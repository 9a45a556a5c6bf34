"""How flights end: everyone who waits gets the outcome, and memory keeps what may be kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from askonce_queue.reply import ErrorInfo, Source
from askonce_worker.asks import Ask, HitWatcher, SeenHit
from askonce_worker.cache.entry import Entry
from askonce_worker.cache.memory import MemoryTier
from askonce_worker.cache.stamps import Stamps
from askonce_worker.clock import Clock
from askonce_worker.fallback import UNAVAILABLE, Redirected
from askonce_worker.flights import Flight, FlightEnd, Flights
from askonce_worker.observe.counters import Counters

DEADLINE_EXCEEDED = ErrorInfo(
    "deadline_exceeded", "the job's deadline_s passed before there was an answer"
)

log = structlog.get_logger("askonce.landing")


class Landing:
    """Ends flights, once each. `resolve` takes those who are to ask another model."""

    def __init__(
        self,
        flights: Flights,
        memory: MemoryTier[Entry],
        clock: Clock,
        counters: Counters,
        stamps: Stamps,
        watchers: Sequence[HitWatcher],
        resolve: Callable[[Sequence[Ask]], None],
    ) -> None:
        self._flights = flights
        self._memory = memory
        self._clock = clock
        self._counters = counters
        self._stamps = stamps
        self._watchers = watchers
        self._resolve = resolve

    def hit(self, flight: Flight, entry: Entry) -> None:
        """The store has the answer: at the first look (`store`) or from another leader."""
        source: Source = "coalesced" if flight.busy_token is not None else "store"
        now = self._clock.monotonic()
        if entry.fresh_until <= now:
            source = "stale"
        self._note_read(flight, entry, now)
        if source != "stale":
            self._keep(flight, entry)
        self._end(flight, FlightEnd.HIT)
        self.serve(flight.asks, entry, source, now)

    def serve_stale(self, flight: Flight, entry: Entry) -> None:
        """Those who wait get what there is; the flight goes on for those who ask later."""
        asks, flight.asks, flight.stale = flight.asks, [], entry
        now = self._clock.monotonic()
        self._note_read(flight, entry, now)
        self.serve(asks, entry, "stale", now)

    def serve(self, asks: Sequence[Ask], entry: Entry, source: Source, now: float) -> None:
        """Answer with a stored answer."""
        age_s = max(0.0, now - entry.born)
        seen = [
            SeenHit(ask, entry, source, age_s)
            for ask in asks
            if ask.task.watched or ask.key[0] in ask.task.noted
        ]
        for watcher in self._watchers if seen else ():
            watcher(seen)
        for ask in asks:
            task = ask.task
            self._counters.hit(task.name, task.price, source, ask.tenant, entry.worth)
            ask.answered(entry, source, age_s)

    def answer(self, flight: Flight, entry: Entry, end: FlightEnd, *, keep: bool) -> None:
        """The model answered: the first asker paid for it, the others were coalesced."""
        if keep:
            self._keep(flight, entry)
        self._end(flight, end)
        task, counters = flight.task, self._counters
        if end is FlightEnd.FILLED:
            counters.count_at(task.name, "fills", entry.created_ms)
        for ask in flight.asks[:1]:
            counters.count(task.name, "model")
            counters.count_tenant(ask.tenant, "misses")
            ask.answered(entry, "model", 0.0)
        for ask in flight.asks[1:]:
            counters.hit(task.name, task.price, "coalesced", ask.tenant, entry.worth)
            ask.answered(entry, "coalesced", 0.0)

    def fail(
        self, flight: Flight, error: ErrorInfo, end: FlightEnd, cause: Exception | None = None
    ) -> None:
        """No answer: everyone who waits is told why, or gets one that may stand in.

        That is a stale one or, where the model is to blame, one of the task's fallback.
        """
        self._end(flight, end)
        elsewhere: list[Ask] = []
        for ask in self._left_by(flight.spare, flight.asks):
            if error.code in UNAVAILABLE and ask.task.fallback is not None:
                self._counters.count(ask.task.name, "fallbacks")
                elsewhere.append(Redirected(ask, ask.task.fallback, error))
            elif _of_others(ask, end):
                elsewhere.append(ask)
            else:
                self._counters.count(flight.task.name, "errors")
                ask.failed(error, cause)
        if elsewhere:
            self._resolve(elsewhere)

    def stand_in(self, flight: Flight, spare: Entry) -> None:
        """The model is down: serve those who wait and accept a stale answer then.

        A flight that has not taken off, and for which nobody waits then, has landed.
        """
        unkept = not flight.may_keep
        flight.asks = self._left_by(spare, flight.asks)
        if flight.asks:
            return
        if flight.flying:
            flight.unkept = unkept
        else:
            self._end(flight, FlightEnd.HIT)

    def _left_by(self, spare: Entry | None, asks: Sequence[Ask]) -> list[Ask]:
        """Serve those for whom a stale answer may stand in; return the others."""
        now, left = self._clock.monotonic(), list[Ask]()
        for ask in asks:
            if spare is not None and self.may_stand_in(spare, ask, now):
                self.serve([ask], spare, "stale", now)
            else:
                left.append(ask)
        return left

    def turn_away(self, flight: Flight) -> bool:
        """End a flight that would have to ask its model, if that may not or need not be asked."""
        task = flight.task
        if task.budget is not None and task.budget.exceeded:
            error = ErrorInfo("budget_exceeded", task.budget.refusal)
            self.fail(flight, error, FlightEnd.OVER_BUDGET)
            return True
        if flight.goes_elsewhere:
            self.redirect(flight)
            return True
        return False

    def redirect(self, flight: Flight) -> None:
        """Those who wait for a model that is down get a stale answer, or wait for the fallback."""
        down = f"model {flight.task.backend.name!r} is down"
        self.fail(flight, ErrorInfo("unavailable", down), FlightEnd.REDIRECTED)

    def may_stand_in(self, spare: Entry, ask: Ask, now: float) -> bool:
        """Whether a stale answer may be served instead of an error.

        It was valid when the store was asked; what was invalidated since is for the stamps to say.
        """
        most_s = (ask.control or ask.task.plain_control).stale_if_error_s
        young = most_s > 0 and now - spare.fresh_until < most_s
        return young and self._stamps.usable(spare, ask.tags, ask.key, now)

    def tell_late(self, flight: Flight) -> bool:
        """Tell those whose deadline has passed; whether nobody waits any more because of that."""
        for ask in flight.take_late(self._clock.monotonic()):
            self.too_late(ask)
        return flight.abandoned

    def too_late(self, ask: Ask) -> None:
        """Tell an ask that its deadline has passed."""
        self._counters.count(ask.task.name, "errors")
        self._counters.count(ask.task.name, "expired")
        ask.failed(DEADLINE_EXCEEDED, None)

    def abandon(self, flight: Flight) -> None:
        """Nobody waits any more, and the model is not asked."""
        self._end(flight, FlightEnd.EXPIRED)

    def count_outage(self, flight: Flight) -> None:
        """The model is asked although nobody knows whether the store has the answer."""
        self._counters.count(flight.task.name, "without_store")

    def defer(self, flight: Flight) -> None:
        """Nobody waits here any more: they come again later."""
        self._end(flight, FlightEnd.DEFERRED)
        for ask in flight.asks:
            ask.deferred()

    def merge(self, flight: Flight, newer: Flight, join: Callable[[Flight, Ask], None]) -> None:
        """Those who wait for `flight` wait for `newer`, of the same key, instead."""
        self._end(flight, FlightEnd.MERGED)
        for ask in flight.asks:
            join(newer, ask)

    def _end(self, flight: Flight, end: FlightEnd) -> None:
        assert not flight.landed, "a flight lands once"
        flight.landed = True
        self._flights.remove(flight)
        self._counters.count(flight.task.name, f"flights_{end.value}")
        if end is not FlightEnd.MERGED:  # they go on waiting, and are counted when that is over
            # The first asker waited only if another process's leader was asking already.
            waited = len(flight.asks) - (flight.busy_token is None)
            if waited > 0:
                self._counters.count(flight.task.name, "waits", waited)
        if flight.leased_once:  # the others asked no model: no line for each hit
            log.debug(
                "flight ended",
                task=flight.task.name,
                key=flight.key.hex(),
                end=end.value,
                began=flight.began,
            )

    def _note_read(self, flight: Flight, entry: Entry, now: float) -> None:
        """Count the first read of an answer; the look-up has marked it."""
        if entry.unread:
            entry.unread = False
            name = flight.task.name
            self._counters.count_at(name, "first_reads", entry.created_ms, now - entry.born)

    def _keep(self, flight: Flight, entry: Entry) -> None:
        until = min(entry.kept, entry.born + flight.task.policy.max_age_s)
        self._memory.put(flight.key, entry, entry.size_bytes, until)


def _of_others(ask: Ask, end: FlightEnd) -> bool:
    """Whether a flight of another task, which asks the same, ended for a reason of that task's."""
    if end is FlightEnd.OVER_BUDGET:
        return not ask.task.over_budget
    return end is FlightEnd.REDIRECTED and ask.task.fallback is None
