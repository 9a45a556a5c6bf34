"""Flights: one question in progress in this process, with everyone here who waits for it.

An ask joins or begins a flight synchronously, before any await, so two coroutines of one process
can never both go to the store for one key. A flight belongs to no asker: it is flown by the
resolver's own tasks, and lands whether or not anybody still waits.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator
from typing import Literal

from askonce_queue.answer_scripts import at_once
from askonce_queue.queue_scripts import LaneName
from askonce_worker.asks import Ask
from askonce_worker.cache.entry import Entry
from askonce_worker.cache.policy import demand_of
from askonce_worker.cache.stamps import Stamps
from askonce_worker.cache.store_tier import Leased


class FlightEnd(enum.Enum):
    """Every way a flight can end."""

    HIT = "hit"
    """The store had the answer, or got it from another process's leader."""
    FILLED = "filled"
    """The model answered and the answer is kept."""
    FENCED = "fenced"
    """The model answered, but the lease was lost meanwhile: replied, not kept."""
    MERGED = "merged"
    """The lease was lost before an answer came; those who waited joined a newer flight."""
    INVALIDATED = "invalidated"
    """The model answered, but a tag was invalidated meanwhile: replied, not kept."""
    UNKEPT = "unkept"
    """The model answered and the store did not take it (memory pressure, or not cacheable)."""
    REJECTED = "rejected"
    """A deterministic failure, ours or remembered from another process."""
    EXHAUSTED = "exhausted"
    """Transient failures until the key's attempts were used up."""
    UNADMITTED = "unadmitted"
    """The model answered, and the task does not keep such an answer."""
    NOT_CACHED = "not_cached"
    """Nobody was to be asked, and the store has nothing that would do."""
    DEFERRED = "deferred"
    """The model has no room, and too many wait already: the jobs wait in the store."""
    EXPIRED = "expired"
    """The deadlines of all who waited passed before the model was asked, or asked again."""
    OVER_BUDGET = "over_budget"
    """The task has spent what it may spend today."""
    REDIRECTED = "redirected"
    """The model is unavailable; those who waited wait for the task's fallback instead."""
    NO_STORE = "no_store"
    """The store could not be asked, and the task does not wait for it."""


class Flight:
    """One question in progress: who waits, and under which lease it is computed."""

    __slots__ = (
        "allowed_ttl_s",
        "asked",
        "asks",
        "attempt",
        "backoff_s",
        "began",
        "built",
        "bulk",
        "busy_since",
        "busy_token",
        "expired",
        "filling",
        "flying",
        "granted_until",
        "key",
        "landed",
        "lease_until",
        "leased_once",
        "looked_up",
        "only_if_cached",
        "question",
        "queued_in",
        "refresh",
        "shard",
        "spare",
        "stale",
        "tags",
        "taken_over",
        "takeover",
        "task",
        "token",
        "unkept",
        "waits_alone",
    )

    def __init__(self, ask: Ask, shard: int, now: float) -> None:
        self.key = ask.key
        self.task = ask.task
        self.shard = shard
        self.question = ask.question()
        self.asks: list[Ask] = [ask]
        self.tags = set(ask.tags)
        self.bulk = ask.lane == "bulk"
        """Whether nobody who waits, or has waited, is interactive."""
        self.began = now
        self.backoff_s = 0.0
        self.attempt = 1
        self.asked = False
        """Whether its model was asked in vain before: then the next call is a retry."""
        self.busy_token: bytes | None = None
        self.busy_since = now
        self.refresh = ask.control is not None and ask.control.refresh
        """Whether it answers only those who asked before it took off."""
        self.only_if_cached = ask.control is not None and ask.control.only_if_cached
        """Whether nobody is to be asked. Then nobody joins it."""
        self.stale: Entry | None = None
        """What those who ask are served while it refreshes that."""
        self.spare: Entry | None = None
        """What may stand in if it fails."""
        self.unkept = False
        """Whether all who were served a stale answer meanwhile allow no new one to be kept."""
        self.looked_up = 0
        """How many of the asks had joined when the store was asked last."""
        self.queued_in: LaneName | Literal[""] = ""
        """The lane in which it waits for a slot, if it does."""
        self.waits_alone = False
        self.expired = False
        """Whether the deadline of somebody who waited has passed."""
        self.allowed_ttl_s = math.inf
        """How long those allowed that the answer is kept."""
        self.flying = False
        self.filling = False
        self.landed = False
        # The lease, while it is ours.
        self.token: bytes | None = None
        self.built = 0.0
        self.lease_until = 0.0
        self.granted_until = 0.0
        self.leased_once = False
        self.takeover = False
        self.taken_over = False
        """Whether by patience, without a look-up."""

    def hold(self, lease: Leased) -> None:
        """Own the fill lease, and be about to fly under it."""
        self.token = lease.token
        self.built = lease.built
        self.asked |= lease.attempt != 1 and not lease.takeover
        self.attempt = max(self.attempt, lease.attempt)  # its own count too, whoever had the lease
        self.lease_until = self.granted_until = lease.until
        self.takeover = lease.takeover
        self.spare = lease.spare or lease.stale
        self.leased_once = True
        self.flying = True

    @property
    def lane(self) -> LaneName:
        """That of the most urgent ask."""
        return "bulk" if self.bulk else "interactive"

    @property
    def waits_for_slot(self) -> bool:
        """Whether the store is to be asked about it when a slot is free."""
        return bool(self.queued_in) and not self.waits_alone

    @property
    def tag_text(self) -> str:
        """The tags of all who wait, as scripts take them: joined by line breaks."""
        return "\n".join(self.tags)

    @property
    def entry_tags(self) -> tuple[str, ...]:
        """The tags of its answer: those of all who wait, and its version."""
        return (*self.tags, self.task.version)

    def note_busy(self, token: bytes, now: float) -> None:
        """Another leader computes it; patience begins anew with each."""
        if token != self.busy_token:
            self.busy_token = token
            self.busy_since = now

    @property
    def slot(self) -> bytes:
        """Its place among the flights: those that refresh have one of their own a key."""
        return slot_of(self.key, refresh=self.refresh)

    def demand(self) -> bytes | None:
        """What a stored answer must be like for all who wait, packed; `None`: nothing special."""
        if all(ask.control is None and ask.task is self.task for ask in self.asks):
            packed = self.task.plain_demand
        else:
            demand = demand_of(ask.control or ask.task.plain_control for ask in self.asks)
            packed = demand.pack() if demand is not None else None
        return at_once(packed) if packed is not None and self.task.backend.outage else packed

    @property
    def may_keep(self) -> bool:
        """Whether somebody who waits allows that the answer is kept, or nobody waits."""
        if not self.asks:
            return not self.unkept
        return not all(ask.control and ask.control.no_store for ask in self.asks)

    @property
    def wants_spare(self) -> bool:
        """Whether a stale answer may stand in for an error, for somebody who waits."""
        controls = (ask.control or ask.task.plain_control for ask in self.asks)
        return any(control.stale_if_error_s > 0 for control in controls)

    @property
    def most_ttl_s(self) -> float:
        """How long those who wait allow that the answer is kept."""
        ttls = (ask.control.ttl_s for ask in self.asks if ask.control)
        return min(self.allowed_ttl_s, min(ttls, default=math.inf))

    def split_late(self, entry: Entry, now: float, stamps: Stamps) -> list[Ask]:
        """Take out the asks for which an answer will not do, as far as the last look-up can tell.

        It has checked what those demanded who had joined by then, and knew their tags. Who joined
        since may have come after an invalidation that it did not know.
        """
        checked, joined = self.asks[: self.looked_up], self.asks[self.looked_up :]
        tags = {tag for ask in checked for tag in ask.tags}
        late: list[Ask] = []
        for ask in joined:
            known = tags.issuperset(ask.tags)
            will_do = (ask.control or ask.task.plain_control).accepts(entry, now)
            will_do = will_do and stamps.usable(entry, ask.tags, ask.key, now)
            (checked if known and will_do else late).append(ask)
        self.asks = checked
        return late

    @property
    def goes_elsewhere(self) -> bool:
        """Whether its model is down, and another one may be asked for somebody who waits."""
        if not self.task.backend.down:
            return False
        fallback = self.task.fallback is not None
        return fallback or any(ask.task.fallback is not None for ask in self.asks)

    def may_defer(self) -> bool:
        """Whether everyone who waits should rather come again later."""
        return all(ask.may_defer() for ask in self.asks)

    def take_late(self, now: float) -> list[Ask]:
        """Take out the asks whose deadline has passed. What they allowed holds for the answer."""
        late = [ask for ask in self.asks if ask.deadline <= now]
        if late:
            if len(late) == len(self.asks):
                self.unkept |= not self.may_keep
            self.allowed_ttl_s = self.most_ttl_s
            self.looked_up -= sum(ask.deadline <= now for ask in self.asks[: self.looked_up])
            self.asks = [ask for ask in self.asks if ask.deadline > now]
            self.expired = True
        return late

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits, because of deadlines, so that the model need not be asked."""
        return self.expired and not self.asks and self.stale is None

    def join(self, ask: Ask) -> None:
        """Let one more ask wait; the answer will carry its tags too."""
        if ask.lane == "interactive":
            self.bulk = False
        self.asks.append(ask)
        self.tags.update(ask.tags)


def slot_of(key: bytes, *, refresh: bool) -> bytes:
    """Where a flight is registered: who wants a new answer joins no flight that may have an old."""
    return key + b"!" if refresh else key


class Flights:
    """The singleflight map of this process: cache key (see `slot_of`) → its newest flight."""

    def __init__(self) -> None:
        self._by_slot: dict[bytes, Flight] = {}

    def __len__(self) -> int:
        return len(self._by_slot)

    def get(self, slot: bytes) -> Flight | None:
        """The flight that an ask for a slot may join."""
        return self._by_slot.get(slot)

    def register(self, flight: Flight) -> None:
        """Make `flight` the one that later asks for its slot join. An older one flies on alone."""
        self._by_slot[flight.slot] = flight

    def remove(self, flight: Flight) -> None:
        """Let nobody join `flight` any more; a newer one of the same key stays."""
        if self._by_slot.get(flight.slot) is flight:
            del self._by_slot[flight.slot]

    def __iter__(self) -> Iterator[Flight]:
        return iter(list(self._by_slot.values()))
