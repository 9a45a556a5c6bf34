"""A task as workers use it: compiled once from the configuration, read on every job."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal, Protocol

from askonce_queue.reply import Answer
from askonce_worker.cache.key import KeyMaker
from askonce_worker.cache.policy import Policy, demand_of
from askonce_worker.cache.tags import task_tag, version_tag
from askonce_worker.config import HitLogConfig, LimitsConfig
from askonce_worker.models.availability import Availability
from askonce_worker.models.batching import BatchedModel, NotAsked, Part
from askonce_worker.models.protocol import Model, ModelFailure, Prompt, Question
from askonce_worker.models.retry import RetryPolicy
from askonce_worker.observe.budget import Budget
from askonce_worker.observe.money import FREE, Price

WithoutStore = Literal["wait", "call", "raise"]
"""When the store cannot be asked: wait for it, ask the model for this process alone, or fail."""


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


class Task:
    """A named classification: where its questions go, what is in their key, how long answers last.

    `normalize` is applied before the key is made and before the model is asked. `tags` are those of
    all its answers, beside its own. `watched`: somebody wants to be told of all its hits; `noted`:
    of those whose keys begin with one of these bytes (`hits/log.py`). `hit_log`: which of them
    people get to see; None: none. `kept_out` says of the text of an input that a rule keeps it
    from the cache; it is None as long as the task has no rules. `price`: of a call. `budget`:
    what calls may cost a day. `fallback`: the same task with another model, for while this one is
    unavailable.
    """

    __slots__ = (
        "backend",
        "budget",
        "cacheable",
        "fallback",
        "hit_log",
        "kept_out",
        "key_maker",
        "max_input_bytes",
        "memory_control",
        "name",
        "normalize",
        "noted",
        "plain_control",
        "plain_demand",
        "policy",
        "price",
        "prompt",
        "remember_exhausted_s",
        "remember_rejection_s",
        "retry",
        "tag",
        "tags",
        "version",
        "watched",
        "without_store",
    )

    def __init__(
        self,
        name: str,
        *,
        backend: Backend,
        prompt: Prompt,
        key_maker: KeyMaker,
        normalize: Callable[[str], str] | None = None,
        policy: Policy | None = None,
        max_input_bytes: int = 65_536,
        retry: RetryPolicy | None = None,
        remember_rejection_s: float = 60.0,
        remember_exhausted_s: float = 5.0,
        without_store: WithoutStore = "wait",
        tags: Sequence[str] = (),
        watched: bool = False,
        price: Price = FREE,
        budget: Budget | None = None,
        fallback: Task | None = None,
        hit_log: HitLogConfig | None = None,
    ) -> None:
        self.name = name
        self.tag = task_tag(name)
        self.tags = (self.tag, *tags)
        self.version = version_tag(key_maker.digest)
        """A tag of its entries, not of who asks: so what another version left can be purged."""
        self.backend = backend
        self.prompt = prompt
        self.key_maker = key_maker
        self.normalize = normalize
        policy = policy or Policy()
        self.follow(policy)
        self.max_input_bytes = max_input_bytes
        self.retry = retry or RetryPolicy()
        self.remember_rejection_s = remember_rejection_s
        self.remember_exhausted_s = remember_exhausted_s
        self.without_store: WithoutStore = without_store
        self.price = price
        self.budget = budget
        self.fallback = fallback
        self.hit_log = hit_log if hit_log is not None and hit_log.share > 0 else None
        self.watched = watched or policy.verify_share > 0
        self.noted: frozenset[int] = frozenset()
        self.kept_out: Callable[[str], bool] | None = None

    @property
    def over_budget(self) -> bool:
        """Whether its questions may lead to no more calls today."""
        return self.budget is not None and self.budget.exceeded

    def follow(self, policy: Policy) -> None:
        """Go by a policy from now on. What memory keeps by the old one is its owner's to drop."""
        self.policy = policy
        self.cacheable = policy.cacheable and policy.max_age_s > 0
        self.plain_control = policy.plain
        # Tasks that ask the same share what memory keeps, and not their limits.
        self.memory_control = self.plain_control if policy.max_age_s < math.inf else None
        demand = demand_of((self.plain_control,))
        self.plain_demand = demand.pack() if demand is not None else None
