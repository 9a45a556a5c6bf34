"""Shadow checks on the real server: what is compared, what is replaced, and whom it may disturb."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import random

import pytest
import redis.asyncio
from structlog.testing import capture_logs

from askonce_queue import answer_scripts
from askonce_queue.errors import StoreUnavailable
from askonce_queue.scripts import run
from askonce_worker.cache.policy import Control
from askonce_worker.cache.store_tier import Result
from askonce_worker.models.protocol import TransientFailure
from askonce_worker.shadow.verdicts import Rate, of_all_labels, tally
from askonce_worker.tasks import Task
from tests.support.resolving import (
    StepModel,
    Waiter,
    ask,
    assert_at_rest,
    make_task,
    resolver_on,
)
from tests.support.shadowing import checked, counted, counts
from tests.support.waiting import eventually

TAG = "0"


async def invalidate(store: redis.asyncio.Redis, tag: str) -> None:
    await run(store, answer_scripts.invalidate(TAG, everything=False, tags=[tag]))


async def label_in_store(url: str, task: Task, text: str) -> str | None:
    """What another process would be served; `None` when it would have to ask the model."""
    async with resolver_on(url) as other:
        waiter = Waiter(task, text, control=Control(only_if_cached=True))
        other.resolve([waiter])
        return (await waiter.outcome()).label


async def test_an_answer_that_still_holds(store: redis.asyncio.Redis, store_url: str) -> None:
    model = StepModel("a")
    task = make_task(model, verify_share=1.0)
    async with checked(store_url, task) as resolver:
        assert (await ask(resolver, task, "x")).source == "model"
        with capture_logs() as logs:
            assert (await ask(resolver, task, "x")).source == "memory"
            await counted(resolver, "verify_agree")
        (line,) = [line for line in logs if line["event"] == "model call"]
        assert (line["reason"], line["attempt"], line["granted_until"]) == ("verify", 1, 0.0)
        assert line["key"] == Waiter(task, "x").key.hex()
        await assert_at_rest(store, resolver, task)
        found = counts(resolver)
        assert model.total == found["model_calls"] == 2
        assert (found["calls_fill"], found["calls_verify"]) == (1, 1)
        assert (found["memory"], found["model"]) == (1, 1)  # a check is nobody's answer
        verdicts = tally((task, n, a) for (task, n), a in resolver.counters.since_start().items())
        assert of_all_labels(verdicts["t"])[0] == Rate(1, 0)


@pytest.mark.parametrize("from_memory", [True, False])
async def test_an_answer_that_differs_is_replaced(
    store: redis.asyncio.Redis, store_url: str, from_memory: bool
) -> None:
    model = StepModel("old")
    task = make_task(model, verify_share=1.0)
    async with checked(store_url, task) as resolver:
        await ask(resolver, task, "x")
        if not from_memory:
            resolver.memory.clear()
        model.label = "new"
        hit = await ask(resolver, task, "x")
        assert (hit.label, hit.source) == ("old", "memory" if from_memory else "store")
        await counted(resolver, "verify_replaced")
        await counted(resolver, "flights_filled", 2)
        task.policy = make_task(model).policy  # no check of what is looked up now
        task.watched = False
        again = await ask(resolver, task, "x")
        assert (again.label, again.source) == ("new", "memory")
        assert await label_in_store(store_url, task, "x") == "new"
        found = counts(resolver)
        assert (found["verify_differ"], found["calls_verify"], found["calls_refresh"]) == (1, 1, 0)
        assert model.total == 2
        await assert_at_rest(store, resolver, task)


@pytest.mark.parametrize("tag", ["u1", "something else"])
async def test_an_invalidation_that_comes_between_is_not_outrun(
    store: redis.asyncio.Redis, store_url: str, tag: str
) -> None:
    """The fresh answer may be from before it: the model is asked again, under the lease."""
    model = StepModel("old")
    task = make_task(model, verify_share=1.0)
    async with checked(store_url, task, stamp_bound_s=3600.0) as resolver:
        await ask(resolver, task, "x", tags=["u1"])
        model.label = "from before"
        model.close()
        await ask(resolver, task, "x")
        await eventually(lambda: model.in_flight == 1)
        await invalidate(store, tag)  # which this process does not see for an hour
        model.label = "new"
        model.open()
        await counted(resolver, "flights_filled", 2)
        assert await label_in_store(store_url, task, "x") == "new"
        found = counts(resolver)
        assert (found["calls_verify"], found["calls_refresh"], model.total) == (1, 1, 3)
        await assert_at_rest(store, resolver, task)
        # The replacement has the tags of what it replaces.
        await invalidate(store, "u1")
        assert await label_in_store(store_url, task, "x") is None


@pytest.mark.parametrize("seed", range(3))
async def test_nothing_from_before_an_invalidation_is_served_whatever_is_checked(
    store: redis.asyncio.Redis, store_url: str, seed: int
) -> None:
    """Two processes check every hit of a model that drifts, while its answers are invalidated."""
    rng = random.Random(seed)

    async def take_a_while(_text: str, _number: int) -> None:
        await asyncio.sleep(rng.random() * 0.01)

    model = StepModel("0", behave=take_a_while)
    task = make_task(model, verify_share=1.0)
    newest = valid_from = 0
    asked: list[tuple[Waiter, int]] = []
    # They see nothing of an invalidation but when the test tells them to.
    async with (
        checked(store_url, task, stamp_bound_s=3600.0) as one,
        checked(store_url, task, stamp_bound_s=3600.0) as other,
    ):
        for _ in range(300):
            newest += rng.random() < 0.2
            model.label = str(newest)
            if rng.random() < 0.1:
                await invalidate(store, "u1")
                await asyncio.sleep(rng.random() * 0.005)  # checks land before it is seen
                for resolver in (one, other):
                    await resolver.stamps.read(0)
                valid_from = newest
            waiter = Waiter(task, rng.choice("xyz"), tags=["u1"])
            rng.choice((one, other)).resolve([waiter])
            asked.append((waiter, valid_from))
            await asyncio.sleep(rng.random() * 0.003)
        for waiter, at_least in asked:
            assert int((await waiter.outcome()).label or "") >= at_least
        total = counts(one) + counts(other)
        assert total["verify_replaced"] > 10
        assert total["calls_refresh"] > 0
        await assert_at_rest(store, one, task)


async def test_what_was_invalidated_meanwhile_gets_no_verdict(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    model = StepModel("old")
    task = make_task(model, verify_share=1.0)
    async with checked(store_url, task) as resolver:
        await ask(resolver, task, "x", tags=["u1"])
        model.label = "from before"
        model.close()
        await ask(resolver, task, "x", tags=["u1"])
        await eventually(lambda: model.in_flight == 1)
        await invalidate(store, "u1")
        await resolver.stamps.read(0)
        model.open()
        await counted(resolver, "verify_void")
        await assert_at_rest(store, resolver, task)
        assert not counts(resolver)["verify_differ"]
        assert await label_in_store(store_url, task, "x") is None


async def test_a_leader_that_computes_it_anew_is_left_alone(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    model, others = StepModel("old"), StepModel("newest", closed=True)
    task = make_task(model, verify_share=1.0)
    async with checked(store_url, task) as resolver, resolver_on(store_url) as other:
        await ask(resolver, task, "x")
        refresh = Waiter(make_task(others), "x", control=Control(refresh=True))
        other.resolve([refresh])
        await eventually(lambda: others.in_flight == 1)
        model.label = "new"
        await ask(resolver, task, "x")
        await counted(resolver, "verify_replaced")
        others.open()
        assert (await refresh.outcome()).label == "newest"
        assert counts(other)["flights_filled"] == 1
        assert await label_in_store(store_url, task, "x") == "newest"
        await assert_at_rest(store, resolver, task)


async def test_an_answer_that_may_not_be_kept_takes_the_old_one_away(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    model = StepModel("fine")
    task = make_task(model, verify_share=1.0, never_cache_labels=frozenset({"needs human"}))
    async with checked(store_url, task) as resolver:
        await ask(resolver, task, "x")
        model.label = "needs human"
        await ask(resolver, task, "x")
        await counted(resolver, "verify_replaced")
        await assert_at_rest(store, resolver, task)
        assert await label_in_store(store_url, task, "x") is None
        assert (await ask(resolver, task, "x")).source == "model"


async def test_without_the_store_the_old_answer_stays_and_the_verdict_counts(
    store: redis.asyncio.Redis, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = StepModel("old")
    task = make_task(model, verify_share=1.0)
    async with checked(store_url, task) as resolver:
        await ask(resolver, task, "x")
        model.label = "new"

        async def fail(_batches: object) -> list[list[Result]]:
            raise StoreUnavailable("away")

        monkeypatch.setattr(resolver._tier, "look_up", fail)
        await ask(resolver, task, "x")
        await counted(resolver, "verify_differ")
        monkeypatch.undo()
        await assert_at_rest(store, resolver, task)
        assert not counts(resolver)["verify_replaced"]
        assert await label_in_store(store_url, task, "x") == "old"


async def test_a_model_that_fails_gives_no_verdict(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    async def fail_later(_text: str, number: int) -> None:
        if number > 1:
            raise TransientFailure("unavailable", "down")

    task = make_task(StepModel("a", behave=fail_later), verify_share=1.0)
    async with checked(store_url, task) as resolver:
        await ask(resolver, task, "x")
        await ask(resolver, task, "x")
        await counted(resolver, "verify_void")
        found = counts(resolver)
        assert (found["failures_unavailable"], found["errors"], found["calls_retry"]) == (1, 0, 0)
        await assert_at_rest(store, resolver, task)
        assert await label_in_store(store_url, task, "x") == "a"
