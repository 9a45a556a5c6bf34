"""Cancellation at every step: nobody else is cancelled, and nothing is left behind."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis.asyncio

from askonce_queue.embedded import EmbeddedStore
from askonce_worker import AnswerCache
from askonce_worker.models.protocol import TransientFailure
from askonce_worker.models.retry import RetryPolicy
from tests.support.embedded_server import server_pid
from tests.support.leaks import other_tasks
from tests.support.resolving import (
    LIMIT_S,
    StepModel,
    Waiter,
    ask,
    assert_at_rest,
    lease_count,
    make_task,
    resolver_on,
    step_until,
)
from tests.support.waiting import eventually

STEPS = 60
"""About as many steps of the loop as a flight from the first look-up to its fill takes."""
MOST_STEPS = 600
"""Replies of a busy server arrive later."""


async def steps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def cancelled(task: asyncio.Task[Any], *, limit_s: float = LIMIT_S) -> bool:
    """Cancel a task and wait for its end; whether that is what ended it."""
    task.cancel()
    await asyncio.wait([task], timeout=limit_s)
    return task.cancelled()


class StepCall:
    """A function of a few steps."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self) -> int:
        self.count += 1
        await steps(5)
        return self.count


# --- callers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("others", [0, 1])
async def test_a_caller_cancelled_at_any_step(
    store: redis.asyncio.Redis, store_url: str, others: int
) -> None:
    """Its flight finishes and is kept, and who else waits is answered."""
    count_cancelled = 0
    async with AnswerCache(store_url) as cache:
        for step in range(MOST_STEPS):
            call = StepCall()
            caller = asyncio.create_task(cache.get_or_call("f", step, call))
            rest = [asyncio.create_task(cache.get_or_call("f", step, call)) for _ in range(others)]
            await steps(step)
            is_cancelled = await cancelled(caller)
            count_cancelled += is_cancelled
            for other in rest:
                assert (await asyncio.wait_for(other, LIMIT_S)).value == 1
            started = step > 0 or others
            if started:
                result = await asyncio.wait_for(cache.get_or_call("f", step, call), LIMIT_S)
                assert result.value == 1
                assert call.count == 1
            assert not cache._waiting
            if not is_cancelled and step >= STEPS:
                break
        else:
            pytest.fail("it never came to its end")
        await assert_at_rest(store, cache._resolver)
        assert cache._backend.in_flight == 0
    assert count_cancelled > 0


@pytest.mark.parametrize("stage", ["first call", "pause", "second call"])
async def test_a_caller_cancelled_at_any_stage_of_a_flight_that_retries(
    store: redis.asyncio.Redis, store_url: str, stage: str
) -> None:
    go_on = asyncio.Event()

    async def fail_once(_text: str, number: int) -> None:
        if stage == ("first call" if number == 1 else "second call"):
            await go_on.wait()
        if number == 1:
            raise TransientFailure("unavailable", "not yet")

    model = StepModel(behave=fail_once)
    pause_s = 0.2 if stage == "pause" else 0.001
    task = make_task(model, retry=RetryPolicy(max_attempts=2, base_s=pause_s, cap_s=pause_s))
    reached: dict[str, Callable[[], bool]] = {
        "first call": lambda: model.in_flight == 1 and model.total == 1,
        "pause": lambda: model.in_flight == 0 and model.total == 1,
        "second call": lambda: model.in_flight == 1 and model.total == 2,
    }
    async with resolver_on(store_url, rng=_LongestPauses()) as resolver:
        leaving = asyncio.create_task(ask(resolver, task, "x"))
        await eventually(reached[stage])
        assert await cancelled(leaving)
        stays = Waiter(task, "x")
        resolver.resolve([stays])
        go_on.set()
        assert (await stays.outcome()).label == "a"
        assert model.total == 2
        await assert_at_rest(store, resolver, task)


class _LongestPauses(random.Random):
    """Draws no jitter."""

    def uniform(self, a: float, b: float) -> float:
        del a
        return b


async def test_a_time_limit_of_anyio(store: redis.asyncio.Redis, store_url: str) -> None:
    """Its cancellation is level-triggered, and must not reach the flight either."""
    async with AnswerCache(store_url) as cache:
        for step in range(0, STEPS, 3):
            call = StepCall()
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(cache.get_or_call, "f", step, call)
                    await steps(step)
                    scope.cancel()
            result = await asyncio.wait_for(cache.get_or_call("f", step, call), LIMIT_S)
            assert result.value == 1
            assert call.count == 1
        await assert_at_rest(store, cache._resolver)


# --- resolvers and caches --------------------------------------------------------------------


async def test_a_cache_cancelled_while_it_opens(store: redis.asyncio.Redis, store_url: str) -> None:
    """The `store` fixture checks that no connection is left."""

    async def use() -> None:
        async with AnswerCache(store_url) as cache:
            await cache.get_or_call("f", 1, StepCall())
            await asyncio.Event().wait()

    for step in range(0, 80, 2):
        user = asyncio.create_task(use())
        await steps(step)
        # Again and again, as anyio does: `asyncio.wait_for` of Python 3.11, in redis-py, swallows
        # a cancellation that comes together with what it waits for.
        while not user.done():
            await cancelled(user, limit_s=0.1)
        await eventually(lambda: not other_tasks())
    assert await store.ping()


async def test_a_resolver_cancelled_at_any_step_of_its_calls(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    """From the moment when a model was asked: every lease is given back, every slot is free."""

    async def behave(_text: str, number: int) -> None:
        await steps(3)
        if number == 1:
            raise TransientFailure("unavailable", "not yet")

    for step in range(0, 40, 2):
        model = StepModel(behave=behave)
        task = make_task(model, slots=2)

        async def use(task: Any = task, step: int = step) -> None:
            async with resolver_on(store_url) as resolver:
                resolver.resolve([Waiter(task, f"{step}, {number}") for number in range(2)])
                await asyncio.Event().wait()

        user = asyncio.create_task(use())
        await eventually(partial(both_are_asked, model))
        await steps(step)
        assert await cancelled(user)
        assert await lease_count(store) == 0
        assert task.backend.in_flight == 0


def both_are_asked(model: StepModel) -> bool:
    return model.total >= 2


async def test_a_resolver_cancelled_at_any_step_of_its_look_ups(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    left: dict[int, int] = {}
    for step in range(40):
        model = StepModel(closed=True)
        task = make_task(model)
        async with resolver_on(store_url) as resolver:
            resolver.resolve([Waiter(task, f"{step}, {number}") for number in range(2)])
            await steps(step)
        if count := await lease_count(store):
            left[step] = count
            await store.flushall()
    assert not left


async def test_a_resolver_can_be_left_while_the_store_hangs(state_folder: Path) -> None:
    """Leases granted meanwhile are lost; the process must end all the same."""
    async with EmbeddedStore(state_folder, maxmemory="64mb") as embedded:
        pid = await asyncio.to_thread(server_pid, embedded.url)
        task = make_task(StepModel())

        async def use() -> None:
            async with resolver_on(embedded.url) as resolver:
                os.kill(pid, signal.SIGSTOP)
                resolver.resolve([Waiter(task, "x")])
                await step_until(lambda: not resolver._room._queues[0].due_now)

        user = asyncio.create_task(use())
        try:
            done, _ = await asyncio.wait([user], timeout=12)
        finally:
            os.kill(pid, signal.SIGCONT)
            await asyncio.wait([user])
        assert done


async def test_a_resolver_can_be_left_when_the_store_is_gone(state_folder: Path) -> None:
    """Its flights are asked about again and again; no look-up may follow the cancellation."""
    embedded = await asyncio.to_thread(EmbeddedStore(state_folder, maxmemory="64mb").__enter__)
    pid = await asyncio.to_thread(server_pid, embedded.url)
    task = make_task(StepModel())
    left: list[float] = []

    async def use() -> None:
        async with resolver_on(embedded.url) as resolver:
            os.kill(pid, signal.SIGKILL)
            # Their backoffs differ, so some are due whenever the look-up of others has failed.
            resolver.resolve([Waiter(task, str(number)) for number in range(50)])
            flights = list(resolver.flights)
            for flight in flights:
                flight.backoff_s = 0.4
            await eventually(lambda: all(flight.backoff_s == 1.0 for flight in flights), 20)
            left.append(asyncio.get_running_loop().time())
        left.append(asyncio.get_running_loop().time())

    try:
        await asyncio.wait_for(use(), 60)
        assert left[1] - left[0] < 12  # UNCANCELLED_S, and as long to give leases back
    finally:
        await asyncio.to_thread(embedded.__exit__, None, None, None)
