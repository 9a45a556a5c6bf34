"""A model as workers use it: its slots, and all that may keep a call from beginning."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from askonce_queue.reply import Answer
from askonce_worker.config import LimitsConfig
from askonce_worker.models.availability import Availability
from askonce_worker.models.batching import BatchedModel, NotAsked, Part
from askonce_worker.models.protocol import Model, ModelFailure, Prompt, Question


class Limit(Protocol):
    """One reason why a model may be asked less than its slots allow. No I/O in any of these."""

    def room(self, in_flight: int) -> int:
        """How many more flights may take off now, where `in_flight` are up already."""
        ...

    @property
    def down(self) -> bool:
        """Whether it holds the model for dead: flights should go elsewhere, if they can."""
        ...

    def began(self) -> None:
        """A request begins: of a flight that took off, a retry, a check, or several together."""
        ...

    def ended(self, outcome: Answer | ModelFailure | None) -> None:
        """A request has ended, once for each `began`; None: it was cancelled."""
        ...


class Admission(Protocol):
    """Says when a call may begin that must not begin before."""

    async def admit(self) -> None:
        """Wait until a call may begin: `began` is to follow without an await between."""
        ...


class Backend:
    """A model with its free flight slots: no worker holds leases that it cannot fly.

    `limits` lower the slots, each for its own reason; one that opens again calls `opened`. They are
    told of requests: a call, unless the model asks several questions in one (`models/batching.py`).
    `availability` is told of every call, calls `opened` too, and says whether a flight that has its
    slot may call.
    `shared` is what all workers together may ask; who runs a worker sees to it (`quotas.py`).
    """

    def __init__(
        self,
        name: str,
        model: Model,
        slots: int,
        patience_s: float,
        limits: Sequence[Limit] = (),
        *,
        shared: LimitsConfig | None = None,
        availability: Availability | None = None,
    ) -> None:
        self.name = name
        self.model = model
        self.slots = slots
        self.in_flight = 0
        self.asking = 0
        """Of the questions in flight, those whose call has begun."""
        self.pausing = 0
        """Of them, those between two attempts."""
        self.patience_s = patience_s
        """How long a waiter waits for another process's leader before it takes the lease over."""
        self.limits = list(limits)
        self.availability = availability or Availability()
        self.availability.opened = self.opened
        self.when_opened: list[Callable[[Backend], None]] = []
        """Who is told that there is room again which no returning flight has made."""
        self.shared = shared
        self.admission: Admission | None = None
        self.when_wanted: list[Callable[[], None]] = []
        """Who is told that a flight begins to wait for a slot."""
        self.who_waits: list[Callable[[Backend], int]] = []
        """Who says how many flights wait for a slot."""
        self._batched = model if isinstance(model, BatchedModel) else None
        if self._batched is not None:
            self._batched.watcher = _Requests(self)

    @property
    def most_a_request(self) -> int:
        """How many questions a request may have."""
        return self._batched.size if self._batched is not None else 1

    @property
    def free_slots(self) -> int:
        """How many more questions may be in flight; negative while a limit has sunk below."""
        in_flight = self.in_flight
        room = min(self.slots - in_flight, self.availability.room(in_flight))
        for limit in self.limits:
            room = min(room, limit.room(in_flight))
        return room

    def room_beside(self, one: Limit) -> int:
        """The free slots, if it were not for one of the limits."""
        in_flight = self.in_flight
        others = [limit.room(in_flight) for limit in self.limits if limit is not one]
        return min([self.slots - in_flight, self.availability.room(in_flight), *others])

    @property
    def waiting(self) -> int:
        """How many flights wait for a slot, at most."""
        return sum(count(self) for count in self.who_waits)

    def wanted(self) -> None:
        """A flight begins to wait for a slot."""
        for tell in self.when_wanted:
            tell()

    @property
    def down(self) -> bool:
        """Whether it is held for dead: flights should go elsewhere, if they can. One that may be a
        probe should not.
        """
        return self.availability.down or any(limit.down for limit in self.limits)

    @property
    def outage(self) -> bool:
        """Whether it is held for dead, be it that it is being probed: failures are not the
        questions'.
        """
        return self.availability.outage

    def opened(self) -> None:
        """There may be room again."""
        for tell in self.when_opened:
            tell(self)

    def ask(self, prompt: Prompt, question: Question, part: Part) -> Coroutine[Any, Any, Answer]:
        """Ask the model; `part` tells when that begins, and which requests it takes.

        Raises as `Model.ask`, and `NotAsked`.
        """
        if self._batched is not None:
            return self._batched.ask(prompt, question, part)
        if not part.goes():
            raise NotAsked
        part.joins(1, first=True)
        return self.model.ask(prompt, question)

    async def admit(self) -> bool:
        """Wait for a call of what workers share; False if the model may not be asked then.

        The call is to begin before anything else is awaited. Requests of several questions wait for
        themselves.
        """
        if self.admission is not None and self._batched is None:
            await self.admission.admit()
        return self.availability.admits()

    async def pause(self, delay_s: float) -> bool:
        """Wait between two attempts; whether the model has come to be held for dead meanwhile."""
        self.pausing += 1
        try:
            return await self.availability.pause(delay_s)
        finally:
            self.pausing -= 1

    @property
    def boarding(self) -> int:
        """How many of the questions in flight are about to be asked, or wait to be."""
        return max(0, self.in_flight - self.asking - self.pausing)

    def began(self) -> int:
        """A call begins; what is returned is for `ended`. Requests of several questions tell limits
        of themselves.
        """
        self.asking += 1
        if self._batched is None:
            self.request_began()
        return self.availability.began()

    def ended(self, outcome: Answer | ModelFailure | None, key: bytes, ticket: int) -> None:
        """A call about `key` has ended, with an answer, a failure, or cancelled."""
        self.asking -= 1
        if self._batched is None:
            self.request_ended(outcome)
        self.availability.ended(outcome, key, ticket)

    def request_began(self) -> None:
        """A request begins: limits are told."""
        for limit in self.limits:
            limit.began()

    def request_ended(self, outcome: Answer | ModelFailure | None) -> None:
        """A request has ended: limits are told."""
        for limit in self.limits:
            limit.ended(outcome)


class _Requests:
    """Sees to the requests of a model that asks several questions in one."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.began = backend.request_began
        self.ended = backend.request_ended

    async def admit(self, *, again: bool) -> bool:
        """See `Watcher.admit`."""
        backend = self._backend
        if backend.admission is not None:
            await backend.admission.admit()
        return backend.availability.admits(again=again)
