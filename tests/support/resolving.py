"""A resolver under test: its asks, its task, and a model that does as it is told."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple, cast

import anyio
import redis.asyncio

from askonce_queue import names
from askonce_queue.queue_scripts import LaneName
from askonce_queue.reply import Answer, ErrorInfo, Source
from askonce_queue.shards import shard_tags
from askonce_queue.store import Store
from askonce_worker.backend import Backend
from askonce_worker.cache.entry import Entry
from askonce_worker.cache.key import KeyMaker, task_digest
from askonce_worker.cache.policy import Control, Policy
from askonce_worker.clock import SystemClock
from askonce_worker.models.protocol import Model, Prompt, Question
from askonce_worker.models.retry import RetryPolicy
from askonce_worker.observe.counters import Counters
from askonce_worker.resolver import Resolver
from askonce_worker.tasks import Task
from tests.support.waiting import eventually

LIMIT_S = 20.0
"""Longer than anything here takes, on any machine: what is not over by then never ends."""
QUICK_RETRY = RetryPolicy(max_attempts=3, base_s=0.001, cap_s=0.002)
DIGEST = task_digest(model_identity={"kind": "test"}, prompt=Prompt(), normalize=())


class Outcome(NamedTuple):
    """What an ask was told: an answer or an error."""

    entry: Entry | None = None
    source: Source | None = None
    age_s: float = 0.0
    error: ErrorInfo | None = None
    cause: Exception | None = None

    @property
    def label(self) -> str | None:
        return self.entry.answer.label if self.entry is not None else None


class Waiter:
    """An ask that keeps all it is told."""

    def __init__(
        self,
        task: Task,
        text: str,
        *,
        tags: Sequence[str] = (),
        cacheable: bool = True,
        tenant: str = "",
        control: Control | None = None,
        lane: LaneName = "interactive",
        deadline: float = math.inf,
    ) -> None:
        self.task = task
        self.key = task.key_maker.text_key(text)
        self.tags = (*task.tags, *tags)
        self.cacheable = cacheable
        self.tenant = tenant
        self.control = control
        self.lane: LaneName = lane
        self.deadline = deadline
        self.outcomes: list[Outcome] = []
        self._text = text
        self._told = asyncio.Event()

    def key_for(self, task: Task) -> bytes:
        return task.key_maker.text_key(self._text)

    def may_defer(self) -> bool:
        return False

    def deferred(self) -> None:
        raise AssertionError("it may not be deferred")

    def question(self) -> Question:
        return Question(text=self._text)

    def answered(self, entry: Entry, source: Source, age_s: float) -> None:
        self.outcomes.append(Outcome(entry, source, age_s))
        self._told.set()

    def failed(self, error: ErrorInfo, cause: Exception | None) -> None:
        self.outcomes.append(Outcome(error=error, cause=cause))
        self._told.set()

    async def outcome(self) -> Outcome:
        """The one outcome, once it is there."""
        with anyio.fail_after(LIMIT_S):
            await self._told.wait()
        (outcome,) = self.outcomes
        return outcome


class StepModel:
    """A model whose calls wait while its gate is closed, then answer with its label.

    The label is that of the moment when the call began, as with a model that reads what it judges.
    `behave` is awaited in each call, with the text and how often it was asked; it may raise.
    """

    def __init__(
        self,
        label: str = "a",
        *,
        closed: bool = False,
        behave: Callable[[str, int], Awaitable[None]] | None = None,
        score: float | None = None,
    ) -> None:
        self.label = label
        self.score = score
        self.behave = behave
        self.calls: Counter[str] = Counter()
        self.in_flight = 0
        self.most_in_flight = 0
        self._gate = asyncio.Event()
        if not closed:
            self._gate.set()

    def open(self) -> None:
        self._gate.set()

    def close(self) -> None:
        self._gate.clear()

    @property
    def total(self) -> int:
        return self.calls.total()

    async def ask(self, prompt: Prompt, question: Question) -> Answer:
        del prompt
        text, label = str(question.text), self.label
        self.calls[text] += 1
        number = self.calls[text]
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if self.behave is not None:
                await self.behave(text, number)
            await self._gate.wait()
        finally:
            self.in_flight -= 1
        return Answer(label=label, score=self.score)

    async def check(self) -> str:
        return "under test"

    async def aclose(self) -> None:
        """Nothing to release."""


class ShiftedClock(SystemClock):
    """The machine's clock, plus what a test adds."""

    def __init__(self) -> None:
        self.shift_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.shift_s


class FrozenClock(SystemClock):
    """A worker's clock that stands still."""

    def __init__(self) -> None:
        self._now = super().monotonic()

    def monotonic(self) -> float:
        return self._now


def make_task(
    model: Model,
    name: str = "t",
    *,
    slots: int = 64,
    patience_s: float = 60.0,
    retry: RetryPolicy = QUICK_RETRY,
    ttl_s: float = 3600.0,
    remember_s: float = 60.0,
    **policy: Any,
) -> Task:
    """A task on `model`, with a backend of its own; equal questions have equal keys everywhere."""
    return Task(
        name,
        backend=Backend("m", model, slots, patience_s),
        prompt=Prompt(),
        key_maker=KeyMaker(DIGEST, shared=False),
        policy=Policy(ttl_s=ttl_s, **policy),
        retry=retry,
        remember_rejection_s=remember_s,
        remember_exhausted_s=remember_s,
    )


@asynccontextmanager
async def resolver_on(
    url: str,
    *,
    shards: int = 1,
    lease_ttl_s: float = 10.0,
    lease_renew_s: float | None = None,
    stamp_bound_s: float = 0.5,
    memory_bytes: int = 1 << 20,
    clock: SystemClock | None = None,
    rng: random.Random | None = None,
) -> AsyncGenerator[Resolver]:
    """A running resolver with a connection of its own, like one more process."""
    client = Store(url, shards=shards)
    try:
        resolver = Resolver(
            client,
            memory_bytes=memory_bytes,
            lease_ttl_s=lease_ttl_s,
            lease_renew_s=0.3 * lease_ttl_s if lease_renew_s is None else lease_renew_s,
            stamp_bound_s=stamp_bound_s,
            counters=Counters(),
            clock=clock,
            rng=rng,
        )
        async with _alive(resolver):
            yield resolver
    finally:
        await client.aclose()


@asynccontextmanager
async def _alive(resolver: Resolver) -> AsyncGenerator[None]:
    """Run a resolver; fail when it ends before its user does, and raise the user's own error."""
    error: Exception | None = None
    ended = False
    try:
        async with resolver.running():
            for shard in range(resolver._shards):
                await resolver.stamps.read(shard)
            try:
                yield
            except Exception as raised:
                error = raised
                raise
            ended = True
    except ExceptionGroup:
        if error is None:
            raise
        raise error from None
    # A task group that is cancelled swallows the cancellation of its user.
    assert ended, "the resolver ended before its user"


@asynccontextmanager
async def resolvers_on(
    url: str, count: int, *, lease_ttl_s: float = 10.0, stamp_bound_s: float = 0.5
) -> AsyncGenerator[list[Resolver]]:
    """Several resolvers, like several processes."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                resolver_on(url, lease_ttl_s=lease_ttl_s, stamp_bound_s=stamp_bound_s)
            )
            for _ in range(count)
        ]


async def ask(resolver: Resolver, task: Task, text: str, *, tags: Sequence[str] = ()) -> Outcome:
    """Ask once and wait for the outcome."""
    waiter = Waiter(task, text, tags=tags)
    resolver.resolve([waiter])
    return await waiter.outcome()


async def step_until(predicate: Callable[[], bool]) -> None:
    """Let the loop run, one step at a time, until `predicate` holds: no later than that."""
    for _ in range(10_000):
        if predicate():
            return
        await asyncio.sleep(0)
    raise AssertionError("not within 10,000 steps of the loop")


async def all_keys(store: redis.asyncio.Redis, pattern: str = "*") -> list[bytes]:
    """The keys of the store that match."""
    return [key async for key in cast("AsyncIterator[bytes]", store.scan_iter(pattern))]


async def lease_count(store: redis.asyncio.Redis, shards: int = 1) -> int:
    """How many fill leases the store knows of."""
    counts = [await store.hlen(names.leases(tag).decode()) for tag in shard_tags(shards)]
    return sum(counts)


async def assert_at_rest(
    store: redis.asyncio.Redis, resolver: Resolver, *tasks: Task, shards: int = 1
) -> None:
    """Fail unless no flight, slot or lease is left, here and in the store."""

    async def at_rest() -> bool:
        return (
            len(resolver.flights) == 0
            and len(resolver.leases) == 0
            and all(task.backend.in_flight == 0 for task in tasks)
            and await lease_count(store, shards) == 0
        )

    await eventually(at_rest)
