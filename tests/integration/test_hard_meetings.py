"""Where two parts meet: slots and silent stores, takeovers and budgets, fallbacks and equal keys.

Each was found by somebody who tried, as in test_hard_moments.py.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import math
import random
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis.asyncio

from askonce_queue import names
from askonce_queue.errors import ConfigError, StoreUnavailable
from askonce_queue.job import CacheControl
from askonce_queue.reply import ErrorCode
from askonce_queue.scripts import send
from askonce_queue.store import Store
from askonce_worker.backend import Backend
from askonce_worker.build import build_tasks, open_models
from askonce_worker.cache.key import KeyMaker
from askonce_worker.cache.store_tier import Hit
from askonce_worker.clock import SystemClock
from askonce_worker.config import load_settings
from askonce_worker.models.availability import Availability
from askonce_worker.models.circuit import CircuitBreaker, CircuitPolicy
from askonce_worker.models.hold import Hold
from askonce_worker.models.protocol import Rejection, TransientFailure
from askonce_worker.observe.budget import Budget, Budgets
from askonce_worker.observe.money import NANO
from askonce_worker.resolver import Resolver
from askonce_worker.tasks import Task
from tests.support.resolving import (
    DIGEST,
    StepModel,
    Waiter,
    ask,
    assert_at_rest,
    make_task,
    resolver_on,
)
from tests.support.waiting import eventually

CODES: tuple[ErrorCode, ...] = ("unavailable", "timeout", "rate_limited")


class HeldLookUp:
    """The first look-up of a key, or the first that has an answer, is held back until `go`."""

    def __init__(
        self,
        resolver: Resolver,
        monkeypatch: pytest.MonkeyPatch,
        key: bytes,
        *,
        hits_only: bool = False,
    ) -> None:
        self.arrived, self.go = asyncio.Event(), asyncio.Event()
        self.fails = False
        look_up = resolver._tier.look_up

        async def slow(batches: Any) -> Any:
            answers = await look_up(batches)
            found = [
                result
                for batch, results in zip(batches, answers, strict=True)
                for asked, result in zip(batch.keys, results, strict=True)
                if asked == key
            ]
            if found and not self.go.is_set() and (isinstance(found[0], Hit) or not hits_only):
                self.arrived.set()
                await self.go.wait()
                if self.fails:
                    raise StoreUnavailable("away")
            return answers

        monkeypatch.setattr(resolver._tier, "look_up", slow)


async def test_a_turn_that_nobody_needs_any_more_is_the_next_ones(
    store: redis.asyncio.Redis, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slot is freed for a flight that is being told at that moment that there is an answer."""
    model = StepModel(closed=True)
    task = make_task(model, slots=1)
    async with resolver_on(store_url) as other, resolver_on(store_url) as resolver:
        first, second = Waiter(task, "first"), Waiter(task, "second")
        alone = Waiter(task, "alone", cacheable=False)
        resolver.resolve([first])
        await eventually(lambda: model.in_flight == 1)
        resolver.resolve([second])
        await eventually(lambda: resolver._room.is_wanted(task.backend))
        resolver.resolve([alone])
        held = HeldLookUp(resolver, monkeypatch, second.key, hits_only=True)
        await ask(other, make_task(StepModel("b")), "second")
        await held.arrived.wait()
        model.open()
        await first.outcome()
        await eventually(lambda: task.backend.in_flight == 0)
        held.go.set()
        assert (await second.outcome()).label == "b"
        assert (await alone.outcome()).label == "a"
        await assert_at_rest(store, resolver, task)
        assert resolver._room.waiting(task.backend) == 0


async def test_whose_turn_has_come_may_need_no_store(
    store: redis.asyncio.Redis, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slot is freed for a flight whose look-up fails at that moment, and that goes on alone."""
    model = StepModel(closed=True)
    task = make_task(model, slots=1)
    task.without_store = "call"
    async with resolver_on(store_url) as resolver:
        first, second = Waiter(task, "first"), Waiter(task, "second")
        resolver.resolve([first])
        await eventually(lambda: model.in_flight == 1)
        resolver.resolve([second])
        await eventually(lambda: resolver._room.is_wanted(task.backend))
        held = HeldLookUp(resolver, monkeypatch, second.key)
        held.fails = True
        await held.arrived.wait()
        model.open()
        await first.outcome()
        await eventually(lambda: task.backend.in_flight == 0)
        held.go.set()
        assert (await second.outcome()).label == "a"
        await assert_at_rest(store, resolver, task)
        assert resolver._room.waiting(task.backend) == 0


async def test_a_silent_shard_keeps_no_turn(
    store: redis.asyncio.Redis, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the flight whose turn has come, one waits that the store need not be asked about."""
    model = StepModel(closed=True)
    task = make_task(model, slots=1)
    async with resolver_on(store_url) as resolver:
        first, second = Waiter(task, "first"), Waiter(task, "second")
        alone = Waiter(task, "alone", cacheable=False)
        resolver.resolve([first])
        await eventually(lambda: model.in_flight == 1)
        resolver.resolve([second])
        await eventually(lambda: resolver._room.is_wanted(task.backend))
        resolver.resolve([alone])
        other = Waiter(make_task(StepModel("b"), "other"), "third")
        other.task.backend.name = "other"
        held = HeldLookUp(resolver, monkeypatch, other.key)
        resolver.resolve([other])
        await held.arrived.wait()
        model.open()
        await first.outcome()
        with anyio.fail_after(3):  # long before the look-up is given up
            assert (await alone.outcome()).label == "a"
        held.go.set()
        assert (await second.outcome()).label == "a"
        assert (await other.outcome()).label == "b"
        await assert_at_rest(store, resolver, task, other.task)


async def test_who_may_not_call_takes_no_lease_over(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    """A task over its budget waits for the leader, however long: it could not replace it."""
    model = StepModel(closed=True)
    leader = make_task(model)
    budget = Budget("t", 1.0)
    poor = make_task(model, patience_s=0.05)
    poor.budget = budget
    async with resolver_on(store_url) as first, resolver_on(store_url) as second:
        leading = Waiter(leader, "x")
        first.resolve([leading])
        await eventually(lambda: model.in_flight == 1)
        budget.spend(NANO)
        waiting = Waiter(poor, "x")
        second.resolve([waiting])
        await asyncio.sleep(0.5)
        model.open()
        assert (await waiting.outcome()).label == "a"
        await leading.outcome()
        assert first.counters.total("flights_filled") == 1
        await assert_at_rest(store, first, leader)
        await assert_at_rest(store, second, poor)


async def test_a_budget_that_cannot_be_read_ends_nothing(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    """Nor does it make others be counted again and again."""
    own = Store(store_url)
    try:
        now_s, _ = await send(store, "TIME")
        day = int(now_s) // 86400
        await send(store, "HSET", names.budgets("0"), f"{day}|damaged", "garbage")
        damaged, good = Budget("damaged", 1.0), Budget("good", 1.0)
        budgets = Budgets(own, [good, damaged])
        await budgets.flush()
        assert damaged.spent_nano == 0
        for one in (good, damaged):
            one.spend(NANO // 10)
        for _ in range(3):
            await budgets.flush()
        assert (good.spent_nano, damaged.spent_nano) == (NANO // 10, NANO // 10)
    finally:
        await own.aclose()


def with_fallback(
    first: StepModel, second: StepModel, *, open_s: float = 0.2, **policy: Any
) -> Task:
    """A task with a breaker that opens at the first failures, and a fallback."""
    task = make_task(first, "rich", **policy)
    give_breaker(task.backend, open_s=open_s)
    task.fallback = make_task(second, "rich", **policy)
    task.fallback.backend = Backend("m2", second, 64, 60.0)
    task.fallback.key_maker = KeyMaker(DIGEST[::-1], shared=False)
    return task


def give_breaker(
    backend: Backend, *, open_s: float = 0.2, failures: int = 1, hold_s: float = 0.0
) -> None:
    policy = CircuitPolicy(failures=failures, unreachable=1, open_s=open_s, longest_open_s=open_s)
    breaker = CircuitBreaker(policy, SystemClock(), random.Random(1))
    hold = Hold(SystemClock(), hold_s)
    backend.availability = Availability("m", breaker=breaker, hold=hold)
    backend.availability.opened = backend.opened


@pytest.mark.parametrize("joins", [True, False])
async def test_who_has_no_fallback_waits_beside_one_who_has(
    store: redis.asyncio.Redis, store_url: str, joins: bool
) -> None:
    """Two tasks that ask the same of one model; only one of them has another."""
    first, second = StepModel(closed=True), StepModel("second")
    down = True

    async def behave(_text: str, _number: int) -> None:
        if down:
            await first._gate.wait()
            raise TransientFailure("unavailable", "down")

    first.behave = behave
    rich = with_fallback(first, second)
    plain = make_task(first, "plain")
    plain.backend = rich.backend
    async with resolver_on(store_url) as resolver:
        one, other = Waiter(rich, "x"), Waiter(plain, "x")
        resolver.resolve([one])
        await eventually(lambda: first.in_flight == 1)
        if joins:
            resolver.resolve([other])
        first.open()
        assert (await one.outcome()).label == "second"
        resolver.resolve([] if joins else [other])
        await asyncio.sleep(0.3)
        down = False
        assert (await other.outcome()).label == "a"
        await assert_at_rest(store, resolver, rich, plain)


async def test_who_has_a_fallback_need_not_wait_beside_one_who_has_none(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    """The flight is that of the other task: he who came first."""
    first, second = StepModel(closed=True), StepModel("second")
    down = True

    async def behave(_text: str, _number: int) -> None:
        if down:
            await first._gate.wait()
            raise TransientFailure("unavailable", "down")

    first.behave = behave
    rich = with_fallback(first, second, open_s=60.0)
    plain = make_task(first, "plain")
    plain.backend = rich.backend
    async with resolver_on(store_url) as resolver:
        one, other = Waiter(plain, "x"), Waiter(rich, "x")
        resolver.resolve([one, other])
        await eventually(lambda: first.in_flight == 1)
        first.open()
        assert (await other.outcome()).label == "second"
        await asyncio.sleep(0.2)
        assert not one.outcomes
        down = False
        rich.backend.availability._breaker = None
        rich.backend.opened()
        assert (await one.outcome()).label == "a"
        await assert_at_rest(store, resolver, rich, plain)


async def test_a_fallback_must_have_keys_of_its_own(tmp_path: Path) -> None:
    """What is remembered of the first model, as that its account is empty, is not the other's."""
    path = tmp_path / "askonce.toml"
    model = 'kind = "openai"\nbase_url = "http://a/v1"\nmodel = "m"'
    path.write_text(
        f"[models.one]\n{model}\n[models.two]\n{model}\n"
        '[tasks.tone]\nmodel = "one"\nfallback = "two"\nlabels = ["a", "b"]'
    )
    settings = load_settings(path)
    async with open_models(settings) as backends:
        with pytest.raises(ConfigError, match=r"askonce\.toml: tasks\.tone\.fallback: expected"):
            build_tasks(settings, backends)


class Chaos:
    """Two workers of two tasks, on models that fail as they like."""

    def __init__(self, seed: int, *resolvers: Resolver) -> None:
        self.rng = random.Random(seed)
        self.health = {"first": 0.5, "second": 0.5}
        self.workers = [(resolver, self._tasks()) for resolver in resolvers]

    def _tasks(self) -> list[Task]:
        policy: dict[str, Any] = {"slots": 3, "patience_s": 0.05, "stale_if_error_s": 60}
        rich = with_fallback(self._model("first"), self._model("second"), **policy)
        assert rich.fallback is not None
        rich.fallback.backend.slots = 2
        for backend in (rich.backend, rich.fallback.backend):
            give_breaker(backend, open_s=0.05, failures=3, hold_s=0.05)
        plain = make_task(StepModel(), "plain", remember_s=0.01)
        plain.backend = rich.backend
        return [rich, plain]

    def _model(self, name: str) -> StepModel:
        async def behave(text: str, _number: int) -> None:
            await asyncio.sleep(self.rng.choice((0.0, 0.001, 0.02)))
            if self.rng.random() > self.health[name]:
                code = self.rng.choice(CODES)
                raise TransientFailure(code, "down", retry_after_s=self.rng.choice((None, 0.02)))
            if text.endswith("7"):
                raise Rejection("refused", "no")

        return StepModel(name, behave=behave)

    def change(self) -> None:
        """Now and then a model gets well or ill."""
        if self.rng.random() < 0.1:
            self.health[self.rng.choice(("first", "second"))] = self.rng.choice((0.0, 0.3, 1.0))

    def ask(self) -> list[Waiter]:
        """Ask one of the workers up to three questions."""
        resolver, tasks = self.rng.choice(self.workers)
        waiters = [self._waiter(self.rng.choice(tasks)) for _ in range(self.rng.randrange(1, 4))]
        resolver.resolve(waiters)
        return waiters

    def _waiter(self, task: Task) -> Waiter:
        rng = self.rng
        control: dict[str, Any] = rng.choice(({}, {}, {"no_cache": True}, {"only_if_cached": True}))
        soon = time.monotonic() + rng.uniform(-0.01, 0.1)
        return Waiter(
            task,
            f"q{rng.randrange(30)}",
            cacheable=rng.random() < 0.8,
            lane=rng.choice(("interactive", "bulk")),
            deadline=soon if rng.random() < 0.3 else math.inf,
            control=task.policy.control(CacheControl(**control)) if control else None,
        )


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_everybody_is_told_once_and_nothing_is_left(
    store: redis.asyncio.Redis, store_url: str, seed: int
) -> None:
    """Models that fail and come back; deadlines, lanes, what is not cacheable, two workers."""
    async with resolver_on(store_url) as one, resolver_on(store_url) as two:
        chaos = Chaos(seed, one, two)
        waiters: list[Waiter] = []
        for _ in range(150):
            chaos.change()
            waiters += chaos.ask()
            await asyncio.sleep(chaos.rng.choice((0.0, 0.001, 0.01)))
        chaos.health.update(first=1.0, second=1.0)
        await eventually(lambda: all(waiter.outcomes for waiter in waiters), 20)
        for waiter in waiters:
            (outcome,) = waiter.outcomes
            assert outcome.label != "second" or waiter.task.fallback is not None
        for resolver, (rich, plain) in chaos.workers:
            assert rich.fallback is not None
            await assert_at_rest(store, resolver, rich, plain, rich.fallback)
            for backend in (rich.backend, rich.fallback.backend):
                await eventually(backend.availability.admits)
                assert backend.availability._breaker is not None
                assert backend.availability._breaker._probing == 0
                assert not resolver._room._for_slot[backend.name].chosen
                assert backend.in_flight == 0  # it may want a probe, and nobody asks
