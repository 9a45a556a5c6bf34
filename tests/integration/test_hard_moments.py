"""Moments in which a wrong answer, a wait without end, or a lie in the books is near.

Each was found by somebody who tried: an invalidation between a look-up and its reply, a store that
is slow to say what it said, two who take a lease from each other, records that others have written.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import random
import struct
from typing import Any

import anyio
import pytest
import redis.asyncio

from askonce_queue import answer_scripts, names
from askonce_queue.job import CacheControl
from askonce_queue.scripts import run, send
from askonce_queue.store import Store
from askonce_worker.cache.entry import HEADER
from askonce_worker.hits.rulebook import AppliedRules, RuleBook
from askonce_worker.models.protocol import Rejection, TransientFailure
from askonce_worker.models.retry import RetryPolicy
from askonce_worker.observe.counters import Counters
from askonce_worker.shadow.guard import Guard
from askonce_worker.tasks import Task
from tests.support.resolving import StepModel, Waiter, all_keys, ask, make_task
from tests.support.virtual_time import VirtualTime
from tests.support.waiting import eventually


def waiter_of(task: Task, text: str = "x", **directives: Any) -> Waiter:
    return Waiter(task, text, control=task.policy.control(CacheControl(**directives)))


async def test_two_who_ask_anew_of_a_model_that_is_down_are_told(time: VirtualTime) -> None:
    async def behave(_text: str, _number: int) -> None:
        await asyncio.sleep(0.01)
        raise TransientFailure("unavailable", "down")

    model = StepModel(behave=behave)
    retry = RetryPolicy(max_attempts=3, base_s=0.02, cap_s=0.02)
    async with time.resolver() as first, time.resolver() as second:
        waiters: list[Waiter] = []
        for resolver in (first, second):
            task = make_task(model, retry=retry)
            waiter = waiter_of(task, no_cache=True)
            resolver.resolve([waiter])
            waiters.append(waiter)
        await eventually(lambda: all(waiter.outcomes for waiter in waiters))
        assert model.total <= 2 * 3


async def test_each_is_served_what_its_own_task_allows(time: VirtualTime) -> None:
    """Two tasks that ask the same share keys; one of them wants no stale answers."""
    model = StepModel("old")
    lax = make_task(model, "lax", ttl_s=60, stale_while_revalidate_s=600)
    strict = make_task(model, "strict", ttl_s=60)
    async with time.resolver() as resolver:
        await ask(resolver, lax, "x")
        await time.advance(61)
        model.label = "new"
        waiters = [Waiter(lax, "x"), Waiter(strict, "x")]
        resolver.resolve(waiters)
        outcome = await waiters[1].outcome()
        assert (outcome.source, outcome.label) != ("stale", "old")


async def test_who_asks_after_an_invalidation_gets_nothing_older(
    store: redis.asyncio.Redis, time: VirtualTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply of a look-up is on its way while something is invalidated."""
    model = StepModel("old")
    task = make_task(model)
    async with time.resolver() as other, time.resolver() as resolver:
        await ask(other, task, "x")
        model.label = "new"
        arrived, go = asyncio.Event(), asyncio.Event()
        look_up = resolver._tier.look_up

        async def slow(batches: Any) -> Any:
            results = await look_up(batches)
            arrived.set()
            await go.wait()
            return results

        monkeypatch.setattr(resolver._tier, "look_up", slow)
        early = Waiter(task, "x")
        resolver.resolve([early])
        await arrived.wait()
        await run(store, answer_scripts.invalidate("0", everything=False, tags=[task.tag]))
        await resolver.see_invalidations()
        late = Waiter(task, "x")
        resolver.resolve([late])
        go.set()
        assert (await late.outcome()).label == "new"


@pytest.mark.parametrize(
    "damage",
    [
        ("ZADD", names.last("0"), 9e15, b"caf\xe9"),
        ("HSET", names.stamps("0"), "base", "garbage"),
        ("HDEL", names.stamps("0"), "base"),
        ("HSET", names.stamps("0"), b"\x01user:*", "garbage"),
    ],
)
async def test_stamps_that_cannot_be_read_kill_no_worker(
    store: redis.asyncio.Redis, time: VirtualTime, damage: Any
) -> None:
    model = StepModel()
    task = make_task(model)
    async with time.resolver() as resolver:
        await ask(resolver, task, "x")
        await run(store, answer_scripts.invalidate("0", everything=False, tags=["a"]))
        await send(store, *damage)
        watch = asyncio.create_task(resolver.stamps.watch(0))
        await asyncio.sleep(0.2)
        assert not watch.done(), watch.exception()
        watch.cancel()


async def test_a_damaged_stale_answer_holds_nobody_up(
    store: redis.asyncio.Redis, time: VirtualTime
) -> None:
    model = StepModel()
    task = make_task(model, ttl_s=60, stale_while_revalidate_s=600)
    async with time.resolver() as resolver:
        await ask(resolver, task, "x")
        await time.advance(61)
        (key,) = await all_keys(store, "a:*")
        entry = await send(store, "GET", key)
        *_, tag_bytes = HEADER.unpack_from(entry)
        await send(store, "SET", key, entry[: HEADER.size + tag_bytes] + b"\xc1", "EX", 3600)
        waiter = Waiter(task, "x")
        resolver.resolve([waiter])
        with anyio.fail_after(3):
            await waiter.outcome()


async def test_one_answer_has_one_first_read(time: VirtualTime) -> None:
    model = StepModel()
    task = make_task(model)
    async with time.resolver() as first, time.resolver() as second:
        await ask(first, task, "x")
        waiters = [waiter_of(task, only_if_cached=True) for _ in range(5)]
        second.resolve(waiters)
        for waiter in waiters:
            await waiter.outcome()
        assert second.counters.total("first_reads") == 1


async def test_who_took_a_lease_over_has_what_may_stand_in(time: VirtualTime) -> None:
    model = StepModel("old")
    slow = make_task(model, ttl_s=60, stale_if_error_s=600)
    async with time.resolver() as first, time.resolver() as second:
        await ask(first, slow, "x")
        await time.advance(61)
        model.close()
        leader = Waiter(slow, "x")
        first.resolve([leader])
        await eventually(lambda: model.in_flight == 1)

        async def behave(_text: str, _number: int) -> None:
            raise Rejection("refused", "no")

        task = make_task(StepModel(behave=behave), patience_s=0.05, ttl_s=60, stale_if_error_s=600)
        waiter = Waiter(task, "x")
        second.resolve([waiter])
        outcome = await waiter.outcome()
        assert second.counters.total("calls_takeover") == 1
        model.open()
        assert (outcome.source, outcome.label) == ("stale", "old"), outcome


async def test_no_store_keeps_nothing_behind_a_stale_answer(time: VirtualTime) -> None:
    model = StepModel("old")
    task = make_task(model, ttl_s=60, stale_while_revalidate_s=600)
    async with time.resolver() as resolver:
        await ask(resolver, task, "x")
        await time.advance(61)
        model.label = "new"
        waiter = waiter_of(task, no_store=True)
        resolver.resolve([waiter])
        assert (await waiter.outcome()).source == "stale"
        await eventually(lambda: len(resolver.flights) == 0)
        assert resolver.counters.total("fills") == 1


async def test_a_job_that_asked_for_a_newer_one_is_no_fill(time: VirtualTime) -> None:
    task = make_task(StepModel())
    async with time.resolver() as resolver:
        await ask(resolver, task, "x")
        await time.advance(61)
        waiter = waiter_of(task, max_age_s=60)
        resolver.resolve([waiter])
        await waiter.outcome()
        assert resolver.counters.total("calls_refresh") == 1
        assert resolver.counters.total("calls_fill") == 1


async def test_reads_of_stamps_that_overtake_each_other(
    store: redis.asyncio.Redis, time: VirtualTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = StepModel("old")
    task = make_task(model)
    async with time.resolver() as resolver:
        await ask(resolver, task, "x")
        run_ = resolver.stamps._store.run
        arrived, go = asyncio.Event(), asyncio.Event()

        async def slow(call: Any) -> Any:
            result = await run_(call)
            if not arrived.is_set():
                arrived.set()
                await go.wait()
            return result

        monkeypatch.setattr(resolver.stamps._store, "run", slow)
        watching = asyncio.create_task(resolver.stamps.read(0))
        await arrived.wait()
        await run(store, answer_scripts.invalidate("0", everything=False, tags=[task.tag]))
        reading = asyncio.create_task(resolver.see_invalidations())
        await asyncio.sleep(0.2)
        go.set()
        await reading
        await watching
        model.label = "new"
        assert (await ask(resolver, task, "x")).label == "new"


async def test_memory_serves_no_older_than_the_task_of_who_asks_allows(
    time: VirtualTime,
) -> None:
    """As `max_disagreement` limits it (guard.py)."""
    model = StepModel("old")
    free = make_task(model, "free")
    limited = make_task(model, "limited", max_age_s=60.0)
    async with time.resolver() as resolver:
        await ask(resolver, free, "x")
        await time.advance(100)
        model.label = "new"
        outcome = await ask(resolver, limited, "x")
        assert outcome.age_s <= 60, outcome.source


async def test_a_slow_reply_makes_no_answer_younger(
    time: VirtualTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = StepModel("old")
    task = make_task(model, ttl_s=60)
    async with time.resolver() as first, time.resolver() as second:
        await ask(first, task, "x")
        await time.advance(58)
        run_many = second._tier._store.run_many

        async def slow(calls: Any) -> Any:
            results = await run_many(calls)
            await time.advance(4)
            return results

        monkeypatch.setattr(second._tier._store, "run_many", slow)
        assert (await ask(second, task, "x")).source in ("store", "stale")
        monkeypatch.setattr(second._tier._store, "run_many", run_many)
        model.label = "new"
        outcome = await ask(second, task, "x")
        assert (outcome.source, outcome.label) == ("model", "new"), outcome.age_s


async def test_a_slow_fill_makes_no_answer_younger(
    time: VirtualTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = StepModel("old")
    task = make_task(model, ttl_s=60)
    async with time.resolver() as first:
        fill = first._tier.fill

        async def slow(*args: Any) -> Any:
            result = await fill(*args)
            await time.advance(4)
            return result

        monkeypatch.setattr(first._tier, "fill", slow)
        await ask(first, task, "x")
        await time.advance(57)
        assert (await ask(first, task, "x")).source != "memory"


@pytest.mark.parametrize(
    "counts",
    [
        ("t|verify_agree:1m:", "garbage"),
        ("t|verify_differ:1m:", 1000, "t|verify_agree:1m:", -900),
    ],
)
async def test_counts_that_are_no_numbers_end_no_guard(
    store: redis.asyncio.Redis, store_url: str, counts: Any
) -> None:
    task = make_task(StepModel(), max_disagreement=0.1)
    own = Store(store_url)
    try:
        now_s, _ = await store.time()
        name = f"3600:{now_s // 3600}".encode()
        await send(store, "ZADD", names.windows("0"), now_s * 1000, name)
        await send(store, "HSET", names.window_prefix("0") + name, *counts)
        guard = Guard(own, [task], forget=lambda: None, counters=Counters(), rng=random.Random(1))
        running = asyncio.create_task(guard.run())
        await asyncio.sleep(0.2)
        assert not running.done(), running.exception()
        running.cancel()
    finally:
        await own.aclose()


async def test_the_least_ttl_of_those_who_wait_counts(
    time: VirtualTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived, go = asyncio.Event(), asyncio.Event()
    model = StepModel("old")
    task = make_task(model, ttl_s=3600)
    async with time.resolver() as resolver, time.resolver() as other:
        fill = resolver._tier.fill

        async def slow(*args: Any) -> Any:
            arrived.set()
            await go.wait()
            return await fill(*args)

        monkeypatch.setattr(resolver._tier, "fill", slow)
        resolver.resolve([Waiter(task, "y")])
        await arrived.wait()
        first = Waiter(task, "x")
        resolver.resolve([first])
        await eventually(lambda: model.calls["x"] == 1 and model.in_flight == 0)
        await asyncio.sleep(0.05)
        brief = waiter_of(task, ttl_s=10.0)
        resolver.resolve([brief])
        go.set()
        assert (await brief.outcome()).source == "coalesced"
        await time.advance(11)
        assert (await ask(other, task, "x")).source == "model"


DEEP = b'{"task":"t","pattern":"p","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


async def test_a_rule_that_is_nested_deeply_ends_nothing(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    own = Store(store_url)
    try:
        await send(store, "HSET", names.rules("0"), "bad", DEEP)
        await AppliedRules(RuleBook(own), {}).follow()
    finally:
        await own.aclose()


@pytest.mark.parametrize("error", [b"garbage", b'{"code":"x","message":"m","x":' + b"[" * 100_000])
async def test_a_remembered_error_that_cannot_be_read_holds_nobody_up(
    store: redis.asyncio.Redis, time: VirtualTime, error: bytes
) -> None:
    task = make_task(StepModel())
    async with time.resolver() as resolver:
        waiter = Waiter(task, "x")
        record = struct.pack("<cBd", b"R", 0, time.now_ms + 3.6e6) + error
        await send(store, "HSET", names.tries("0"), waiter.key, record)
        resolver.resolve([waiter])
        with anyio.fail_after(3):
            await waiter.outcome()
