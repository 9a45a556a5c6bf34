"""Lanes: interactive goes first, by weight, and bulk never starves; on the real server."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
import redis.asyncio

from askonce_queue import CacheControl, Client, Job, queue_scripts
from askonce_queue.queue_scripts import Lane
from askonce_queue.reply import Answer
from askonce_queue.scripts import run
from askonce_worker.config import LaneWeights
from askonce_worker.models.protocol import Prompt, Question
from askonce_worker.pool.held import Held
from askonce_worker.pool.worker import Worker
from tests.support.queue_worker import (
    BULK,
    INTERACTIVE,
    EchoModel,
    backlog,
    echo_worker,
)
from tests.support.resolving import StepModel, Waiter, make_task, resolver_on, step_until
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("store")


class OneByOne:
    """A model whose calls end one at a time, when it is told."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self._ends = asyncio.Semaphore(0)

    async def ask(self, prompt: Prompt, question: Question) -> Answer:
        del prompt
        self.began.append(str(question.text))
        await self._ends.acquire()
        return Answer(label="x")

    def end(self, count: int = 1) -> None:
        for _ in range(count):
            self._ends.release()

    async def end_one(self) -> str:
        """End a call; return what is asked in its place."""
        before = len(self.began)
        self.end()
        await eventually(lambda: len(self.began) > before)
        return self.began[-1]

    async def check(self) -> str:
        return "one by one"

    async def aclose(self) -> None:
        pass


def cold(lane: str, count: int) -> list[Job]:
    return [Job(task="echo", text=f"{lane} {n}") for n in range(count)]


async def enqueue(client: Client, lane: str, count: int) -> None:
    await client.enqueue_many(cold(lane, count), lane=lane)


async def in_hand(worker: Worker, count: int) -> None:
    """Wait until so many questions wait or fly."""
    await eventually(lambda: len(worker.resolver.flights) == count)


def queued(worker: Worker, lane: str) -> int:
    """How many questions of a lane wait for a slot."""
    return sum(flight.queued_in == lane for flight in worker.resolver.flights)


@pytest.mark.parametrize(("interactive", "bulk"), [(4, 1), (1, 1), (1, 3)])
async def test_a_saturated_model_is_shared_by_weight(
    store_url: str, store: redis.asyncio.Redis, interactive: int, bulk: int
) -> None:
    model = OneByOne()
    weights = LaneWeights(interactive, bulk)
    async with (
        echo_worker(store_url, model, slots=3, lanes=weights).running() as worker,
        Client(store_url) as client,
    ):
        await enqueue(client, "bulk", 103)
        await in_hand(worker, 103)
        await enqueue(client, "interactive", 100)
        await eventually(lambda: queued(worker, "interactive") == 100)
        asked = [await model.end_one() for _ in range(60)]
        counts = Counter(text.split()[0] for text in asked)
        assert abs(counts["bulk"] - 60 * weights.share("bulk")) <= 3
        # Neither waits for the other's end: its turns are spread evenly.
        for start in range(0, 60 - 2 * (interactive + bulk), 5):
            part = asked[start : start + 2 * (interactive + bulk)]
            assert {text.split()[0] for text in part} == {"interactive", "bulk"}
        model.end(1000)
        replies = client.replies()
        assert [(await anext(replies)).error for _ in range(203)] == [None] * 203
    assert await backlog(store) == await backlog(store, BULK) == 0


async def test_an_interactive_job_waits_for_one_call_of_bulk_at_most(store_url: str) -> None:
    model = OneByOne()
    async with (
        echo_worker(store_url, model, slots=1).running() as worker,
        Client(store_url) as client,
    ):
        await enqueue(client, "bulk", 200)
        await in_hand(worker, 200)
        for number in range(10):
            for _ in range(number % 3):
                assert (await model.end_one()).startswith("bulk")
            await client.enqueue(Job(task="echo", text=f"interactive {number}"))
            await eventually(lambda: queued(worker, "interactive"))
            # The one in the slot, and one more only if bulk is owed it.
            asked = [await model.end_one(), await model.end_one()]
            assert f"interactive {number}" in asked
        model.end(1000)
        replies = client.replies()
        for _ in range(210):
            await anext(replies)


async def test_who_joins_a_question_of_bulk_takes_it_along(store_url: str) -> None:
    model = OneByOne()
    async with (
        echo_worker(store_url, model, slots=1).running() as worker,
        Client(store_url) as client,
    ):
        await enqueue(client, "bulk", 50)
        await in_hand(worker, 50)
        last = next(text for text in (f"bulk {n}" for n in range(49, 0, -1)))
        await client.enqueue(Job(task="echo", text=last))
        await eventually(lambda: queued(worker, "interactive"))
        assert last in [await model.end_one(), await model.end_one()]
        model.end(1000)
        replies = client.replies()
        for _ in range(51):
            await anext(replies)


async def test_questions_that_share_nothing_keep_to_the_weights_too(store_url: str) -> None:
    """They need no look-up, and would take each slot before the others have asked."""
    model = OneByOne()
    alone = CacheControl(cacheable=False)
    async with (
        echo_worker(store_url, model, slots=1).running() as worker,
        Client(store_url) as client,
    ):
        bypass = [Job(task="echo", text=f"bulk {n}", cache=alone) for n in range(60)]
        await client.enqueue_many(bypass, lane="bulk")
        await eventually(lambda: len(worker._held) == 60)
        await enqueue(client, "interactive", 40)
        await eventually(lambda: queued(worker, "interactive") == 40)
        asked = [(await model.end_one()).split()[0] for _ in range(40)]
        assert abs(Counter(asked)["bulk"] - 8) <= 2
        model.end(1000)
        replies = client.replies()
        for _ in range(100):
            await anext(replies)


async def test_bulk_that_fills_a_worker_leaves_room_for_interactive(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    """Interactive misses wait in the worker, with the next slot before them; bulk is deferred."""
    model = OneByOne()
    limits: dict[str, Any] = {"max_held": 100, "max_waiting": 40, "batch": 20}
    async with (
        echo_worker(store_url, model, slots=1, **limits).running() as worker,
        Client(store_url) as client,
    ):
        await enqueue(client, "bulk", 300)
        await eventually(lambda: worker.counters.total("jobs_deferred") >= 255)
        await enqueue(client, "interactive", 10)
        await eventually(lambda: worker._held._counts["interactive"] == 10)
        asked = [await model.end_one() for _ in range(12)]
        assert sum(text.startswith("interactive") for text in asked) >= 8
        assert await backlog(store, INTERACTIVE.deferred) == 0
        model.end(1000)
        replies = client.replies()
        for _ in range(310):
            await anext(replies)


async def test_deferred_bulk_is_not_starved_by_deferred_interactive(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    model = OneByOne()
    limits: dict[str, Any] = {"max_held": 60, "max_waiting": 20, "batch": 20}
    async with (
        echo_worker(store_url, model, slots=2, **limits).running() as worker,
        Client(store_url) as client,
    ):
        await enqueue(client, "interactive", 200)
        await enqueue(client, "bulk", 200)
        await eventually(lambda: worker.counters.total("jobs_deferred") >= 360)
        asked = [(await model.end_one()).split()[0] for _ in range(100)]
        assert Counter(asked)["bulk"] >= 10
        model.end(1000)
        replies = client.replies()
        for _ in range(400):
            await anext(replies)
    assert await backlog(store, BULK.deferred) == 0


async def test_scarce_room_is_fetched_by_weight(store: redis.asyncio.Redis, store_url: str) -> None:
    worker = echo_worker(store_url, EchoModel())
    intake = worker._intake("0")
    streams = [INTERACTIVE.stream, BULK.stream]
    for lane in (INTERACTIVE, BULK):
        await run(store, queue_scripts.ensure_group(lane))

    async def fetch(room: int) -> dict[str, int]:
        fetched = await intake._fetch_by_weight(streams, room)
        return {stream.decode().rpartition(":")[2]: len(found) for stream, found in fetched}

    async with Client(store_url) as client:
        for name in ("bulk", "interactive"):
            await enqueue(client, name, 60)
        assert await fetch(10) == {"interactive": 8, "bulk": 2}
        # What comes first is resolved first.
        assert list(await fetch(10)) == ["interactive", "bulk"]
        single = Counter[str]()
        for _ in range(10):
            single.update(await fetch(1))
        assert single == {"interactive": 8, "bulk": 2}
        assert await fetch(1000) == {"interactive": 36, "bulk": 54}
        assert await fetch(10) == {}
        await enqueue(client, "bulk", 30)
        assert await fetch(10) == {"bulk": 10}
        await client.enqueue_many(
            [Job(task="echo", text=f"more {n}") for n in range(30)], lane="interactive"
        )
        assert await fetch(10) == {"interactive": 8, "bulk": 2}
    await worker._commands.aclose()
    await worker._blocking.aclose()


def test_room_is_shared_by_weight() -> None:
    held = Held(100, 40, LaneWeights(interactive=3, bulk=1))

    def add(lane: Lane, count: int, start: int = 0) -> None:
        held.add(lane, [b"%d" % n for n in range(start, start + count)])

    add(BULK, 41)
    assert held.crowded(BULK)
    assert not held.crowded(INTERACTIVE)  # it has used nothing of its 30
    add(INTERACTIVE, 29)
    assert not held.crowded(INTERACTIVE)
    add(INTERACTIVE, 2, 29)
    assert held.crowded(INTERACTIVE)
    assert held.room_for_deferred(BULK) == held.room_for_deferred(INTERACTIVE) == 0
    held.remove(BULK, [b"%d" % n for n in range(41)])
    assert not held.crowded(INTERACTIVE)  # alone it may use all 40
    assert held.room_for_deferred(BULK) == 10  # its own share, all of it
    assert held.room_for_deferred(INTERACTIVE) == 0
    held.remove(INTERACTIVE, [b"%d" % n for n in range(31)])
    assert held.room_for_deferred(INTERACTIVE) == held.room_for_deferred(BULK) == 40
    add(BULK, 70)
    add(INTERACTIVE, 1)
    assert held.crowded(INTERACTIVE)  # the rest is for hits
    assert len(held) == 71
    held.add(BULK.deferred, [b"0"])
    assert held.crowded(BULK.deferred)
    assert len(held) == 72


async def test_a_slot_is_kept_for_the_question_it_was_freed_for(store_url: str) -> None:
    """Not taken by one that needs no look-up and comes while the store is asked about that."""
    model = StepModel(closed=True)
    task = make_task(model, slots=1)
    async with resolver_on(store_url) as resolver:
        first, waits = Waiter(task, "first"), Waiter(task, "waits")
        resolver.resolve([first])
        await eventually(lambda: model.in_flight == 1)
        resolver.resolve([waits])
        await eventually(lambda: any(flight.waits_for_slot for flight in resolver.flights))
        model.open()
        await step_until(lambda: task.backend.in_flight == 0)
        model.close()
        hasty = Waiter(task, "hasty", cacheable=False, lane="bulk")
        resolver.resolve([hasty])
        await eventually(lambda: model.total == 2)
        assert (model.calls["waits"], model.calls["hasty"]) == (1, 0)
        model.open()
        for waiter in (first, waits, hasty):
            assert (await waiter.outcome()).label == "a"
