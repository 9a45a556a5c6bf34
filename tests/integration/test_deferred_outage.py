"""While a model is dead, what is deferred and does not need it is answered all the same."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis.asyncio

from askonce_queue import Client, Job
from askonce_queue.reply import Answer, Reply
from askonce_worker.backend import Backend
from askonce_worker.cache.key import KeyMaker, task_digest
from askonce_worker.clock import SystemClock
from askonce_worker.config import WorkerConfig
from askonce_worker.models.availability import Availability
from askonce_worker.models.circuit import CircuitBreaker, CircuitPolicy
from askonce_worker.models.protocol import Prompt, Question, TransientFailure
from askonce_worker.pool import deferred
from askonce_worker.pool.worker import Worker
from askonce_worker.tasks import Task
from tests.support.queue_worker import INTERACTIVE, QUICK, EchoModel, backlog, echo_worker
from tests.support.waiting import eventually

COLD = 240
MAX_DEFERRED = 400
BOUNDS: dict[str, Any] = {
    "max_held": 600,
    "max_waiting": 60,
    "batch": 50,
    "max_deferred": MAX_DEFERRED,
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look more often than where it costs something."""
    monkeypatch.setattr(deferred, "LOOK_EVERY_S", 0.15)


class Mortal:
    """A model that fails every call while it is dead."""

    def __init__(self) -> None:
        self.dead = True
        self.answered: list[str] = []

    async def ask(self, prompt: Prompt, question: Question) -> Answer:
        del prompt
        if self.dead:
            raise TransientFailure("unavailable", "dead")
        self.answered.append(str(question.text))
        return Answer(label="late")

    async def check(self) -> str:
        return "mortal"

    async def aclose(self) -> None:
        pass


class Rig:
    """A worker with a dead model (task `echo`) and another (`other`), and who reads the replies."""

    def __init__(self, worker: Worker, client: Client, dead: Mortal, other: EchoModel) -> None:
        self.worker = worker
        self.client = client
        self.dead = dead
        self.other = other
        self.replies: dict[str, Reply] = {}
        self.doubled: list[str] = []

    async def read(self) -> None:
        async for reply in self.client.replies():
            if reply.id in self.replies:
                self.doubled.append(reply.id)
            self.replies[reply.id] = reply

    async def has(self, jobs: list[Job], timeout_s: float = 30.0) -> None:
        await eventually(lambda: all(job.id in self.replies for job in jobs), timeout_s)
        assert all(self.replies[str(job.id)].answer is not None for job in jobs)

    def deferred(self) -> int:
        return self.worker.counters.total("jobs_deferred")


@asynccontextmanager
async def running(url: str, **config: Any) -> AsyncGenerator[Rig]:
    dead, other = Mortal(), EchoModel()
    clock = SystemClock()
    policy = CircuitPolicy(failures=3, open_s=0.1, longest_open_s=0.2)
    breaker = CircuitBreaker(policy, clock, random.Random(1))
    availability = Availability("dead", clock=clock, breaker=breaker)
    backends = {
        "echo": Backend("dead", dead, 4, patience_s=60.0, availability=availability),
        "other": Backend("other", other, 4, patience_s=60.0),
    }
    tasks: dict[str, Task] = {}
    for name, backend in backends.items():
        digest = task_digest(model_identity={"kind": name}, prompt=Prompt(), normalize=())
        key_maker = KeyMaker(digest, shared=False)
        tasks[name] = Task(name, backend=backend, prompt=Prompt(), key_maker=key_maker)
    worker = Worker(url, tasks, WorkerConfig(**(QUICK | BOUNDS | config)))
    async with worker.running(), Client(url) as client:
        rig = Rig(worker, client, dead, other)
        reading = asyncio.create_task(rig.read())
        try:
            yield rig
        finally:
            reading.cancel()


def jobs(task: str, kind: str, count: int) -> list[Job]:
    return [Job(task=task, text=f"{kind} {n}", id=f"{kind}-{n}") for n in range(count)]


async def fill_up(rig: Rig, store: redis.asyncio.Redis) -> list[Job]:
    """Let misses of the dead model fill the places to wait, and the store have the rest."""
    cold = jobs("echo", "cold", COLD)
    await rig.client.enqueue_many(cold)
    await eventually(lambda: rig.worker.vitals().models["dead"].circuit != "closed")
    full = BOUNDS["max_waiting"] // 2
    await eventually(lambda: rig.deferred() >= COLD - 100 and rig.worker.vitals().held > full)
    assert await _total(store, COLD)
    return cold


async def test_another_models_jobs_and_stored_answers_come_through(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    async with running(store_url) as rig:
        cold = await fill_up(rig, store)
        # The other model is saturated for a while, so its jobs are deferred behind all these.
        rig.other.open.clear()
        other = jobs("other", "other", 100)
        await rig.client.enqueue_many(other)
        await eventually(lambda: _total(store, COLD + 100))
        await eventually(lambda: len(rig.other.asked) == 4)
        rig.other.open.set()
        # Another process has got answers for some of what waits in the store.
        known = cold[-20:]
        async with (
            echo_worker(store_url, pool="elsewhere").running(),
            Client(store_url, pool="elsewhere") as elsewhere,
        ):
            for job in known:
                await elsewhere.ask(Job(task="echo", text=job.text))

        await rig.has(other)
        await rig.has(known)
        assert len(rig.replies) == len(other) + len(known)  # and nobody else, by error or by luck
        assert rig.dead.answered == []
        assert await _total(store, COLD - len(known))

        rig.dead.dead = False
        await rig.has(cold)
        assert not rig.doubled
        assert rig.worker.counters.total("errors") == 0
    asked = Counter(rig.dead.answered)
    assert asked == Counter(str(job.text) for job in cold[: -len(known)])
    assert Counter(rig.other.asked) == Counter(str(job.text) for job in other)
    assert await _total(store, 0)
    assert not await store.exists(INTERACTIVE.ids, INTERACTIVE.due)


async def test_where_the_store_is_full_they_still_go_round(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    async with running(store_url, max_deferred=COLD // 2) as rig:
        await rig.client.enqueue_many(jobs("echo", "cold", COLD))
        full = COLD // 2
        await eventually(lambda: len(rig.replies) >= full // 2)
        await eventually(lambda: backlog_is(store, full))
        refused = len(rig.replies)
        before = rig.deferred()
        await eventually(lambda: rig.deferred() >= before + full, 20)
        assert len(rig.replies) == refused
        rig.dead.dead = False
        await eventually(lambda: len(rig.replies) == COLD, 20)
        codes = Counter(r.error.code if r.error else "" for r in rig.replies.values())
        assert codes == {"deferred_full": refused, "": COLD - refused}
        assert not rig.doubled


async def test_a_deadline_holds_for_those_that_go_round(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    async with running(store_url) as rig:
        await fill_up(rig, store)
        timed = [
            Job(task="echo", text=f"timed {n}", id=f"timed-{n}", deadline_s=2.0) for n in range(50)
        ]
        await rig.client.enqueue_many(timed)
        before = rig.deferred()
        await eventually(lambda: rig.deferred() >= before + 2 * len(timed))
        await eventually(lambda: all(job.id in rig.replies for job in timed))
        found = [rig.replies[str(job.id)] for job in timed]
        assert {r.error.code for r in found if r.error} == {"deadline_exceeded"}
        assert all(r.took_ms >= 2_000 for r in found)
        assert len(rig.replies) == len(timed)
        assert not await store.exists(INTERACTIVE.due)


async def test_hot_questions_do_not_fill_the_worker(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    async with running(store_url, max_deferred=5_000) as rig:
        await rig.client.enqueue_many(jobs("other", "warm", 1))
        await rig.has(jobs("other", "warm", 1))
        await fill_up(rig, store)
        hot = [Job(task="echo", text=f"cold {n % COLD}", id=f"hot-{n}") for n in range(3_000)]
        await rig.client.enqueue_many(hot)
        again = [Job(task="other", text="warm 0", id=f"again-{n}") for n in range(100)]
        await rig.client.enqueue_many(again)
        await rig.has(again, 15.0)
        assert not {str(job.id) for job in hot} & set(rig.replies)
        rig.dead.dead = False
        await rig.has(hot)
        assert not rig.doubled
    assert set(Counter(rig.dead.answered).values()) == {1}


async def test_looks_are_few_however_many_wait(
    store: redis.asyncio.Redis, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferred, "MOST_LOOKED_AT", 10)
    async with running(store_url) as rig:
        await fill_up(rig, store)
        await eventually(lambda: _is_still(rig))
        before = rig.deferred()
        began = asyncio.get_running_loop().time()
        await eventually(lambda: rig.deferred() >= before + 30, 20)
        looks = (rig.deferred() - before) / 10
        took_s = asyncio.get_running_loop().time() - began
        assert looks <= 2 + took_s / deferred.LOOK_EVERY_S


async def _is_still(rig: Rig) -> bool:
    """The first rush is over: between two looks, nothing is moved."""
    before = rig.deferred()
    await asyncio.sleep(0.2)
    return rig.deferred() == before


async def backlog_is(store: redis.asyncio.Redis, count: int) -> bool:
    return await backlog(store, INTERACTIVE.deferred) >= count - 5


async def _total(store: redis.asyncio.Redis, count: int) -> bool:
    return await backlog(store) + await backlog(store, INTERACTIVE.deferred) == count
