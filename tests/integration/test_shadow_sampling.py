"""Which hits are checked, and when: as many as asked for, and never in the way of misses."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import random

import redis.asyncio

from askonce_queue import names
from askonce_worker.asks import SeenHit
from askonce_worker.clock import SystemClock
from askonce_worker.observe.counters import Counters
from askonce_worker.shadow import sampler
from askonce_worker.shadow.sampler import MOST_QUEUED, ShadowChecks
from tests.support.resolving import (
    ShiftedClock,
    StepModel,
    Waiter,
    ask,
    assert_at_rest,
    make_task,
    resolver_on,
)
from tests.support.shadowing import checked, checks_of, counted, counts
from tests.support.waiting import eventually

TAG = "0"


async def test_checks_wait_while_the_model_is_half_busy_or_wanted(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    model = StepModel("a")
    task = make_task(model, slots=2, verify_share=1.0)
    async with checked(store_url, task) as resolver:
        await ask(resolver, task, "x")
        model.close()
        misses = [Waiter(task, "miss 0")]
        resolver.resolve(misses)
        await eventually(lambda: model.in_flight == 1)
        assert not resolver.verifier.reserve(task.backend)  # the other half is for misses
        await ask(resolver, task, "x")
        misses += [Waiter(task, f"miss {i}") for i in (1, 2)]
        resolver.resolve(misses[1:])
        await eventually(lambda: model.in_flight == 2)
        assert counts(resolver)["calls_verify"] == 0
        model.open()
        await counted(resolver, "verify_agree")
        for miss in misses:
            assert (await miss.outcome()).label == "a"
        await assert_at_rest(store, resolver, task)


async def test_nothing_is_reserved_while_a_flight_waits_for_a_slot(store_url: str) -> None:
    model = StepModel("a", closed=True)
    task = make_task(model, slots=1)
    async with resolver_on(store_url) as resolver:
        assert resolver.verifier.reserve(task.backend)  # idle: a model with one slot is checked too
        alone = Waiter(task, "alone", cacheable=False)
        resolver.resolve([alone])
        task.backend.slots = 8
        assert not resolver.verifier.reserve(task.backend)
        model.open()
        resolver._room.slot_freed(task.backend)
        await alone.outcome()
        await eventually(lambda: task.backend.in_flight == 0)
        assert resolver.verifier.reserve(task.backend)
        task.backend.in_flight = 0


async def test_a_check_that_finds_no_room_is_dropped_in_the_end(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    model, clock = StepModel("a"), ShiftedClock()
    task = make_task(model, slots=1, verify_share=1.0)
    async with checked(store_url, task, clock=clock, stamp_bound_s=3600.0) as resolver:
        await ask(resolver, task, "x")
        task.backend.in_flight = 1  # somebody's
        await ask(resolver, task, "x")
        clock.shift_s = sampler.MOST_WAIT_S + 1
        await counted(resolver, "verify_dropped")
        task.backend.in_flight = 0
        await assert_at_rest(store, resolver, task)
        assert counts(resolver)["calls_verify"] == 0


async def test_a_question_is_checked_once_at_a_time_and_the_queue_is_bounded(
    store_url: str,
) -> None:
    model = StepModel("a")
    task = make_task(model, verify_share=1.0)
    async with resolver_on(store_url) as resolver:
        checks = checks_of(resolver, task)  # nobody works them off
        resolver.watchers.append(checks.note)
        texts = [str(i) for i in range(MOST_QUEUED + 5)]
        for _ in range(2):
            waiters = [Waiter(task, text) for text in texts]
            resolver.resolve(waiters)
            await asyncio.gather(*(waiter.outcome() for waiter in waiters))
        assert counts(resolver)["verify_dropped"] == 5
        resolver.resolve([Waiter(task, texts[0])])
        assert counts(resolver)["verify_dropped"] == 6


async def test_hits_are_picked_with_the_share_that_was_asked_for(store_url: str) -> None:
    picked: list[SeenHit] = []

    class Picking(ShadowChecks):
        def _pick(self, hit: SeenHit) -> None:
            picked.append(hit)

    model = StepModel("a")
    task, rare = make_task(model, verify_share=0.1), make_task(model, "rare", verify_share=1e-9)
    plain = make_task(model, "plain")
    async with resolver_on(store_url) as resolver:
        checks = Picking(
            resolver.verifier, (task, rare, plain), Counters(), SystemClock(), random.Random(3)
        )
        entry = (await ask(resolver, task, "x")).entry
    assert entry is not None
    hits = [
        SeenHit(Waiter(task, "x"), entry, "memory", 0.0),
        SeenHit(Waiter(task, "x"), entry, "stale", 0.0),
        SeenHit(Waiter(rare, "x"), entry, "store", 0.0),
        SeenHit(Waiter(plain, "x"), entry, "memory", 0.0),
    ]
    for _ in range(20_000):
        checks.note(hits)
    assert {(hit.ask.task.name, hit.source) for hit in picked} == {("t", "memory")}
    assert 1800 < len(picked) < 2200  # 2000 ± 42


async def test_ages_are_those_of_the_moment_of_the_check(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    model, clock = StepModel("a"), ShiftedClock()
    task = make_task(model, verify_share=1.0, memory_ttl_s=9000.0, ttl_s=9000.0)
    async with checked(store_url, task, clock=clock, stamp_bound_s=1e6) as resolver:
        await ask(resolver, task, "x")
        clock.shift_s = 4000.0
        assert (await ask(resolver, task, "x")).source == "memory"
        await counted(resolver, "verify_agree")
        await counted(resolver, "verify_agree:6h:")
        await assert_at_rest(store, resolver, task)
        assert await store.exists(names.answer_prefix(TAG) + Waiter(task, "x").key)
