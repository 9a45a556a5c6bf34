"""Misses that wait for a saturated model wait out of the way of hits, in a stream of their own."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import redis.asyncio

from askonce_queue import Client, IdConflict, Job
from askonce_queue.queue_scripts import Lane
from askonce_queue.reply import Reply
from tests.support.queue_worker import (
    BULK,
    INTERACTIVE,
    EchoModel,
    backlog,
    echo_worker,
    pending,
)
from tests.support.waiting import eventually

SMALL: dict[str, Any] = {"max_held": 60, "max_waiting": 20, "batch": 20}


def cold(count: int, prefix: str = "cold") -> list[Job]:
    return [Job(task="echo", text=f"{prefix} {n}", id=f"{prefix}-{n}") for n in range(count)]


async def deferred(store: redis.asyncio.Redis, lane: Lane = INTERACTIVE) -> int:
    return await backlog(store, lane.deferred)


async def replies_of(client: Client, count: int) -> list[Reply]:
    replies = client.replies()
    return [await anext(replies) for _ in range(count)]


async def test_hits_pass_while_the_model_is_saturated(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    model = EchoModel()
    async with (
        echo_worker(store_url, model, slots=4, **SMALL).running() as worker,
        Client(store_url) as client,
    ):
        assert (await client.ask(Job(task="echo", text="warm"))).source == "model"
        model.open.clear()
        await client.enqueue_many(cold(300))
        await eventually(lambda: worker.counters.total("flights_deferred") >= 250)
        hits = [reply async for reply in client.ask_many([Job(task="echo", text="warm")] * 500)]
        assert {reply.source for reply in hits} == {"memory"}
        assert await deferred(store) + await backlog(store) == 300
        model.open.set()
        found = await replies_of(client, 300)
        assert Counter(reply.id for reply in found) == Counter(job.id for job in cold(300))
        assert all(reply.answer is not None for reply in found)
    assert Counter(model.asked) == Counter(["warm", *(str(job.text) for job in cold(300))])
    assert await deferred(store) == await backlog(store) == 0
    assert not await store.exists(INTERACTIVE.ids)


async def test_past_the_bound_a_miss_gets_an_error_and_a_hit_its_answer(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    model = EchoModel()
    async with (
        echo_worker(store_url, model, slots=4, max_deferred=30, **SMALL).running(),
        Client(store_url) as client,
    ):
        await client.ask(Job(task="echo", text="warm"))
        model.open.clear()
        await client.enqueue_many(cold(200))
        refused = await replies_of(client, 100)
        assert {reply.error.code for reply in refused if reply.error} == {"deferred_full"}
        assert (await client.ask(Job(task="echo", text="warm"))).source == "memory"
        assert await deferred(store) == 30
        model.open.set()
        answered = await replies_of(client, 100)
        found = Counter(reply.id for reply in refused + answered)
        assert found == Counter(job.id for job in cold(200))
        assert sum(reply.answer is not None for reply in answered) >= 30


async def test_a_deferred_job_is_the_same_job(store: redis.asyncio.Redis, store_url: str) -> None:
    model = EchoModel()
    model.open.clear()
    async with (
        echo_worker(store_url, model, slots=1, **SMALL).running(),
        Client(store_url) as client,
    ):
        await client.enqueue_many(cold(100))
        await eventually(lambda: _all_but_held(store, 100))
        await client.enqueue_many(cold(100))
        await eventually(lambda: _there_are(store, 100))
        with pytest.raises(IdConflict):
            await client.enqueue_many([Job(task="echo", text="other", id="cold-99")])
        model.open.set()
        found = await replies_of(client, 100)
        assert Counter(reply.id for reply in found) == Counter(job.id for job in cold(100))
        assert client.outstanding == 0


async def test_what_a_worker_deferred_another_answers(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    stuck = EchoModel()
    stuck.open.clear()
    async with Client(store_url) as client:
        async with echo_worker(store_url, stuck, slots=1, drain_s=0.1, **SMALL).running():
            await client.enqueue_many(cold(100), lane="bulk")
            await eventually(lambda: _all_but_held(store, 100, BULK))
        assert await pending(store, BULK.deferred) in ({}, {"returned": 1})
        async with echo_worker(store_url).running():
            found = await replies_of(client, 100)
        assert Counter(reply.id for reply in found) == Counter(job.id for job in cold(100))
        assert all(reply.answer is not None for reply in found)


async def _all_but_held(store: redis.asyncio.Redis, count: int, lane: Lane = INTERACTIVE) -> bool:
    return bool(await deferred(store, lane) >= count - SMALL["max_held"])


async def _there_are(store: redis.asyncio.Redis, count: int) -> bool:
    return await deferred(store) + await backlog(store) == count
