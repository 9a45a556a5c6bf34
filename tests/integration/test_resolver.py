"""The resolver, on the real server: one call per question, whoever asks, whatever goes wrong."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import random
import struct
from typing import cast

import pytest
import redis.asyncio

from askonce_queue import answer_scripts, names
from askonce_queue.answer_scripts import Release
from askonce_queue.scripts import run
from askonce_queue.shards import shard_tags
from askonce_worker.cache.memory import ENTRY_OVERHEAD_BYTES
from askonce_worker.models.protocol import Rejection, TransientFailure
from askonce_worker.models.retry import RetryPolicy
from askonce_worker.resolver import Resolver
from askonce_worker.waiting_room import FIRST_BACKOFF_S
from tests.support.resolving import (
    QUICK_RETRY,
    FrozenClock,
    ShiftedClock,
    StepModel,
    Waiter,
    all_keys,
    ask,
    assert_at_rest,
    lease_count,
    make_task,
    resolver_on,
    resolvers_on,
)
from tests.support.virtual_scripts import LEASE
from tests.support.waiting import eventually

TAG = "0"
OTHER_TOKEN = b"someone else's !"


async def lease_of(store: redis.asyncio.Redis, key: bytes) -> tuple[bytes, float, float, int]:
    """Token, deadline (server ms), built and attempt of the lease of a key."""
    data = await cast(
        "asyncio.Future[bytes]", store.hget(names.leases(TAG).decode(), cast("str", key))
    )
    return LEASE.unpack(data)


async def kept(store: redis.asyncio.Redis, key: bytes) -> bytes | None:
    return cast("bytes | None", await store.get(names.answer_prefix(TAG) + key))


async def is_leased(store: redis.asyncio.Redis, key: bytes) -> bool:
    return await store.hexists(names.leases(TAG).decode(), cast("str", key))


async def take_lease(store: redis.asyncio.Redis, key: bytes) -> None:
    """Take the lease of a key over from its live leader, as another process would."""
    token = (await lease_of(store, key))[0]
    call = answer_scripts.take_over(TAG, token=OTHER_TOKEN, lease_ms=60_000, seen=[(key, token)])
    (taken,) = await run(store, call)
    assert taken


# --- one process -----------------------------------------------------------------------------


async def test_a_thousand_asks_are_one_call(store: redis.asyncio.Redis, store_url: str) -> None:
    model = StepModel(closed=True)
    task = make_task(model)
    async with resolver_on(store_url) as resolver:
        waiters = [Waiter(task, "same") for _ in range(1000)]
        resolver.resolve(waiters[:500])  # together, before anybody knows anything
        await eventually(lambda: model.in_flight == 1)
        resolver.resolve(waiters[500:])  # while the model is asked
        assert len(resolver.flights) == 1
        model.open()
        outcomes = [await waiter.outcome() for waiter in waiters]
        assert model.total == 1
        assert {outcome.label for outcome in outcomes} == {"a"}
        sources = [outcome.source for outcome in outcomes]
        assert sources.count("model") == 1
        assert sources.count("coalesced") == 999
        assert resolver.counters.total("calls_fill") == 1
        assert resolver.counters.total("coalesced") == 999
        await assert_at_rest(store, resolver, task)


async def test_where_answers_come_from(store: redis.asyncio.Redis, store_url: str) -> None:
    model = StepModel(closed=True)
    task = make_task(model)
    async with resolvers_on(store_url, 3) as (first, second, third):
        leader = Waiter(task, "x")
        first.resolve([leader])
        await eventually(lambda: model.in_flight == 1)
        waiter = Waiter(task, "x")
        second.resolve([waiter])
        await eventually(lambda: lease_count(store))
        await eventually(lambda: any(f.busy_token for f in second.flights))
        model.open()
        assert (await leader.outcome()).source == "model"
        assert (await waiter.outcome()).source == "coalesced"
        assert (await ask(first, task, "x")).source == "memory"
        assert (await ask(second, task, "x")).source == "memory"
        outcome = await ask(third, task, "x")
        assert (outcome.source, outcome.label) == ("store", "a")
        assert outcome.age_s >= 0
        assert model.total == 1


async def test_the_age_of_an_answer_grows(store: redis.asyncio.Redis, store_url: str) -> None:
    clock = ShiftedClock()
    task = make_task(StepModel())
    async with resolver_on(store_url, clock=clock, stamp_bound_s=1000) as resolver:
        await ask(resolver, task, "x")
        clock.shift_s = 100
        outcome = await ask(resolver, task, "x")
        assert outcome.source == "memory"
        assert 100 <= outcome.age_s < 110
    assert await store.dbsize()


async def test_distinct_questions_in_one_batch(store: redis.asyncio.Redis, store_url: str) -> None:
    model = StepModel()
    task = make_task(model)
    async with resolver_on(store_url, shards=4) as resolver:
        waiters = [Waiter(task, f"text {number % 40}") for number in range(400)]
        resolver.resolve(waiters)
        for waiter in waiters:
            assert (await waiter.outcome()).label == "a"
        assert model.calls == {f"text {number}": 1 for number in range(40)}
        await assert_at_rest(store, resolver, task, shards=4)
    filled = [tag for tag in shard_tags(4) if await all_keys(store, f"a:{{{tag}}}:*")]
    assert len(filled) == 4


@pytest.mark.parametrize("shards", [1, 4])
async def test_slots_bound_calls_and_leases(
    store: redis.asyncio.Redis, store_url: str, shards: int
) -> None:
    model = StepModel(closed=True)
    task = make_task(model, slots=3)
    async with resolver_on(store_url, shards=shards) as resolver:
        waiters = [Waiter(task, f"text {number}") for number in range(60)]
        resolver.resolve(waiters)
        await eventually(lambda: model.in_flight == 3)
        await eventually(  # all others have asked, and asked again
            lambda: sum(flight.backoff_s > FIRST_BACKOFF_S for flight in resolver.flights) == 57
        )
        assert await lease_count(store, shards) == 3
        model.open()
        for waiter in waiters:
            assert (await waiter.outcome()).label == "a"
        await assert_at_rest(store, resolver, task, shards=shards)
    assert model.calls == {f"text {number}": 1 for number in range(60)}
    assert model.most_in_flight == 3


async def test_hits_do_not_wait_behind_a_saturated_model(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    model = StepModel()
    task = make_task(model, slots=2)
    async with resolvers_on(store_url, 2) as (first, second):
        await ask(first, task, "known")
        model.close()
        stuck = [Waiter(task, f"text {number}") for number in range(50)]
        for resolver in (first, second):
            resolver.resolve(stuck[:25] if resolver is first else stuck[25:])
        await eventually(lambda: model.in_flight == 2)
        assert (await ask(first, task, "known")).source == "memory"
        assert (await ask(second, task, "known")).source == "store"
        model.open()
        for waiter in stuck:
            await waiter.outcome()
        await assert_at_rest(store, first, task)
        await assert_at_rest(store, second, task)


async def test_what_may_not_be_kept_is_asked_each_time(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    model = StepModel(closed=True)
    task = make_task(model, slots=2)
    async with resolver_on(store_url) as resolver:
        waiters = [Waiter(task, "x", cacheable=False) for _ in range(20)]
        resolver.resolve(waiters)
        await eventually(lambda: model.in_flight == 2)
        model.open()
        outcomes = [await waiter.outcome() for waiter in waiters]
        assert [outcome.source for outcome in outcomes] == ["model"] * 20
        assert model.calls["x"] == 20
        assert model.most_in_flight == 2
        assert resolver.counters.total("calls_bypass") == 20
        assert await kept(store, waiters[0].key) is None
        assert (await ask(resolver, task, "x")).source == "model"
        await assert_at_rest(store, resolver, task)


# --- failures --------------------------------------------------------------------------------


async def test_a_rejection_is_remembered_for_other_processes(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    async def refuse(_text: str, _number: int) -> None:
        raise Rejection("refused", "I would rather not")

    model = StepModel(behave=refuse)
    task = make_task(model)
    async with resolvers_on(store_url, 2) as (first, second):
        outcome = await ask(first, task, "x")
        assert outcome.error is not None
        assert (outcome.error.code, outcome.error.message) == ("refused", "I would rather not")
        assert isinstance(outcome.cause, Rejection)
        for resolver in (first, second):
            outcome = await ask(resolver, task, "x")
            assert outcome.error is not None
            assert (outcome.error.code, outcome.cause) == ("refused", None)
        assert model.total == 1
        assert await kept(store, Waiter(task, "x").key) is None
        await assert_at_rest(store, first, task)
        await assert_at_rest(store, second, task)


async def test_a_rejection_is_forgotten_in_time(store: redis.asyncio.Redis, store_url: str) -> None:
    async def refuse_once(_text: str, number: int) -> None:
        if number == 1:
            raise Rejection("refused", "not yet")

    model = StepModel(behave=refuse_once)
    task = make_task(model, remember_s=0.05)
    async with resolver_on(store_url) as resolver:
        assert (await ask(resolver, task, "x")).error is not None

        async def answered() -> bool:
            return (await ask(resolver, task, "x")).label == "a"

        await eventually(answered)
        await assert_at_rest(store, resolver, task)


async def test_attempts_are_the_keys_not_the_processes(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    async def fail(_text: str, _number: int) -> None:
        raise TransientFailure("unavailable", "not today")

    model = StepModel(behave=fail)
    task = make_task(model, retry=RetryPolicy(max_attempts=4, base_s=0.01, cap_s=0.01))
    async with resolvers_on(store_url, 4) as resolvers:
        waiters = [Waiter(task, "x") for _ in range(40)]
        for number, waiter in enumerate(waiters):
            resolvers[number % 4].resolve([waiter])
        for waiter in waiters:
            error = (await waiter.outcome()).error
            assert error is not None
            assert error.code == "unavailable"
        assert model.calls["x"] == 4
        counters = [resolver.counters for resolver in resolvers]
        assert sum(counter.total("calls_fill") for counter in counters) == 1
        assert sum(counter.total("calls_retry") for counter in counters) == 3
        for resolver in resolvers:
            await assert_at_rest(store, resolver, task)


async def test_a_new_leader_goes_on_counting(store: redis.asyncio.Redis, store_url: str) -> None:
    """The first leader fails twice and loses its lease; the second has one attempt left."""

    async def fail(_text: str, _number: int) -> None:
        raise TransientFailure("unavailable", "not today")

    first_model, second_model = StepModel(behave=fail), StepModel(behave=fail)
    slow = RetryPolicy(max_attempts=3, base_s=30, cap_s=30)
    first_task = make_task(first_model, retry=slow)
    second_task = make_task(second_model)
    async with resolver_on(store_url, rng=_Immediately(2)) as first:
        waiter = Waiter(first_task, "x")
        first.resolve([waiter])
        await eventually(lambda: first_model.total == 2)  # and now it waits for a long time
        await _age_lease(store, waiter.key)
        async with resolver_on(store_url) as second:
            outcome = await ask(second, second_task, "x")
            assert outcome.error is not None
            assert second_model.total == 1
            assert second.counters.total("calls_takeover") == 1


class _Immediately(random.Random):
    """Chooses no delay for the first so many retries, and the longest after that."""

    def __init__(self, retries: int) -> None:
        super().__init__(1)
        self._retries = retries

    def uniform(self, a: float, b: float) -> float:
        if b <= 1:  # backoffs of polls
            return super().uniform(a, b)
        self._retries -= 1
        return a if self._retries > 0 else b


async def _age_lease(store: redis.asyncio.Redis, key: bytes) -> None:
    """Let the lease of a key run out now, as if its holder had died."""
    token, _, built, attempt = await lease_of(store, key)
    await store.execute_command(
        "HSET", names.leases(TAG), key, LEASE.pack(token, 1.0, built, attempt)
    )


async def test_a_model_that_raises_takes_nobody_along(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    async def behave(text: str, number: int) -> None:
        if text == "bad":
            raise ZeroDivisionError("a bug")
        if text == "gives up":
            raise asyncio.CancelledError
        if text == "once" and number == 1:
            raise ZeroDivisionError("a bug")

    model = StepModel(behave=behave)
    task = make_task(model)
    async with resolver_on(store_url) as resolver:
        texts = ["bad", "good", "gives up", "once"]
        waiters = {text: Waiter(task, text) for text in texts}
        resolver.resolve(list(waiters.values()))
        outcomes = {text: await waiter.outcome() for text, waiter in waiters.items()}
        assert outcomes["good"].label == outcomes["once"].label == "a"
        error = outcomes["bad"].error
        assert error is not None
        assert error.code == "model_failed"
        assert "ZeroDivisionError: a bug" in error.message
        assert isinstance(outcomes["bad"].cause, ZeroDivisionError)
        gave_up = outcomes["gives up"].error
        assert gave_up is not None
        assert gave_up.code == "model_failed"
        assert model.calls == {"bad": 3, "good": 1, "gives up": 3, "once": 2}
        await assert_at_rest(store, resolver, task)


@pytest.mark.usefixtures("store")
async def test_a_model_that_cancels_its_own_task_takes_nobody_along(store_url: str) -> None:
    async def behave(text: str, _number: int) -> None:
        if text == "bad":
            this = asyncio.current_task()
            assert this is not None
            this.cancel()
            await asyncio.sleep(0)

    task = make_task(StepModel(behave=behave))
    async with resolver_on(store_url) as resolver:
        assert (await ask(resolver, task, "bad")).error is not None
        assert (await ask(resolver, task, "good")).label == "a"


@pytest.mark.usefixtures("store")
async def test_an_answer_that_cannot_be_encoded_harms_only_itself(store_url: str) -> None:
    task = make_task(StepModel(label="\ud800"))
    good = make_task(StepModel())
    async with resolver_on(store_url) as resolver:
        assert (await ask(resolver, task, "bad")).error is not None
        assert (await ask(resolver, good, "good")).label == "a"


async def test_a_model_that_hangs_blocks_only_its_slot(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    forever = asyncio.Event()

    async def hang(text: str, _number: int) -> None:
        if text == "hangs":
            await forever.wait()

    model = StepModel(behave=hang)
    task = make_task(model, slots=2)
    async with resolver_on(store_url) as resolver:
        hung = Waiter(task, "hangs")
        others = [Waiter(task, f"text {number}") for number in range(20)]
        resolver.resolve([hung, *others])
        for waiter in others:
            assert (await waiter.outcome()).label == "a"
        assert not hung.outcomes
        forever.set()
        assert (await hung.outcome()).label == "a"
        await assert_at_rest(store, resolver, task)


# --- leases ----------------------------------------------------------------------------------


async def test_leases_are_renewed_for_a_slow_call(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    model = StepModel(closed=True)
    task = make_task(model)
    async with resolvers_on(store_url, 2, lease_ttl_s=1.0) as (first, second):
        leader, waiter = Waiter(task, "slow"), Waiter(task, "slow")
        first.resolve([leader])
        await eventually(lambda: is_leased(store, leader.key))
        token, deadline, *_ = await lease_of(store, leader.key)
        second.resolve([waiter])

        async def long_past_its_first_deadline() -> bool:
            seconds, micros = await store.time()
            return seconds * 1000 + micros / 1000 > deadline + 500

        await eventually(long_past_its_first_deadline)
        holder, renewed, _, attempt = await lease_of(store, leader.key)
        assert (holder, attempt) == (token, 1)
        assert renewed > deadline
        model.open()
        assert (await leader.outcome()).source == "model"
        assert (await waiter.outcome()).source == "coalesced"
        assert model.total == 1
        assert first.counters.total("flights_filled") == 1
        assert first.counters.total("leases_lost") == 0


async def test_who_lost_the_lease_replies_and_never_fills(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    """The renewal tells the leader; its answer is not even offered to the store."""
    model = StepModel(closed=True)
    task = make_task(model)
    async with resolver_on(store_url, lease_ttl_s=10, lease_renew_s=0.05) as resolver:
        waiter = Waiter(task, "x")
        resolver.resolve([waiter])
        await eventually(lambda: model.in_flight == 1)
        await take_lease(store, waiter.key)
        await eventually(lambda: resolver.counters.total("leases_lost") == 1)
        model.open()
        assert (await waiter.outcome()).label == "a"
        assert resolver.counters.total("flights_fenced") == 1
        assert await kept(store, waiter.key) is None
        assert (await lease_of(store, waiter.key))[0] == OTHER_TOKEN
        assert len(resolver.memory) == 0


async def test_who_does_not_know_that_the_lease_is_lost_never_fills(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    """A worker whose clock stood still (it was stopped, say) is fenced by the fill script."""
    model = StepModel(closed=True)
    task = make_task(model)
    async with resolver_on(store_url, lease_renew_s=1000, clock=FrozenClock()) as resolver:
        waiter = Waiter(task, "x")
        resolver.resolve([waiter])
        await eventually(lambda: model.in_flight == 1)
        await take_lease(store, waiter.key)
        model.open()
        assert (await waiter.outcome()).label == "a"
        assert resolver.counters.total("flights_fenced") == 1
        assert resolver.counters.total("leases_lost") == 0
        assert await kept(store, waiter.key) is None
        assert len(resolver.memory) == 0


async def test_a_lease_past_its_time_is_not_trusted(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    """Nobody has taken it, and nothing was renewed: the flight is unfenced by its own clock."""
    clock = ShiftedClock()
    model = StepModel(closed=True)
    task = make_task(model)
    async with resolver_on(store_url, lease_renew_s=1000, clock=clock) as resolver:
        waiter = Waiter(task, "x")
        resolver.resolve([waiter])
        await eventually(lambda: model.in_flight == 1)
        clock.shift_s = 9.5  # of 10, less the margin
        model.open()
        assert (await waiter.outcome()).label == "a"
        assert resolver.counters.total("flights_fenced") == 1
        assert await kept(store, waiter.key) is None


async def test_who_lost_the_lease_before_a_retry_does_not_call_again(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    gate = asyncio.Event()

    async def fail_later(_text: str, _number: int) -> None:
        await gate.wait()
        raise TransientFailure("unavailable", "not today")

    loser, winner = StepModel(behave=fail_later), StepModel("b")
    async with resolvers_on(store_url, 2) as (first, second):
        task = make_task(loser)
        waiter = Waiter(task, "x")
        first.resolve([waiter])
        await eventually(lambda: loser.in_flight == 1)
        await _age_lease(store, waiter.key)
        assert (await ask(second, make_task(winner), "x")).label == "b"
        gate.set()
        outcome = await waiter.outcome()
        assert (outcome.label, outcome.source) == ("b", "coalesced")
        assert (loser.total, winner.total) == (1, 1)
        assert first.counters.total("leases_lost") == 1
        await assert_at_rest(store, first, task)


@pytest.mark.usefixtures("store")
async def test_a_waiter_without_patience_takes_over(store_url: str) -> None:
    slow, quick = StepModel("slow", closed=True), StepModel("quick")
    async with resolvers_on(store_url, 2) as (first, second):
        leader = Waiter(make_task(slow), "x")
        first.resolve([leader])
        await eventually(lambda: slow.in_flight == 1)
        outcome = await ask(second, make_task(quick, patience_s=0.1), "x")
        assert (outcome.label, outcome.source) == ("quick", "model")
        assert second.counters.total("calls_takeover") == 1
        slow.open()
        assert (await leader.outcome()).label == "slow"
        assert first.counters.total("flights_fenced") == 1
        async with resolver_on(store_url) as third:
            assert (await ask(third, make_task(slow), "x")).label == "quick"
        assert (slow.total, quick.total) == (1, 1)


async def test_patience_waits_for_a_slot(store: redis.asyncio.Redis, store_url: str) -> None:
    slow, quick = StepModel(closed=True), StepModel("b", closed=True)
    async with resolvers_on(store_url, 2) as (first, second):
        leader = Waiter(make_task(slow), "x")
        first.resolve([leader])
        await eventually(lambda: slow.in_flight == 1)
        task = make_task(quick, slots=1, patience_s=0.05)
        mine, impatient = Waiter(task, "mine"), Waiter(task, "x")
        second.resolve([mine])
        await eventually(lambda: quick.in_flight == 1)
        second.resolve([impatient])
        await eventually(lambda: any(flight.busy_token for flight in second.flights))
        await eventually(lambda: all(f.backoff_s >= 0.1 for f in second.flights if f.busy_token))
        assert quick.total == 1
        quick.open()
        assert (await impatient.outcome()).label == "b"
        assert quick.most_in_flight == 1
        slow.open()
        await leader.outcome()
        await assert_at_rest(store, second, task)


async def test_when_patience_ends_one_waiter_takes_over_not_all(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    slow, quick = StepModel(closed=True), StepModel(closed=True)
    async with resolvers_on(store_url, 5) as (first, *others):
        leader = Waiter(make_task(slow), "x")
        first.resolve([leader])
        await eventually(lambda: slow.in_flight == 1)
        old_leader = (await lease_of(store, leader.key))[0]
        waiters = [Waiter(make_task(quick, patience_s=0.5), "x") for _ in others]
        for resolver, waiter in zip(others, waiters, strict=True):
            resolver.resolve([waiter])
        await eventually(lambda: quick.in_flight > 0)

        def all_others_wait_for_the_new_leader() -> bool:
            waiting = [f for resolver in others for f in resolver.flights if not f.flying]
            return len(waiting) == 3 and all(f.busy_token != old_leader for f in waiting)

        await eventually(lambda: quick.total > 1 or all_others_wait_for_the_new_leader())
        calls = quick.total
        quick.open()
        slow.open()
        for waiter in (leader, *waiters):
            await waiter.outcome()
        assert calls == 1


async def test_on_exit_leases_are_given_back(store: redis.asyncio.Redis, store_url: str) -> None:
    model = StepModel(closed=True)
    task = make_task(model)
    async with resolver_on(store_url) as resolver:
        resolver.resolve([Waiter(task, f"text {number}") for number in range(10)])
        await eventually(lambda: model.in_flight == 10)
        assert await lease_count(store) == 10
    assert await lease_count(store) == 0
    assert task.backend.in_flight == 0
    model.open()
    async with resolver_on(store_url) as next_one:
        await ask(next_one, task, "text 1")
        assert next_one.counters.total("calls_takeover") == 0


async def test_a_dead_leader_is_replaced(store: redis.asyncio.Redis, store_url: str) -> None:
    dead = StepModel(closed=True)
    alive = StepModel("b")
    async with resolver_on(store_url, lease_renew_s=1000) as first:
        first.resolve([Waiter(make_task(dead), "x")])
        await eventually(lambda: dead.in_flight == 1)
        await _age_lease(store, Waiter(make_task(dead), "x").key)
        async with resolver_on(store_url) as second:
            assert (await ask(second, make_task(alive), "x")).label == "b"
            assert second.counters.total("calls_takeover") == 1


async def test_a_dead_leader_is_replaced_where_a_call_may_fail_once_only(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    once = RetryPolicy(max_attempts=1)
    dead = StepModel(closed=True)
    async with resolver_on(store_url, lease_renew_s=1000) as first:
        first.resolve([Waiter(make_task(dead, retry=once), "x")])
        await eventually(lambda: dead.in_flight == 1)
        await _age_lease(store, Waiter(make_task(dead), "x").key)
        async with resolver_on(store_url) as second:
            outcome = await ask(second, make_task(StepModel("b"), retry=once), "x")
            assert outcome.error is None
            assert outcome.label == "b"


# --- memory ----------------------------------------------------------------------------------


async def test_memory_serves_only_while_invalidations_are_seen(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    clock = ShiftedClock()
    task = make_task(StepModel())
    async with resolver_on(store_url, clock=clock, stamp_bound_s=100) as resolver:
        await ask(resolver, task, "x")
        assert (await ask(resolver, task, "x")).source == "memory"
        clock.shift_s = 101  # and the next read is due in 50 s of real time
        assert (await ask(resolver, task, "x")).source == "store"
        await resolver.stamps.read(0)
        assert (await ask(resolver, task, "x")).source == "memory"
    assert await store.dbsize()


@pytest.mark.usefixtures("store")
async def test_memory_keeps_no_answer_longer_than_its_time(store_url: str) -> None:
    clock = ShiftedClock()
    model = StepModel()
    task = make_task(model, ttl_s=30.0)
    async with resolver_on(store_url, clock=clock, stamp_bound_s=1000) as resolver:
        await ask(resolver, task, "x")
        clock.shift_s = 29
        assert (await ask(resolver, task, "x")).source == "memory"
        clock.shift_s = 31
        assert (await ask(resolver, task, "x")).source == "store"


async def test_without_memory_the_store_answers(store: redis.asyncio.Redis, store_url: str) -> None:
    task = make_task(StepModel())
    async with resolver_on(store_url, memory_bytes=ENTRY_OVERHEAD_BYTES) as resolver:
        await ask(resolver, task, "x")
        assert (await ask(resolver, task, "x")).source == "store"
        await assert_at_rest(store, resolver, task)


# --- what the store holds --------------------------------------------------------------------


async def test_an_entry_that_cannot_be_read_is_dropped_and_asked_again(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    task = make_task(StepModel())
    key = Waiter(task, "x").key
    async with resolver_on(store_url) as resolver:
        await ask(resolver, task, "x")
    good = await kept(store, key)
    assert good is not None
    await store.set(names.answer_prefix(TAG) + key, good[:-5] + b"\xc1\xc1\xc1", ex=1000)
    async with resolver_on(store_url) as resolver:
        waiters = [Waiter(task, "x"), Waiter(task, "neighbour")]
        resolver.resolve(waiters)
        for waiter in waiters:
            outcome = await waiter.outcome()
            assert (outcome.label, outcome.source) == ("a", "model")
    assert await kept(store, key) is not None


@pytest.mark.parametrize("junk", [b"", b"junk"])
async def test_an_entry_without_a_header_harms_nobody(
    store: redis.asyncio.Redis, store_url: str, junk: bytes
) -> None:
    task = make_task(StepModel())
    waiters = [Waiter(task, "x"), Waiter(task, "neighbour")]
    await store.set(names.answer_prefix(TAG) + waiters[0].key, junk, ex=1000)
    async with resolver_on(store_url) as resolver:
        resolver.resolve(waiters)
        for waiter in waiters:
            assert (await waiter.outcome()).label == "a"


async def test_what_was_called_uncacheable_is_asked_by_everyone(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    model = StepModel()
    task = make_task(model, slots=1)
    key = Waiter(task, "x").key
    token = b"0123456789abcdef"
    call = answer_scripts.look_up(
        TAG,
        token=token,
        lease_ms=1000,
        max_new_leases=1,
        digests=[key],
        asker_tags=[""],
    )
    await run(store, call)
    await run(store, answer_scripts.release(TAG, [Release(key, token, "U", 60_000)]))
    async with resolvers_on(store_url, 2) as resolvers:
        for resolver in resolvers:
            assert (await ask(resolver, task, "x")).source == "model"
            assert (await ask(resolver, task, "x")).source == "model"
            await assert_at_rest(store, resolver, task)
    assert model.total == 4
    assert await kept(store, key) is None


async def test_what_waits_alone_is_not_asked_twice(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    """A question that waits for a slot turns out to be uncacheable while its next poll is due."""
    model = StepModel(closed=True)
    task = make_task(model, slots=1)
    async with resolver_on(store_url) as resolver:
        first, uncacheable = Waiter(task, "first"), Waiter(task, "x")
        resolver.resolve([first])
        await eventually(lambda: model.in_flight == 1)
        resolver.resolve([uncacheable])
        await eventually(lambda: any(flight.waits_for_slot for flight in resolver.flights))
        until = 4e15  # in the year 2096
        tries = struct.pack("<c1Bd", b"U", 0, until)
        await store.execute_command("HSET", names.tries(TAG), uncacheable.key, tries)
        await eventually(lambda: any(flight.waits_alone for flight in resolver.flights))
        model.open()
        for waiter in (first, uncacheable):
            assert (await waiter.outcome()).label == "a"
        await assert_at_rest(store, resolver, task)
        assert model.calls["x"] == 1


async def test_only_answers_have_a_ttl(store: redis.asyncio.Redis, store_url: str) -> None:
    async def fail_some(text: str, _number: int) -> None:
        if text == "bad":
            raise TransientFailure("unavailable", "not today")

    model = StepModel(behave=fail_some)
    task = make_task(model, ttl_s=100.0)
    async with resolver_on(store_url) as resolver:
        await ask(resolver, task, "good")
        await ask(resolver, task, "bad")
        model.close()
        resolver.resolve([Waiter(task, "slow")])
        await eventually(lambda: model.in_flight == 1)
        ttls = {key: int(await store.ttl(key)) for key in await all_keys(store)}
    answers = {key: ttl for key, ttl in ttls.items() if key.startswith(b"a:")}
    assert len(answers) == 1
    assert all(0 < ttl <= 100 for ttl in answers.values())
    assert {ttl for key, ttl in ttls.items() if key not in answers} == {-1}
    assert {names.leases(TAG), names.tries(TAG), names.stamps(TAG)} <= set(ttls)


@pytest.mark.usefixtures("store")
async def test_every_resolver_has_tokens_of_its_own(store_url: str) -> None:
    prefixes: set[bytes] = set()
    async with resolvers_on(store_url, 3) as resolvers:
        for resolver in resolvers:
            prefixes.add(_token_prefix(resolver))
    assert len(prefixes) == 3


def _token_prefix(resolver: Resolver) -> bytes:
    return resolver._tier._new_token()[:8]


def test_the_quick_retry_of_these_tests_is_quick() -> None:
    assert QUICK_RETRY.delay_s(3, None, random.Random(1)) <= 0.002
