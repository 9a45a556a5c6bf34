"""Per-job cache control, with the meanings that HTTP gives these directives (RFC 9111, 5.2.1)."""

from __future__ import annotations

from functools import partial
from typing import Any

import redis.asyncio

from askonce_queue.job import CacheControl
from askonce_worker.models.protocol import TransientFailure
from askonce_worker.resolver import Resolver
from askonce_worker.tasks import Task
from tests.support.resolving import (
    Outcome,
    StepModel,
    Waiter,
    all_keys,
    ask,
    assert_at_rest,
    make_task,
    step_until,
)
from tests.support.virtual_time import VirtualTime
from tests.support.waiting import eventually


def waiter_of(task: Task, text: str = "x", **directives: Any) -> Waiter:
    return Waiter(task, text, control=task.policy.control(CacheControl(**directives)))


def in_flight(model: StepModel, count: int) -> bool:
    return model.in_flight == count


async def ask_with(resolver: Resolver, task: Task, **directives: Any) -> Outcome:
    waiter = waiter_of(task, **directives)
    resolver.resolve([waiter])
    return await waiter.outcome()


async def stored(store: redis.asyncio.Redis) -> int:
    return len(await all_keys(store, "a:*"))


# --- no-cache --------------------------------------------------------------------------------


async def test_no_cache_asks_anew_and_keeps_the_answer(time: VirtualTime) -> None:
    model = StepModel("old")
    task = make_task(model)
    async with time.resolver() as first, time.resolver() as second:
        await ask(first, task, "x")
        assert (await ask(second, task, "x")).source == "store"
        model.label = "new"
        outcome = await ask_with(first, task, no_cache=True)
        assert (outcome.source, outcome.label) == ("model", "new")
        assert first.counters.total("calls_refresh") == 1
        assert (await ask(first, task, "x")).label == "new"
        async with time.resolver() as third:
            assert (await ask(third, task, "x")).label == "new"
        assert model.total == 2


async def test_no_cache_joins_no_flight_that_was_begun_before(
    store: redis.asyncio.Redis, time: VirtualTime
) -> None:
    """Neither here nor in another process; and what began before is not kept over what came."""
    model = StepModel("before", closed=True)
    task = make_task(model)
    async with time.resolver() as first, time.resolver() as second:
        before = Waiter(task, "x")
        first.resolve([before])
        await eventually(lambda: model.in_flight == 1)
        model.label = "after"
        here, there = waiter_of(task, no_cache=True), waiter_of(task, no_cache=True)
        first.resolve([here])
        await eventually(lambda: model.in_flight == 2)
        second.resolve([there])
        await eventually(lambda: model.in_flight == 3)
        model.open()
        assert (await before.outcome()).label == "before"
        assert (await here.outcome()).label == "after"
        assert (await there.outcome()).label == "after"
        async with time.resolver() as third:
            assert (await ask(third, task, "x")).label == "after"
        for resolver in (first, second):
            await assert_at_rest(store, resolver, task)


async def test_those_who_ask_anew_together_share_one_call(time: VirtualTime) -> None:
    model = StepModel()
    task = make_task(model)
    async with time.resolver() as resolver:
        await ask(resolver, task, "x")
        waiters = [waiter_of(task, no_cache=True) for _ in range(10)]
        resolver.resolve(waiters)
        for waiter in waiters:
            await waiter.outcome()
        assert model.total == 2


async def test_others_do_not_wait_for_who_asks_anew(time: VirtualTime) -> None:
    model = StepModel("old")
    task = make_task(model)
    async with time.resolver(memory_bytes=0) as resolver:
        await ask(resolver, task, "x")
        model.close()
        anew = waiter_of(task, no_cache=True)
        resolver.resolve([anew])
        await eventually(lambda: model.in_flight == 1)
        assert (await ask(resolver, task, "x")).source == "store"
        model.open()
        await anew.outcome()


async def test_no_cache_is_not_told_of_old_failures(time: VirtualTime) -> None:
    failing = True

    async def behave(_text: str, _number: int) -> None:
        if failing:
            raise TransientFailure("unavailable", "down")

    model = StepModel(behave=behave)
    task = make_task(model, remember_s=600)
    async with time.resolver() as resolver:
        assert (await ask(resolver, task, "x")).error
        failing = False
        assert (await ask(resolver, task, "x")).error, "it is remembered"
        assert (await ask_with(resolver, task, no_cache=True)).label == "a"


# --- no-store --------------------------------------------------------------------------------


async def test_no_store_keeps_nothing_but_takes_what_is_there(
    store: redis.asyncio.Redis, time: VirtualTime
) -> None:
    model = StepModel()
    task = make_task(model)
    async with time.resolver() as resolver:
        for _ in range(2):
            assert (await ask_with(resolver, task, no_store=True)).source == "model"
            await assert_at_rest(store, resolver, task)
        assert await stored(store) == 0
        assert len(resolver.memory) == 0
        assert resolver.counters.total("calls_bypass") == 2
        await ask(resolver, task, "x")
        assert (await ask_with(resolver, task, no_store=True)).source == "memory"


async def test_who_joins_and_may_keep_it_keeps_it(
    store: redis.asyncio.Redis, time: VirtualTime
) -> None:
    model = StepModel(closed=True)
    task = make_task(model)
    async with time.resolver() as resolver:
        first, second = waiter_of(task, no_store=True), Waiter(task, "x")
        resolver.resolve([first, second])
        await eventually(lambda: model.in_flight == 1)
        model.open()
        assert {(await first.outcome()).source, (await second.outcome()).source} == {
            "model",
            "coalesced",
        }
        assert await stored(store) == 1


# --- how old, how fresh ----------------------------------------------------------------------


async def test_max_age(time: VirtualTime) -> None:
    model = StepModel("old")
    task = make_task(model, ttl_s=3600, memory_ttl_s=3600)
    async with time.resolver() as first, time.resolver() as second:
        await ask(first, task, "x")
        await time.advance(60)
        for resolver in (first, second):
            assert (await ask_with(resolver, task, max_age_s=61)).label == "old"
        model.label = "new"
        outcome = await ask_with(second, task, max_age_s=59)
        assert (outcome.source, outcome.label) == ("model", "new")
        # The first one's memory has the old one still, which is no reason to ask the model again.
        outcome = await ask_with(first, task, max_age_s=59)
        assert (outcome.source, outcome.label) == ("store", "new")
        assert model.total == 2


async def test_max_age_of_one_who_joins(time: VirtualTime) -> None:
    """The look-up under way was not for them: what it finds is looked at again."""
    model = StepModel("old")
    task = make_task(model, ttl_s=3600)
    async with time.resolver() as first, time.resolver() as second:
        await ask(first, task, "x")
        await time.advance(60)
        model.label = "new"
        anyone = Waiter(task, "x")
        second.resolve([anyone])
        await step_until(lambda: all(flight.looked_up for flight in second.flights))
        strict = waiter_of(task, max_age_s=59)
        second.resolve([strict])
        assert (await anyone.outcome()).label == "old"
        assert (await strict.outcome()).label == "new"


async def test_min_fresh(time: VirtualTime) -> None:
    model = StepModel("old")
    task = make_task(model, ttl_s=100, memory_ttl_s=100)
    async with time.resolver() as first, time.resolver() as second:
        await ask(first, task, "x")
        await time.advance(60)
        for resolver in (first, second):
            assert (await ask_with(resolver, task, min_fresh_s=39)).label == "old"
        model.label = "new"
        assert (await ask_with(second, task, min_fresh_s=41)).label == "new"
        assert (await ask_with(first, task, min_fresh_s=41)).label == "new"
        assert model.total == 2


async def test_max_stale(time: VirtualTime) -> None:
    model = StepModel("old")
    task = make_task(model, ttl_s=60, stale_if_error_s=3600)
    async with time.resolver() as resolver:
        await ask(resolver, task, "x")
        await time.advance(90)
        model.label = "new"
        outcome = await ask_with(resolver, task, max_stale_s=31)
        assert (outcome.source, outcome.label) == ("stale", "old")
        await eventually(lambda: len(resolver.flights) == 0)  # it is refreshed all the same
        await time.advance(90)
        model.label = "newer"
        assert (await ask_with(resolver, task, max_stale_s=29)).label == "newer"


async def test_max_stale_0_refuses_what_the_task_would_serve(time: VirtualTime) -> None:
    model = StepModel("old")
    task = make_task(model, ttl_s=60, stale_while_revalidate_s=600)
    async with time.resolver() as resolver:
        await ask(resolver, task, "x")
        await time.advance(61)
        model.label = "new"
        model.close()
        assert (await ask(resolver, task, "x")).label == "old"
        strict = waiter_of(task, max_stale_s=0)
        resolver.resolve([strict])
        assert (await ask(resolver, task, "x")).label == "old"
        model.open()
        assert (await strict.outcome()).label == "new"
        assert model.total == 2


async def test_stale_if_error_of_one_job(time: VirtualTime) -> None:
    down = False

    async def behave(_text: str, _number: int) -> None:
        if down:
            raise TransientFailure("unavailable", "down")

    task = make_task(StepModel("old", behave=behave), ttl_s=60, stale_while_revalidate_s=60)
    async with time.resolver() as resolver:
        await ask(resolver, task, "x")
        await time.advance(100)
        down = True
        strict = waiter_of(task, max_stale_s=0)
        lax = waiter_of(task, max_stale_s=0, stale_if_error_s=50)
        resolver.resolve([strict, lax])
        assert (await strict.outcome()).error
        assert (await lax.outcome()).source == "stale"


# --- only if cached --------------------------------------------------------------------------


async def test_only_if_cached(store: redis.asyncio.Redis, time: VirtualTime) -> None:
    model = StepModel()
    task = make_task(model)
    async with time.resolver() as first, time.resolver() as second:
        outcome = await ask_with(first, task, only_if_cached=True)
        assert outcome.error is not None
        assert outcome.error.code == "not_cached"
        assert model.total == 0
        await assert_at_rest(store, first, task)
        await ask(first, task, "x")
        assert (await ask_with(first, task, only_if_cached=True)).source == "memory"
        assert (await ask_with(second, task, only_if_cached=True)).source == "store"


async def test_only_if_cached_waits_for_nobody(
    store: redis.asyncio.Redis, time: VirtualTime
) -> None:
    model = StepModel(closed=True)
    task = make_task(model)
    async with time.resolver() as resolver:
        leader = Waiter(task, "x")
        resolver.resolve([leader])
        await eventually(lambda: model.in_flight == 1)
        outcome = await ask_with(resolver, task, only_if_cached=True)
        assert outcome.error is not None
        model.open()
        assert (await leader.outcome()).label == "a"
        await assert_at_rest(store, resolver, task)


# --- ttl, namespace, cacheable ---------------------------------------------------------------


async def test_ttl_caps_what_is_accepted_and_what_is_written(
    store: redis.asyncio.Redis, time: VirtualTime
) -> None:
    model = StepModel("old")
    task = make_task(model, ttl_s=3600, memory_ttl_s=3600)
    async with time.resolver() as resolver:
        await ask(resolver, task, "there")
        await time.advance(60)
        assert (await ask_with_text(resolver, task, "there", ttl_s=61)).source == "memory"
        ttls = [int(await store.pttl(key)) for key in await all_keys(store, "a:*")]
        assert ttls[0] > 3_500_000, "an entry that is there keeps its life"
        assert (await ask_with_text(resolver, task, "there", ttl_s=59)).source == "model"
        await ask_with_text(resolver, task, "new", ttl_s=10)
        await time.advance(11)
        assert (await ask(resolver, task, "new")).source == "model"


async def test_ttl_only_shortens(time: VirtualTime) -> None:
    task = make_task(StepModel(), ttl_s=60)
    async with time.resolver() as resolver:
        await ask_with(resolver, task, ttl_s=3600)
        await time.advance(61)
        assert (await ask(resolver, task, "x")).source == "model"


async def test_the_shortest_ttl_of_those_who_wait_counts(time: VirtualTime) -> None:
    model = StepModel(closed=True)
    task = make_task(model, ttl_s=3600)
    async with time.resolver() as resolver:
        waiters = [Waiter(task, "x"), waiter_of(task, ttl_s=10), waiter_of(task, ttl_s=100)]
        resolver.resolve(waiters)
        await eventually(lambda: model.in_flight == 1)
        model.open()
        for waiter in waiters:
            await waiter.outcome()
        await time.advance(11)
        assert (await ask(resolver, task, "x")).source == "model"


async def ask_with_text(resolver: Resolver, task: Task, text: str, **directives: Any) -> Outcome:
    waiter = waiter_of(task, text, **directives)
    resolver.resolve([waiter])
    return await waiter.outcome()


async def test_who_asks_anew_later_has_a_later_call(time: VirtualTime) -> None:
    model = StepModel(closed=True)
    task = make_task(model)
    async with time.resolver() as resolver:
        waiters = [waiter_of(task, no_cache=True) for _ in range(2)]
        for number, waiter in enumerate(waiters):
            resolver.resolve([waiter])
            await eventually(partial(in_flight, model, number + 1))
        model.open()
        for waiter in waiters:
            await waiter.outcome()


async def test_nobody_joins_who_wants_only_what_is_cached(time: VirtualTime) -> None:
    task = make_task(StepModel())
    async with time.resolver() as resolver:
        only, anyone = waiter_of(task, only_if_cached=True), Waiter(task, "x")
        resolver.resolve([only, anyone])
        assert (await only.outcome()).error
        assert (await anyone.outcome()).label == "a"
