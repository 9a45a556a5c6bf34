"""A worker's share of the limits that all workers of a model keep together. Decisions, no I/O.

Slots (calls at the same time) are leased from the store for `ttl_s` and renewed. Calls are taken in
chunks from token buckets (Turner, "New directions in communications", 1986; ATM Forum's GCRA is the
same for single cells), and are good for `VALID_S`; what is not begun by then is given back or lost.

Why no minute sees more than the limit: whoever begins a call at t got it between t − VALID_S and
t. So all calls of a minute were in the bucket VALID_S before it, or came in since: at most

    most_calls + calls_per_s × (60 + VALID_S)  <  1 + limit

with most_calls = 1 + limit × BURST_S / 60 and calls_per_s = limit × (1 − BURST_S / 60) / (60 +
VALID_S), which is 98.7 % of the limit. Calls that are given back while they are valid do not change
that sum. The store's clock dates what is granted; here it counts from before it was asked for.
"""

from __future__ import annotations

import asyncio
import math
import random
import sys
from collections import deque
from collections.abc import Callable

from askonce_queue.quota_scripts import Grant, Rates, Request
from askonce_queue.reply import Answer
from askonce_worker.backend import Backend
from askonce_worker.clock import Clock
from askonce_worker.config import LimitsConfig
from askonce_worker.models.protocol import ModelFailure

VALID_S = 0.4
"""How long after its grant a call may begin."""
BURST_S = 0.4
"""How much of a limit may be saved up while nobody asks: a part of a minute, in seconds."""
GIVE_BACK_S = 0.1
"""How long before they are no longer valid calls that nobody needs are given back."""
SHORTEST_S, LONGEST_S = 0.05, 0.2
"""The pause between two requests: the more workers, the longer."""
PAUSE_EACH_S = 0.01
TURN_S = 0.25
"""How often who has its share of too few slots asks for more."""
AHEAD_S = 0.15
"""For how long calls are taken ahead, at the rate of the last moment."""
LOOK_EVERY_S = 1.0
"""How soon who has slots hears that others want some, too."""
IDLE_S = 1.0
"""How long slots are kept that no call needs."""
REPORT_S = 0.2
"""How soon it is told how many tokens calls have used."""
AFTER_FAILURE_S = 0.5


def rates_of(limits: LimitsConfig) -> Rates:
    """What the buckets of a model hold and how fast they fill, so that no minute exceeds a limit.

    Of tokens, the last call that begins may go beyond: a call is not begun in parts.
    """
    saved, flow = BURST_S / 60, (1 - BURST_S / 60) / (60 + VALID_S)
    calls, tokens = limits.requests_per_minute or 0, limits.tokens_per_minute or 0
    return Rates(
        slots=limits.concurrency or 0,
        # A hair less than a whole call more than the limit, whatever is rounded.
        most_calls=1 - 1e-6 + calls * saved if calls else 0.0,
        calls_per_s=calls * flow,
        most_tokens=max(1.0, tokens * saved) if tokens else 0.0,
        tokens_per_s=tokens * flow,
        first_tokens=max(1, min(1000, tokens // 60)),
    )


class _Chunk:
    """Calls that were granted together, not begun yet."""

    __slots__ = ("calls", "granted_us", "tokens_each", "until")

    def __init__(self, calls: int, tokens_each: int, granted_us: int, until: float) -> None:
        self.calls = calls
        self.tokens_each = tokens_each
        self.granted_us = granted_us
        self.until = until


class Quota:
    """What this worker may ask a model, as a `Limit` of its backend; and what to ask the store.

    `ring` is called when there may be something to ask the store for: see `due`.
    """

    def __init__(
        self,
        backend: Backend,
        limits: LimitsConfig,
        *,
        ttl_s: float,
        clock: Clock,
        rng: random.Random,
        ring: Callable[[], None] = lambda: None,
    ) -> None:
        self.backend = backend
        self.rates = rates_of(limits)
        self.ttl_s = ttl_s
        self.granted = 0
        """Calls that were granted so far."""
        self.waited_s = 0.0
        """For how long so far flights waited for the limits."""
        self._slots_limited = limits.concurrency is not None
        self._calls_limited = bool(limits.requests_per_minute or limits.tokens_per_minute)
        self._clock = clock
        self._rng = rng
        self._ring = ring
        self._slots = 0
        self._slots_until = -math.inf
        self._share = 0
        self._contended = False
        self._peak = 0
        self._chunks: deque[_Chunk] = deque()
        self._charges: deque[int] = deque()
        self._active = 0
        self._waiting = 0
        self._opened = asyncio.Event()
        self._reported = self._tokens = self._charged = 0
        self._began = 0
        self._rate = 0.0
        self._number = rng.getrandbits(40)
        self._unanswered: Request | None = None
        self.known = False
        """Whether the store knows that it holds something, or wants it."""
        self._poked = False
        self._asked_at = -math.inf
        self._calls_from = self._slots_from = -math.inf
        self._wanting_since: float | None = None

    # What the backend asks

    down = False
    """A quota that is used up is no dead model."""

    @property
    def slots(self) -> int:
        """The slots that it has now; of more than its share, those that calls still need."""
        return self._slots if self._clock.monotonic() < self._slots_until else 0

    def room(self, in_flight: int) -> int:
        """How many more flights may take off now; those that wait in `admit` come before them."""
        self._peak = max(self._peak, self._in_flight)
        if self.backend.most_a_request > 1:
            return self._room_in_requests()
        room = sys.maxsize
        if self._slots_limited:
            room = min(self.slots, self._share) - in_flight
        if self._calls_limited:
            room = min(room, self._calls() - self._waiting)
        return room

    def _room_in_requests(self) -> int:
        """How many more questions there are seats for in the requests that may begin now."""
        most, requests = self.backend.most_a_request, sys.maxsize
        if self._slots_limited:
            requests = min(self.slots, self._share) - self._active
        if self._calls_limited:
            requests = min(requests, self._calls())
        # Who waits may be alone in its request, who is about to board has a seat in one.
        return min((requests - self._waiting) * most, requests * most - self.backend.boarding)

    @property
    def _in_flight(self) -> int:
        """How many slots are needed for what is in flight."""
        backend = self.backend
        if backend.most_a_request == 1:
            return backend.in_flight
        return self._active + max(self._waiting, self._requests(backend.boarding))

    def _requests(self, questions: int) -> int:
        """How many requests so many questions need at least."""
        return -(-questions // self.backend.most_a_request)

    def wanted(self) -> None:
        """Somebody would begin a call, if there was room."""
        self._poked = True
        self._ring()

    async def admit(self) -> None:
        """Wait until a call may begin: `began` is to follow without an await between."""
        while not self._may_begin():
            self._waiting += 1
            self._ring()
            try:
                await self._opened.wait()
            finally:
                self._waiting -= 1

    def _may_begin(self) -> bool:
        if self._slots_limited and self._active >= self.slots:
            return False
        return not self._calls_limited or self._calls() > 0

    def began(self) -> None:
        """A call begins: it is one of those that were granted."""
        self._active += 1
        if not self._calls_limited:
            return
        self._began += 1
        charge = 0
        if self._calls():
            chunk = self._chunks[0]
            chunk.calls -= 1
            charge = chunk.tokens_each
        self._charges.append(charge)
        if self._calls() < self._rate * AHEAD_S / 2:
            self._ring()

    def ended(self, outcome: Answer | ModelFailure | None) -> None:
        """A call has ended: what it used is set against what it was charged.

        A call that does not say what it used, used what it was charged.
        """
        self._active -= 1
        if self._calls_limited:
            charge = self._charges.popleft()
            usage = outcome.usage if isinstance(outcome, Answer) else None
            if self.rates.most_tokens and usage is not None:
                self._reported += 1
                self._tokens += usage.input_tokens + usage.output_tokens
                self._charged += charge
                self._ring()
        if self._slots_limited and self._slots > self._share:
            self._ring()
        self._open()

    def _open(self) -> None:
        """Have those that wait in `admit` look again."""
        if self._waiting:
            self._opened.set()
            self._opened = asyncio.Event()

    def _calls(self) -> int:
        """Calls that may begin now."""
        now = self._clock.monotonic()
        while self._chunks and (self._chunks[0].until <= now or not self._chunks[0].calls):
            self._chunks.popleft()
        return sum(chunk.calls for chunk in self._chunks)

    # What the store is asked

    def due(self) -> float:
        """When the store is to be asked next, monotonic; infinite when there is nothing to ask."""
        if self._unanswered is not None:
            return self._calls_from
        due = math.inf
        if self.known:
            due = self._asked_at + min(self.ttl_s / 3, LOOK_EVERY_S if self._slots else math.inf)
        slots, calls = self._wanted()
        if slots > self.slots:
            due = min(due, self._slots_from)
        if calls:
            due = min(due, self._calls_from)
        if self._slots > max(self._share, self._in_flight):
            due = min(due, self._asked_at + SHORTEST_S)
        if self._slots > max(slots, self._peak):
            due = min(due, self._asked_at + IDLE_S)
        if self._reported:
            due = min(due, self._asked_at + REPORT_S)
        if self._calls():
            due = min(due, self._chunks[0].until - GIVE_BACK_S)
        return max(due, self._asked_at + SHORTEST_S)

    def _wanted(self) -> tuple[int, int]:
        """How many slots it needs in all, and how many calls beyond those it has."""
        backend = self.backend
        in_flight = self._in_flight
        demand = max(0, min(max(backend.waiting, self._poked), backend.room_beside(self)))
        demand = self._requests(demand)
        slots = calls = 0
        if self._slots_limited:
            slots = in_flight + demand
            if in_flight and not self._contended:
                slots = max(slots, in_flight + 1 + in_flight // 4)
            slots = min(slots, self.rates.slots, max(backend.slots, in_flight))
            most = self.slots if self._contended else self.rates.slots
            demand = min(demand, max(0, most - in_flight))
        if self._calls_limited:
            needed = self._waiting + demand + int(self._rate * AHEAD_S)
            calls = max(0, needed - self._calls())
        return slots, calls

    def request(self) -> Request:
        """What to ask the store now; `answered` or `failed` is to follow."""
        now = self._clock.monotonic()
        elapsed_s = now - self._asked_at
        rate = self._began / elapsed_s if elapsed_s > 0 else 0.0
        self._rate = rate if elapsed_s > 1 else (self._rate + rate) / 2
        self._began = 0
        back = self._unneeded(now)
        slots, calls = self._wanted()
        self._poked = False
        useful = min(max(slots, self._peak), self._share)
        kept = min(self._slots, max(self._in_flight, useful))
        self._peak = 0
        self._slots = kept
        self._asked_at = now
        fresh = self._unanswered is None
        if fresh:
            self._number += 1
        request = self._unanswered or self._giving(self._number, back)
        if fresh:
            self._reported = self._tokens = self._charged = 0
        self._unanswered = request = request._replace(
            slots_kept=kept, slots_wanted=max(slots, kept), calls_wanted=calls
        )
        self._note_waiting(now, wanting=slots > kept or calls > 0)
        return request

    def _giving(self, number: int, back: _Chunk | None) -> Request:
        """A request that gives calls back, if any, and tells what calls have used."""
        given = (back.calls, back.tokens_each, back.granted_us) if back else (0, 0, 0)
        return Request(number, 0, 0, 0, *given, self._reported, self._tokens, self._charged)

    def _unneeded(self, now: float) -> _Chunk | None:
        """Calls to give back while they are valid: nobody has begun them."""
        if self._unanswered is None and self._calls():
            chunk = self._chunks[0]
            if chunk.until - now <= 1.5 * GIVE_BACK_S and not self._waiting:
                return self._chunks.popleft()
        return None

    def _note_waiting(self, now: float, *, wanting: bool) -> None:
        if self._wanting_since is not None:
            self.waited_s += now - self._wanting_since
        self._wanting_since = now if wanting else None

    def answered(self, grant: Grant) -> None:
        """Take what the store has given for the last request."""
        request, self._unanswered = self._unanswered, None
        assert request is not None, "nothing was asked"
        now, asked_at = self._clock.monotonic(), self._asked_at
        if self._slots_limited:
            self._slots, self._share = grant.slots, grant.share
            self._contended = grant.contended
            self._slots_until = asked_at + self.ttl_s * 0.9
        if grant.calls:
            self.granted += grant.calls
            until = asked_at + VALID_S - grant.age_us / 1e6
            self._chunks.append(_Chunk(grant.calls, grant.tokens_each, grant.granted_us, until))
        # All of it but the times: with any of that the store keeps a record.
        self.known = bool(grant.calls or any(request[1:5]) or request.reported)
        # Not always in the same order: who comes first after a pause finds the most.
        pause_s = min(LONGEST_S, max(SHORTEST_S, grant.holders * PAUSE_EACH_S))
        pause_s *= self._rng.uniform(1.0, 1.5)
        self._calls_from = self._slots_from = asked_at + pause_s
        if grant.calls < request.calls_wanted:
            wait_s = grant.wait_ms / 1000 + self._rng.uniform(0, 0.005)
            self._calls_from = max(self._calls_from, now + wait_s)
        if grant.contended and grant.slots >= grant.share:
            self._slots_from = asked_at + TURN_S
        if grant.calls >= request.calls_wanted and grant.slots >= request.slots_wanted:
            self._note_waiting(now, wanting=False)
        self._open()
        self.backend.opened()

    def failed(self) -> None:
        """The store has not answered: the same is asked again. What was granted goes on."""
        self._calls_from = self._clock.monotonic() + AFTER_FAILURE_S

    def leave(self) -> Request:
        """The last request: everything is given back that can be."""
        back = self._chunks.popleft() if self._calls() else None
        return self._giving(0, back)
