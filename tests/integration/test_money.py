"""What is spent and what is avoided: on every way to an answer, by task and by tenant."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import pytest
import redis.asyncio
from redis.exceptions import RedisError

from askonce_queue.reply import Answer, Usage
from askonce_queue.store import Store
from askonce_worker import AnswerCache
from askonce_worker.models.protocol import Prompt, Question, TransientFailure
from askonce_worker.observe.counters import Counters
from askonce_worker.observe.money import NANO, Price
from askonce_worker.observe.totals import FleetReader, FleetState, Terms, read_fleet
from askonce_worker.resolver import Resolver
from askonce_worker.tasks import Task
from tests.support.resolving import StepModel, Waiter, make_task, resolver_on
from tests.support.waiting import eventually

PRICE = Price(input=2.0, output=10.0, per_call=0.001)
CALL = 0.001 + 400 * 2e-6 + 20 * 10e-6
"""What one call below costs."""


class MeteredModel(StepModel):
    """Its API reports 400 tokens in and 20 out."""

    async def ask(self, prompt: Prompt, question: Question) -> Answer:
        answer = await super().ask(prompt, question)
        return Answer(label=answer.label, usage=Usage(400, 20))


def priced(model: StepModel, name: str = "t") -> Task:
    task = make_task(model, name)
    task.price = PRICE
    return task


async def asked(resolver: Resolver, task: Task, text: str, tenant: str = "") -> str | None:
    waiter = Waiter(task, text, tenant=tenant)
    resolver.resolve([waiter])
    return (await waiter.outcome()).source


async def flushed(store: Store, *resolvers: Resolver) -> FleetState:
    for resolver in resolvers:
        await resolver.counters.flush(store, "0")
    return await read_fleet(store, "default", Terms(store_per_hour=1.0))


async def test_every_way_to_an_answer_has_its_price(askonce_store: Store, store_url: str) -> None:
    """One call; three that joined it, two hits from memory, one from the store."""
    model = MeteredModel(closed=True)
    task = priced(model)
    async with resolver_on(store_url) as first, resolver_on(store_url) as second:
        waiters = [Waiter(task, "x") for _ in range(4)]
        first.resolve(waiters)
        await eventually(lambda: model.in_flight)
        model.open()
        assert [(await w.outcome()).source for w in waiters] == ["model"] + ["coalesced"] * 3
        assert [await asked(first, task, "x") for _ in range(2)] == ["memory"] * 2
        assert await asked(second, task, "x") == "store"
        state = await flushed(askonce_store, first, second)
    for totals in (state.total, state.tasks["t"], state.windows["1m"].total):
        assert totals.answered == 7
        assert totals.cost.spent == pytest.approx(CALL)
        assert totals.cost.avoided == pytest.approx(6 * CALL)
        assert totals.cost.per_call == pytest.approx(CALL)
        assert totals.cost.calls_per_1000 == pytest.approx(1000 * CALL / 7)
        assert totals.cost.uncached_per_1000 == pytest.approx(1000 * CALL)
        assert (totals.tokens.input, totals.tokens.output) == (400, 20)
        assert (totals.tokens.saved_input, totals.tokens.saved_output) == (2400, 120)
        assert totals.hits["memory"] == 2
    window = state.windows["1m"]
    cost, hit_rate = window.total.cost, 6 / 7
    assert cost.per_call is not None
    store_part = 1000 * window.span_s / 3600 / 7
    rounded = 1000 * 0.05 / 3600 / 7  # the span is told to a tenth of a second
    assert cost.store_per_1000 == pytest.approx(store_part, rel=0.01, abs=1.01 * rounded)
    assert cost.effective_per_1000 == pytest.approx(
        1000 * cost.per_call * (1 - hit_rate) + (cost.store_per_1000 or 0)
    )
    assert state.total.cost.store_per_1000 is None  # nobody knows for how long it has been there


async def test_tenants_pay_for_what_they_asked_first(askonce_store: Store, store_url: str) -> None:
    task = priced(MeteredModel())
    async with resolver_on(store_url) as resolver:
        for tenant in ("acme", "globex", "globex", "", "we|rd @100%"):
            await asked(resolver, task, "x", tenant)
        state = await flushed(askonce_store, resolver)
    assert set(state.tenants) == {"acme", "globex", "we|rd @100%"}
    acme, globex = state.tenants["acme"], state.tenants["globex"]
    assert (acme.hits, acme.misses, acme.hit_rate) == (0, 1, 0.0)
    assert acme.cost.spent == pytest.approx(CALL)
    assert (globex.hits, globex.misses) == (2, 0)
    assert globex.cost.spent == 0
    assert globex.cost.avoided == pytest.approx(2 * CALL)
    assert globex.tokens.saved_input == 800
    assert set(state.tasks) == {"t"}  # a tenant is no task
    assert set(state.windows["24h"].tenants) == set(state.tenants)


async def test_calls_that_fail_cost_what_a_call_costs(askonce_store: Store, store_url: str) -> None:
    """Nobody says which tokens they used."""

    async def fail_twice(_text: str, number: int) -> None:
        if number <= 2:
            raise TransientFailure("unavailable", "not now")

    task = priced(MeteredModel(behave=fail_twice))
    async with resolver_on(store_url) as resolver:
        assert await asked(resolver, task, "x") == "model"
        state = await flushed(askonce_store, resolver)
    assert state.total.cost.spent == pytest.approx(2 * PRICE.per_call + CALL)
    assert state.total.cost.per_call == state.total.cost.spent


async def test_what_could_not_be_flushed_is_flushed_later_and_never_missing_here(
    askonce_store: Store, store_url: str
) -> None:
    task = priced(MeteredModel())
    nowhere = Store("redis://127.0.0.1:1/0")
    async with resolver_on(store_url) as resolver:
        for _ in range(3):
            await asked(resolver, task, "x", "acme")
        counters = resolver.counters
        before = counters.since_start()
        for _ in range(2):
            with pytest.raises((RedisError, OSError)):
                await counters.flush(nowhere, "0")
            assert counters.since_start() == before
        state = await flushed(askonce_store, resolver)
        assert counters.since_start() == before
    await nowhere.aclose()
    assert state.total.answered == 3
    assert state.total.cost.avoided == pytest.approx(2 * CALL)
    assert state.tenants["acme"].hits == 2


async def test_more_counters_than_one_script_takes(askonce_store: Store) -> None:
    counters = Counters()
    for number in range(1200):
        counters.count(f"task {number}", "model")
    await counters.flush(askonce_store, "0")
    state = await read_fleet(askonce_store, "default")
    assert len(state.tasks) == 1200
    assert state.total.misses == 1200


async def test_only_so_many_tenants_have_a_name(
    askonce_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = Counters()
    monkeypatch.setattr(counters._tenants, "_most", 3)
    tally = counters.tally("t", PRICE)
    for number in range(10):
        tally.memory[f"tenant {number}"] = 2
    await counters.flush(askonce_store, "0")
    state = await read_fleet(askonce_store, "default")
    assert len(state.tenants) == 4
    assert state.tenants["(others)"].hits == 14
    assert sum(tenant.hits for tenant in state.tenants.values()) == 20
    assert state.total.hits["memory"] == 20
    assert state.total.cost.avoided == pytest.approx(20 * PRICE.per_call)


async def test_the_library_counts_for_the_fleet(
    askonce_store: Store, store: redis.asyncio.Redis, store_url: str
) -> None:
    """Its last counts too, when it closes."""
    del store

    async def one() -> int:
        return 1

    async with AnswerCache(store_url, price_per_call=0.5) as cache:
        for tenant in ("acme", "acme", "globex"):
            await cache.get_or_call("sum", "1", one, tenant=tenant)
    reader = FleetReader(askonce_store, "default")
    state = await reader.read()
    assert state.tasks["sum"].misses == 2  # a tenant does not see another's answers
    assert state.tasks["sum"].hits["memory"] == 1
    assert (state.tasks["sum"].fills, state.tasks["sum"].first_reads) == (2, 1)
    assert state.tasks["sum"].cost.spent == 1.0
    assert state.tenants["acme"].cost.avoided == 0.5
    assert state.windows["24h"].tenants["globex"].cost.spent == 0.5


def test_a_billionth_is_the_least_that_is_counted() -> None:
    assert Price(input=0.05).nano(1, 1, 0) == 50
    assert sum(Price(input=0.05, output=0.2).nano(0, 1, 1) for _ in range(1000)) == 250_000
    assert Price(per_call=0.25).nano(4, 10**6, 10**6) == NANO
