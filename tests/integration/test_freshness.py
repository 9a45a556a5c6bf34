"""How long answers live: TTLs, refreshing behind a stale one, standing in for an error."""

from __future__ import annotations

import asyncio

import pytest
import redis.asyncio

from askonce_queue import answer_scripts, names
from askonce_queue.job import CacheControl
from askonce_queue.scripts import run
from askonce_worker.models.protocol import Rejection, TransientFailure
from askonce_worker.resolver import Resolver
from askonce_worker.tasks import Task
from tests.support.resolving import StepModel, Waiter, all_keys, ask, assert_at_rest, make_task
from tests.support.virtual_time import VirtualTime
from tests.support.waiting import eventually


def failing(model: StepModel) -> list[Exception]:
    """What its calls raise from now on, while there is anything in the list."""
    errors: list[Exception] = []

    async def behave(_text: str, _number: int) -> None:
        if errors:
            raise errors[0]

    model.behave = behave
    return errors


async def source(resolver: Resolver, task: Task, text: str = "x") -> str | None:
    return (await ask(resolver, task, text)).source


# --- TTLs ------------------------------------------------------------------------------------


async def test_memory_and_store_have_times_of_their_own(time: VirtualTime) -> None:
    model = StepModel()
    task = make_task(model, ttl_s=3600, memory_ttl_s=300)
    async with time.resolver() as resolver:
        for at_s, expected in ((0, "model"), (299, "memory"), (2, "store"), (299, "memory")):
            await time.advance(at_s)
            assert (await ask(resolver, task, "x")).source == expected
        await time.advance(3600 - 600)
        assert (await ask(resolver, task, "x")).source == "model"
        assert model.total == 2


async def test_a_hit_never_extends_a_life(time: VirtualTime) -> None:
    model = StepModel()
    task = make_task(model, ttl_s=100, memory_ttl_s=5)
    async with time.resolver() as first, time.resolver() as second:
        await ask(first, task, "x")
        for _ in range(9):
            await time.advance(11)
            assert (await ask(second, task, "x")).source == "store"
        assert (await ask(first, task, "x")).age_s == pytest.approx(99, abs=0.5)
        await time.advance(1.1)
        assert (await ask(second, task, "x")).source == "model"
        assert model.total == 2


async def test_a_label_may_have_a_time_of_its_own(time: VirtualTime) -> None:
    model = StepModel("spam")
    task = make_task(model, ttl_s=3600, ttl_by_label_s={"spam": 60})
    async with time.resolver() as resolver:
        await ask(resolver, task, "x")
        model.label = "ham"
        await ask(resolver, task, "y")
        await time.advance(61)
        assert (await ask(resolver, task, "x")).source == "model"
        assert (await ask(resolver, task, "y")).source == "memory"


async def test_jitter_only_shortens(store: redis.asyncio.Redis, time: VirtualTime) -> None:
    task = make_task(StepModel(), ttl_s=1000, jitter=0.2)
    async with time.resolver() as resolver:
        for number in range(50):
            await ask(resolver, task, str(number))
        ttls = [int(await store.ttl(key)) for key in await all_keys(store, "a:*")]
    assert len(ttls) == 50
    assert all(799 <= ttl <= 1000 for ttl in ttls)
    assert max(ttls) - min(ttls) > 50


# --- refreshing behind -----------------------------------------------------------------------


async def test_a_stale_answer_is_served_while_one_refreshes_it(time: VirtualTime) -> None:
    model = StepModel("old")
    task = make_task(model, ttl_s=60, stale_while_revalidate_s=600)
    async with time.resolver() as first, time.resolver() as second:
        await ask(first, task, "x")
        await time.advance(61)
        model.label = "new"
        model.close()
        for resolver in (first, second, first, second):
            outcome = await ask(resolver, task, "x")
            assert (outcome.source, outcome.label) == ("stale", "old")
            assert outcome.age_s == pytest.approx(61, abs=1)
        await eventually(lambda: model.in_flight == 1)
        assert model.total == 2
        assert first.counters.total("calls_refresh") == 1
        model.open()
        await eventually(lambda: len(first.flights) == 0)
        for resolver in (first, second):
            outcome = await ask(resolver, task, "x")
            assert (outcome.source in {"memory", "store"}, outcome.label) == (True, "new")
        assert model.total == 2
        assert first.counters.total("model") == 1  # the refresh answered nobody


async def test_past_that_everybody_waits(time: VirtualTime) -> None:
    model = StepModel("old")
    task = make_task(model, ttl_s=60, stale_while_revalidate_s=600)
    async with time.resolver() as resolver:
        await ask(resolver, task, "x")
        await time.advance(661)
        model.label = "new"
        assert (await ask(resolver, task, "x")).label == "new"


async def test_a_refresh_that_fails_harms_nobody(
    store: redis.asyncio.Redis, time: VirtualTime
) -> None:
    model = StepModel("old")
    task = make_task(model, ttl_s=60, stale_while_revalidate_s=600, remember_s=30.0)
    errors = failing(model)
    async with time.resolver() as resolver:
        await ask(resolver, task, "x")
        await time.advance(61)
        errors.append(Rejection("refused", "no"))
        for _ in range(3):
            assert await source(resolver, task) == "stale"
            await assert_at_rest(store, resolver, task)
        assert model.total == 2  # that it failed is remembered
        errors.clear()
        await time.advance(31)
        assert await source(resolver, task) == "stale"
        await eventually(lambda: len(resolver.flights) == 0)
        assert await source(resolver, task) == "memory"


async def test_a_stale_answer_that_was_invalidated_is_gone(
    store: redis.asyncio.Redis, time: VirtualTime
) -> None:
    model = StepModel("old")
    task = make_task(model, ttl_s=60, stale_while_revalidate_s=600)
    async with time.resolver() as resolver:
        resolver.resolve([waiter := Waiter(task, "x", tags=["a"])])
        await waiter.outcome()
        await time.advance(61)
        model.label = "new"
        model.close()
        assert (await ask(resolver, task, "x")).label == "old"
        await run(store, answer_scripts.invalidate("0", everything=False, tags=["a"]))
        await resolver.stamps.read(0)
        late = Waiter(task, "x")
        resolver.resolve([late])
        model.open()
        assert (await late.outcome()).label == "new"


# --- standing in for an error ----------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [TransientFailure("unavailable", "down"), Rejection("rejected", "400")]
)
async def test_an_expired_answer_stands_in_for_an_error(
    time: VirtualTime, error: Exception
) -> None:
    model = StepModel("old")
    task = make_task(model, ttl_s=60, stale_if_error_s=600)
    errors = failing(model)
    async with time.resolver() as resolver:
        await ask(resolver, task, "x")
        await time.advance(61)
        errors.append(error)
        for _ in range(2):  # the second finds it remembered
            outcome = await ask(resolver, task, "x")
            assert (outcome.source, outcome.label) == ("stale", "old")
        assert resolver.counters.total("errors") == 0
        await time.advance(600)
        assert (await ask(resolver, task, "x")).error is not None
        errors.clear()
        await time.advance(61)
        model.label = "new"
        assert (await ask(resolver, task, "x")).label == "new"


async def test_without_an_error_it_is_not_served(time: VirtualTime) -> None:
    model = StepModel("old")
    task = make_task(model, ttl_s=60, stale_if_error_s=600)
    async with time.resolver() as resolver:
        await ask(resolver, task, "x")
        await time.advance(61)
        model.label = "new"
        outcome = await ask(resolver, task, "x")
        assert (outcome.source, outcome.label) == ("model", "new")


# --- admission -------------------------------------------------------------------------------


async def test_labels_that_are_never_kept_queue_nobody(
    store: redis.asyncio.Redis, time: VirtualTime
) -> None:
    """Once it is known that there will be nothing to share, all ask at the same time."""
    model = StepModel("needs human")
    task = make_task(model, never_cache_labels=frozenset({"needs human"}), hit_for_miss_s=30.0)
    async with time.resolver() as first, time.resolver() as second:
        assert (await ask(first, task, "x")).label == "needs human"
        assert not await all_keys(store, "a:*")
        model.close()
        waiters = [Waiter(task, "x") for _ in range(2)]
        for resolver, waiter in zip((first, second), waiters, strict=True):
            resolver.resolve([waiter])
        await eventually(lambda: model.in_flight == 2)
        model.open()
        for waiter in waiters:
            await waiter.outcome()
        assert first.counters.total("calls_bypass") == 1
        assert second.counters.total("calls_bypass") == 1
        # And when that is forgotten, one asks for all again.
        await time.advance(31)
        model.label = "fine"
        assert (await ask(first, task, "x")).source == "model"
        assert (await ask(second, task, "x")).source == "store"


async def test_answers_of_little_confidence_are_not_kept(time: VirtualTime) -> None:
    model = StepModel("a", score=0.5)
    task = make_task(model, min_confidence=0.8, hit_for_miss_s=0.0)
    async with time.resolver() as resolver:
        assert await source(resolver, task) == "model"
        assert await source(resolver, task) == "model"
        model.score = 0.8
        assert await source(resolver, task) == "model"
        assert await source(resolver, task) == "memory"
        model.score = None  # not every model has one
        assert await source(resolver, task, "y") == "model"
        assert await source(resolver, task, "y") == "memory"


async def test_only_answers_have_ttls(store: redis.asyncio.Redis, time: VirtualTime) -> None:
    task = make_task(
        StepModel("b"), never_cache_labels=frozenset({"b"}), stale_while_revalidate_s=60
    )
    async with time.resolver() as resolver:
        await ask(resolver, task, "x")
        assert await store.hlen(names.tries("0").decode()) == 1
        assert await store.ttl(names.tries("0").decode()) == -1


async def test_what_is_kept_for_refreshing_does_not_stand_in_for_longer(time: VirtualTime) -> None:
    """The store keeps an entry for the longer of both; each has its own bound."""
    model = StepModel("old")
    errors = failing(model)
    task = make_task(model, ttl_s=60, stale_while_revalidate_s=600, stale_if_error_s=30)
    async with time.resolver() as resolver:
        await ask(resolver, task, "x")
        await time.advance(100)
        errors.append(Rejection("rejected", "400"))
        control = task.policy.control(CacheControl(max_stale_s=0.0))
        for _ in range(2):
            strict = Waiter(task, "x", control=control)
            resolver.resolve([strict])
            assert (await strict.outcome()).error


async def test_a_refresh_that_loses_its_lease_ends(
    store: redis.asyncio.Redis, time: VirtualTime
) -> None:
    """Nobody waits for it, so it need not wait for who has the lease now."""
    down = False

    async def behave(_text: str, _number: int) -> None:
        if down:
            await store.delete(names.leases("0").decode())
            raise TransientFailure("unavailable", "down")

    task = make_task(StepModel(behave=behave), ttl_s=60, stale_while_revalidate_s=600)
    async with time.resolver() as resolver:
        await ask(resolver, task, "x")
        await time.advance(61)
        down = True
        assert (await ask(resolver, task, "x")).source == "stale"
        await assert_at_rest(store, resolver, task)
        assert resolver.counters.total("flights_merged") == 1


async def test_what_was_invalidated_meanwhile_does_not_stand_in(
    store: redis.asyncio.Redis, time: VirtualTime
) -> None:
    """The model was asked before, and fails after."""
    gate = asyncio.Event()

    async def behave(_text: str, number: int) -> None:
        if number > 1:
            await gate.wait()
            raise Rejection("rejected", "400")

    model = StepModel(behave=behave)
    task = make_task(model, ttl_s=60, stale_if_error_s=600)
    async with time.resolver() as resolver:
        first = Waiter(task, "x", tags=["a"])
        resolver.resolve([first])
        await first.outcome()
        await time.advance(61)
        waiter = Waiter(task, "x")
        resolver.resolve([waiter])
        await eventually(lambda: model.in_flight == 1)
        await run(store, answer_scripts.invalidate("0", everything=False, tags=["a"]))
        await resolver.stamps.read(0)
        gate.set()
        assert (await waiter.outcome()).error is not None
