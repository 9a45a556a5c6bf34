"""A budget a day and task: over it, misses are turned away and everything else goes on."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
import redis.asyncio
from redis.exceptions import RedisError

from askonce_queue import Client, Job, names
from askonce_queue.reply import Answer, Usage
from askonce_queue.store import Store
from askonce_worker.cache.key import KeyMaker
from askonce_worker.cache.policy import Control
from askonce_worker.models.protocol import Prompt, Question, TransientFailure
from askonce_worker.observe.budget import Budget, Budgets
from askonce_worker.observe.money import NANO, Price
from askonce_worker.resolver import Resolver
from askonce_worker.tasks import Task
from tests.support.leftovers import sweep_of
from tests.support.queue_worker import EchoModel, echo_tasks, echo_worker
from tests.support.resolving import (
    DIGEST,
    Outcome,
    StepModel,
    Waiter,
    ask,
    assert_at_rest,
    lease_count,
    make_task,
    resolver_on,
)
from tests.support.shadowing import checked
from tests.support.virtual_time import VirtualTime, virtual_scripts
from tests.support.waiting import eventually

CALL = Price(per_call=1.0)


def spend_it_all(task: Task) -> None:
    assert task.budget is not None
    task.budget.spend(round(task.budget.per_day * NANO))


def on_budget(model: StepModel, per_day: float = 2.0, **options: Any) -> Task:
    """A task whose calls cost 1 each."""
    task = make_task(model, **options)
    task.price = CALL
    task.budget = Budget("t", per_day)
    return task


def code(outcome: Outcome) -> str | None:
    return outcome.error.code if outcome.error else None


async def test_misses_are_turned_away_and_nothing_else(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    model = StepModel()
    task = on_budget(model)
    async with resolver_on(store_url) as resolver, resolver_on(store_url) as other:
        assert [(await ask(resolver, task, text)).source for text in "ab"] == ["model"] * 2
        refused = await ask(resolver, task, "c")
        assert code(refused) == "budget_exceeded"
        assert refused.error is not None
        assert "'t'" in refused.error.message
        assert (await ask(resolver, task, "a")).source == "memory"
        assert (await ask(other, task, "a")).source == "store"
        bypass = Waiter(task, "d", cacheable=False)
        resolver.resolve([bypass])
        assert code(await bypass.outcome()) == "budget_exceeded"
        assert model.total == 2
        counters = resolver.counters
        assert counters.total("flights_over_budget") == 2
        assert counters.total("errors") == 2
        # It is no rejection of the question: nobody remembers it.
        assert await store.hlen(names.tries("0").decode()) == 0
        task.budget = None
        assert (await ask(other, task, "c")).source == "model"
        await assert_at_rest(store, resolver, task)


async def test_who_waits_for_a_call_under_way_gets_its_answer(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    del store
    model = StepModel(closed=True)
    task = on_budget(model)
    async with resolver_on(store_url) as first, resolver_on(store_url) as second:
        waiters = [Waiter(task, "x") for _ in range(3)]
        first.resolve(waiters[:1])
        await eventually(lambda: model.in_flight)
        spend_it_all(task)
        first.resolve(waiters[1:2])
        second.resolve(waiters[2:])
        await eventually(lambda: len(second.flights))
        model.open()
        outcomes = [await waiter.outcome() for waiter in waiters]
        assert [one.source for one in outcomes] == ["model", "coalesced", "coalesced"]
        assert model.total == 1


async def test_it_needs_no_slot_and_no_lease_to_turn_away(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    """A saturated model delays nobody who may not ask it."""
    model = StepModel(closed=True)
    task = on_budget(model, slots=1)
    async with resolver_on(store_url) as resolver:
        held = Waiter(task, "held")
        resolver.resolve([held])
        await eventually(lambda: model.in_flight)
        waiting = Waiter(task, "waits for a slot")
        resolver.resolve([waiting])
        await eventually(lambda: resolver._room.is_wanted(task.backend))
        spend_it_all(task)
        assert code(await ask(resolver, task, "x")) == "budget_exceeded"
        assert code(await waiting.outcome()) == "budget_exceeded"
        assert await lease_count(store) == 1  # of the call under way
        model.open()
        assert (await held.outcome()).source == "model"


async def test_nobody_is_forgotten_who_waits_alone(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    """Each freed slot wakes one, and none is freed by those that are turned away."""
    model = StepModel(closed=True)
    task = on_budget(model, slots=1)
    async with resolver_on(store_url) as resolver:
        waiters = [Waiter(task, text, cacheable=False) for text in "abcde"]
        resolver.resolve(waiters)
        await eventually(lambda: model.in_flight)
        spend_it_all(task)
        model.open()
        codes = [code(await waiter.outcome()) for waiter in waiters]
        assert codes == [None, *["budget_exceeded"] * 4]
        await assert_at_rest(store, resolver, task)


async def test_a_retry_is_a_call_too(store: redis.asyncio.Redis, store_url: str) -> None:
    model = StepModel()

    async def fail(_text: str, _number: int) -> None:
        spend_it_all(task)
        raise TransientFailure("unavailable", "not now")

    model.behave = fail
    task = on_budget(model)
    async with resolver_on(store_url) as resolver:
        assert code(await ask(resolver, task, "x")) == "budget_exceeded"
        assert model.total == 1
        await assert_at_rest(store, resolver, task)


async def test_another_task_that_asks_the_same_goes_on(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    """They share flights; what ends one is the first asker's budget."""
    del store
    model = StepModel()
    task, rich = on_budget(model), make_task(model, "rich")
    async with resolver_on(store_url) as resolver:
        spend_it_all(task)
        waiters = [Waiter(task, "x"), Waiter(rich, "x")]
        resolver.resolve(waiters)
        assert code(await waiters[0].outcome()) == "budget_exceeded"
        assert (await waiters[1].outcome()).source == "model"


async def test_shadow_checks_stop(store: redis.asyncio.Redis, store_url: str) -> None:
    del store
    model = StepModel()
    task = on_budget(model, verify_share=1.0)
    async with checked(store_url, task) as resolver:
        assert (await ask(resolver, task, "x")).source == "model"
        spend_it_all(task)
        assert (await ask(resolver, task, "x")).source == "memory"
        await eventually(lambda: resolver.counters.total("verify_void"))
        assert model.total == 1


# With time


@pytest.fixture
def scripts_by_virtual_clock() -> Generator[None]:
    yield from virtual_scripts()


@pytest.fixture
async def time(
    scripts_by_virtual_clock: None, store: redis.asyncio.Redis, store_url: str
) -> VirtualTime:
    del scripts_by_virtual_clock
    made = VirtualTime(store, store_url)
    await made.advance(0)
    return made


class Shared:
    """One process of several on a budget: a resolver, a task, and what it knows of the budget."""

    def __init__(
        self, resolver: Resolver, store: Store, model: StepModel, per_day: float, **policy: float
    ) -> None:
        self.resolver = resolver
        self.task = on_budget(model, per_day, **policy)
        self.task.budget = Budget("t", per_day, clock=resolver._clock)
        self._budgets = Budgets(store, [self.task.budget])

    async def flush(self) -> None:
        await self._budgets.flush()

    async def ask(self, text: str) -> Outcome:
        return await ask(self.resolver, self.task, text)


async def test_stale_answers_are_served_and_not_refreshed(
    time: VirtualTime, askonce_store: Store
) -> None:
    model = StepModel()
    async with time.resolver() as resolver:
        one = Shared(
            resolver, askonce_store, model, 1.0, ttl_s=60.0, stale_while_revalidate_s=600.0
        )
        await one.flush()
        assert (await one.ask("x")).source == "model"
        await time.advance(70)
        assert [(await one.ask("x")).source for _ in range(3)] == ["stale"] * 3
        await time.advance(700)
        assert code(await one.ask("x")) == "budget_exceeded"
    assert model.total == 1


async def test_an_answer_may_stand_in_for_the_error(
    time: VirtualTime, askonce_store: Store
) -> None:
    model = StepModel()
    async with time.resolver() as resolver:
        one = Shared(resolver, askonce_store, model, 1.0, ttl_s=60.0, stale_if_error_s=600.0)
        await one.flush()
        assert (await one.ask("x")).source == "model"
        await time.advance(70)
        assert (await one.ask("x")).source == "stale"
        strict = Waiter(one.task, "x", control=Control())
        resolver.resolve([strict])
        assert code(await strict.outcome()) == "budget_exceeded"
    assert model.total == 1


async def test_a_new_day_at_midnight(
    time: VirtualTime, askonce_store: Store, store: redis.asyncio.Redis
) -> None:
    """By the clock of the store: 8:00 UTC when it begins."""
    model = StepModel()
    async with time.resolver() as resolver, time.resolver() as other:
        one, two = (Shared(r, askonce_store, model, 2.0) for r in (resolver, other))
        await one.flush()
        assert [(await one.ask(text)).source for text in "ab"] == ["model"] * 2
        await one.flush()
        await two.flush()
        for text, hours in (("c", 8), ("d", 7.9)):
            assert [code(await each.ask(text)) for each in (one, two)] == ["budget_exceeded"] * 2
            await time.advance(hours * 3600)
        assert code(await two.ask("e")) == "budget_exceeded"
        await time.advance(0.2 * 3600)
        assert (await one.ask("e")).source == "model"  # before it has asked the store
        await one.flush()
        await two.flush()
        assert (await two.ask("f")).source == "model"
        assert code(await two.ask("g")) == "budget_exceeded"
    key = names.budgets("0").decode()
    assert len(await store.hgetall(key)) == 2
    assert await store.ttl(key) == -1
    await time.advance(86_400)
    assert await sweep_of(askonce_store).once() == 1
    assert len(await store.hgetall(key)) == 1


async def test_all_workers_together_pass_it_by_no_more_than_the_bound(
    time: VirtualTime, askonce_store: Store
) -> None:
    """Three workers: two calls each since a flush, then four each in flight when it ends."""
    model = StepModel()
    workers, rounds = 3, 0
    per_day = 50.0
    async with time.resolver() as a, time.resolver() as b, time.resolver() as c:
        fleet = [Shared(r, askonce_store, model, per_day) for r in (a, b, c)]
        refused = 0
        while refused < workers:
            rounds += 1
            for number, one in enumerate(fleet):
                await one.flush()
                for call in range(2):
                    outcome = await one.ask(f"{number} {rounds} {call}")
                    refused += code(outcome) == "budget_exceeded"
        begun_between_flushes = workers * 2
        assert per_day <= model.total <= per_day + begun_between_flushes
        for one in fleet:
            await one.flush()
            assert one.task.budget is not None
            assert one.task.budget.spent_nano == model.total * NANO

        # Those in flight when it ends are paid for, and no other.
        held = StepModel(closed=True)
        more = [Shared(r, askonce_store, held, per_day + model.total) for r in (a, b, c)]
        for one in more:
            one.task.key_maker = KeyMaker(DIGEST[::-1], shared=False)
            await one.flush()
        asks = [
            Waiter(one.task, f"{number} {call}")
            for number, one in enumerate(more)
            for call in range(4)
        ]
        for number, one in enumerate(more):
            one.resolver.resolve(asks[4 * number : 4 * number + 4])
        await eventually(lambda: held.in_flight == 12)
        for one in more:
            spend_it_all(one.task)
        late = [await one.ask("late") for one in more]
        assert [code(one) for one in late] == ["budget_exceeded"] * 3
        held.open()
        assert [(await waiter.outcome()).source for waiter in asks] == ["model"] * 12
        assert held.total == 12


async def test_without_the_store_it_goes_by_what_it_knows(
    askonce_store: Store, store_url: str
) -> None:
    """Two had been spent by others; then nobody answers any more."""
    model = StepModel()
    nowhere = Store("redis://127.0.0.1:1/0")
    others = Budget("t", 5.0)
    others.spend(2 * NANO)
    await Budgets(askonce_store, [others]).flush()
    async with resolver_on(store_url) as resolver:
        task = on_budget(model, 5.0)
        assert task.budget is not None
        await Budgets(askonce_store, [task.budget]).flush()
        lost = Budgets(nowhere, [task.budget])
        for text in "abc":
            assert (await ask(resolver, task, text)).source == "model"
            with pytest.raises((RedisError, OSError)):
                await lost.flush()
        assert code(await ask(resolver, task, "d")) == "budget_exceeded"
        # Nothing of it is lost when the store is back.
        await Budgets(askonce_store, [task.budget, others][:1]).flush()
        await Budgets(askonce_store, [others]).flush()
        assert others.spent_nano == 5 * NANO
    await nowhere.aclose()


# From end to end


class PricedModel(EchoModel):
    """Its API reports 1000 tokens in and 100 out."""

    async def ask(self, prompt: Prompt, question: Question) -> Answer:
        answer = await super().ask(prompt, question)
        return Answer(label=answer.label, usage=Usage(1000, 100))


async def test_a_reply_says_what_its_call_cost(store: redis.asyncio.Redis, store_url: str) -> None:
    del store
    tasks = echo_tasks(PricedModel(), price=Price(input=2.0, output=10.0, per_call=0.5))
    worker = echo_worker(store_url)
    worker._task_table = tasks
    async with worker.running(), Client(store_url) as client:
        first, again = [await client.ask(Job(task="echo", text="x")) for _ in range(2)]
    assert first.source == "model"
    assert first.cost == pytest.approx(0.5 + 0.002 + 0.001)
    assert (again.source, again.cost) == ("memory", 0.0)
    assert again.answer is not None
    assert again.answer.usage == Usage(1000, 100)  # of the call behind it


async def test_a_worker_learns_what_was_spent_before_its_first_job(
    store: redis.asyncio.Redis, askonce_store: Store, store_url: str
) -> None:
    others = Budget("echo", 5.0)
    others.spend(5 * NANO)
    await Budgets(askonce_store, [others]).flush()
    model = EchoModel()
    worker = echo_worker(store_url, model)
    task = worker._task_table["echo"]
    task.price, task.budget = CALL, Budget("echo", 5.0)
    worker.budgets = Budgets(worker._commands, [task.budget])
    async with worker.running(), Client(store_url) as client:
        reply = await client.ask(Job(task="echo", text="x"))
        assert reply.error is not None
        assert reply.error.code == "budget_exceeded"
        task.budget.per_day, task.budget._limit_nano = 6.0, 6 * NANO
        assert (await client.ask(Job(task="echo", text="x"))).source == "model"
        assert worker.vitals().budgets == {"echo": (6.0, 6.0)}
    (spent,) = (await store.hgetall(names.budgets("0").decode())).values()
    assert int(spent) == 6 * NANO  # told at the end, too
    assert model.asked == ["x"]
