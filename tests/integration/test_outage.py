"""A mixed load while the model dies, flaps and comes back.

Nothing is lost, hits are served at once, and the dead model is hardly asked. Real workers, each
with a breaker of its own, and the stand-in server over HTTP.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from askonce_loadtest.model_server import Behaviour, Fault, ModelServer
from askonce_queue import Client, Job, names
from askonce_queue.queue_scripts import Lane
from askonce_queue.reply import Reply
from askonce_queue.store import Store
from askonce_worker.build import build_tasks, open_models
from askonce_worker.cache.invalidation import invalidate
from askonce_worker.cache.tags import task_tag
from askonce_worker.config import load_settings
from askonce_worker.pool.worker import Worker
from tests.support.queue_worker import BULK, INTERACTIVE, backlog
from tests.support.waiting import eventually

WORKERS = 3
SLOTS = 8
OPEN_S, LONGEST_S = 0.2, 0.8
FAILURES = 8
ATTEMPTS = 6
TIMEOUT_S = 1.5
ALWAYS: tuple[Fault, ...] = ("status_500",) * 100
CONFIG = """
[redis]
url = "{url}"
[worker]
max_held = 200
max_waiting = 40
batch = 50
remember_exhausted_s = 0.2
max_attempts = {attempts}
[models.m]
kind = "openai"
base_url = "http://127.0.0.1:{port}/v1"
model = "stand-in-1"
timeout_s = {timeout_s}
max_concurrency = {slots}
[models.m.breaker]
failures = {failures}
open_s = {open_s}
longest_open_s = {longest_s}
[tasks.plain]
model = "m"
labels = ["a", "b"]
[tasks.lenient]
model = "m"
labels = ["a", "b", "c"]
cache = {{ttl = "1s", memory_ttl = "1s", jitter = 0.0, stale_if_error = "1h"}}
"""


def calls_bound(elapsed_s: float, deaths: int = 1) -> float:
    """The formula of docs/MODELS.md: calls that all workers make to a model that answers none."""
    begun = SLOTS + FAILURES * ATTEMPTS
    probes = 1 + 2 + 2 * elapsed_s / LONGEST_S  # log2(LONGEST_S / OPEN_S) = 2
    return WORKERS * deaths * (begun + probes)


class Rig:
    """Workers, a client, and a model that can be taken away."""

    def __init__(
        self, port: int, client: Client, workers: list[Worker], stack: AsyncExitStack
    ) -> None:
        self.client = client
        self.workers = workers
        self._port = port
        self._stack = stack
        self._running: AsyncExitStack | None = None
        self.replies: dict[str, Reply] = {}
        self.again: list[str] = []

    async def serve(
        self, behaviour: Behaviour, script: Mapping[str, Sequence[Fault]] | None = None
    ) -> ModelServer:
        """The model is there, and behaves so."""
        await self.refuse()
        self._running = AsyncExitStack()
        self._stack.push_async_callback(self._running.aclose)
        server = ModelServer(behaviour, port=self._port, script=script)
        return await self._running.enter_async_context(server)

    async def refuse(self) -> None:
        """Nobody listens where the model was."""
        if self._running is not None:
            await self._running.aclose()

    async def read(self) -> None:
        async for reply in self.client.replies():
            if reply.id in self.replies:
                self.again.append(reply.id)
            self.replies[reply.id] = reply

    async def answered(self, ids: list[str], timeout_s: float = 30.0) -> list[Reply]:
        """The replies to jobs, once all are there; each with an answer."""
        await eventually(lambda: all(i in self.replies for i in ids), timeout_s)
        found = [self.replies[i] for i in ids]
        assert all(reply.answer is not None for reply in found), found
        return found

    def circuits(self) -> list[str]:
        return [worker.vitals().models["m"].circuit for worker in self.workers]


@asynccontextmanager
async def running(url: str, folder: Path, workers: int = WORKERS) -> AsyncGenerator[Rig]:
    async with ModelServer() as server:
        port = server.port  # nobody else's, and free from here on
    path = folder / "askonce.toml"
    path.write_text(
        CONFIG.format(
            url=url,
            port=port,
            timeout_s=TIMEOUT_S,
            slots=SLOTS,
            failures=FAILURES,
            attempts=ATTEMPTS,
            open_s=OPEN_S,
            longest_s=LONGEST_S,
        )
    )
    settings = load_settings(path)
    async with AsyncExitStack() as stack:
        served: list[Worker] = []
        for _ in range(workers):
            backends = await stack.enter_async_context(open_models(settings))
            worker = Worker(url, build_tasks(settings, backends), settings.worker)
            await stack.enter_async_context(worker.running())
            served.append(worker)
        client = await stack.enter_async_context(Client(url))
        rig = Rig(port, client, served, stack)
        reading = asyncio.create_task(rig.read())
        try:
            yield rig
        finally:
            reading.cancel()


def jobs(kind: str, count: int, task: str = "plain") -> list[Job]:
    return [Job(task=task, text=f"{kind} {n}", id=f"{kind}-{n}") for n in range(count)]


def again(kind: str, part: str, count: int, task: str = "plain") -> list[Job]:
    """Jobs that ask what `jobs` asked."""
    return [Job(task=task, text=f"{kind} {n}", id=f"{part}-{n}") for n in range(count)]


async def send(rig: Rig, work: list[Job], lane: str = "interactive") -> list[str]:
    await rig.client.enqueue_many(work, lane=lane)
    return [str(job.id) for job in work]


async def test_dead_then_flapping_then_healthy(
    store: redis.asyncio.Redis, store_url: str, tmp_path: Path
) -> None:
    async with running(store_url, tmp_path) as rig:
        await rig.serve(Behaviour())
        await rig.answered(await send(rig, jobs("warm", 50)))
        await rig.answered(await send(rig, jobs("old", 20, "lenient")))

        # Dead: nobody listens, then nothing answers.
        await rig.refuse()
        waiting = await send(rig, jobs("cold", 150))
        waiting += await send(rig, jobs("bulk", 50), lane="bulk")
        await eventually(lambda: "open" in rig.circuits())
        stalled = await rig.serve(Behaviour(stall=1.0))
        began = time.monotonic()
        for part in range(5):
            found = await rig.answered(await send(rig, again("warm", f"hit{part}", 50)))
            assert {reply.source for reply in found} <= {"memory", "store", "coalesced"}
            await asyncio.sleep(0.4)  # an outage takes its time
        found = await rig.answered(await send(rig, again("old", "stale", 20, "lenient")))
        assert {reply.source for reply in found} == {"stale"}
        assert not set(waiting) & set(rig.replies)
        assert stalled.total_calls <= calls_bound(time.monotonic() - began)
        assert await backlog(store, INTERACTIVE.deferred) > 0

        # Flapping: good and bad spells, and a share of failures in the good ones.
        rng = random.Random(5)
        for spell in range(6):
            fails = 1.0 if spell % 2 else rng.uniform(0.0, 0.15)
            await rig.serve(Behaviour(seed=spell, status_500=fails))
            await asyncio.sleep(0.4)
            await rig.answered(await send(rig, again("warm", f"flap{spell}", 20)))

        # Healthy: all that waited is answered, once each.
        await rig.serve(Behaviour())
        await rig.answered(waiting)
        await rig.answered(await send(rig, jobs("after", 50)))
        assert not rig.again
        await eventually(lambda: _clean(store))


async def _clean(store: redis.asyncio.Redis) -> bool:
    """Nothing is left but answers and what knows its end."""
    lanes: list[Lane] = [lane for one in (INTERACTIVE, BULK) for lane in (one, one.deferred)]
    left = [await backlog(store, lane) for lane in lanes]
    hashes: Any = [await store.hlen(key) for key in (names.leases("0"), names.tries("0"))]
    return not any(left) and not any(hashes)


async def test_a_question_that_always_fails_gets_its_error_beside_others(
    store_url: str, tmp_path: Path
) -> None:
    async with running(store_url, tmp_path, workers=1) as rig:
        server = await rig.serve(Behaviour(), {"poison 0": ALWAYS})
        ids = await send(rig, jobs("poison", 1))
        await rig.answered(await send(rig, jobs("fine", 100)))
        await eventually(lambda: set(ids) <= set(rig.replies), 30)
        error = rig.replies["poison-0"].error
        assert error is not None
        assert error.code == "unavailable"
        assert server.calls["poison 0"] == ATTEMPTS
        assert rig.circuits() == ["closed"]


async def test_a_lone_job_outlives_a_model_that_nobody_can_reach(
    store_url: str, tmp_path: Path
) -> None:
    async with running(store_url, tmp_path, workers=1) as rig:
        ids = await send(rig, jobs("lone", 1))
        await eventually(lambda: rig.workers[0].vitals().models["m"].probes >= 3)
        assert not rig.replies
        await rig.serve(Behaviour())
        await rig.answered(ids)


@pytest.mark.parametrize("poison", [1, 2])
async def test_a_poisonous_probe_does_not_keep_the_breaker_open(
    store_url: str, tmp_path: Path, poison: int
) -> None:
    async with running(store_url, tmp_path, workers=1) as rig:
        await rig.refuse()
        bad = await send(rig, jobs("poison", poison))
        await eventually(lambda: rig.circuits() != ["closed"])
        good = await send(rig, jobs("fine", 10))
        await rig.serve(Behaviour(), {f"poison {n}": ALWAYS for n in range(poison)})
        await rig.answered(good)
        await eventually(lambda: set(bad) <= set(rig.replies), 30)
        codes = Counter(error.code for i in bad if (error := rig.replies[i].error))
        assert codes == {"unavailable": poison}


async def test_what_was_invalidated_stands_in_for_nothing(store_url: str, tmp_path: Path) -> None:
    async with running(store_url, tmp_path, workers=1) as rig:
        await rig.serve(Behaviour())
        await rig.answered(await send(rig, jobs("old", 4, "lenient")))
        await rig.refuse()
        await send(rig, jobs("cold", 3))
        await eventually(lambda: rig.circuits() == ["open"])
        await asyncio.sleep(1.0)  # the TTL of what is lenient
        store = Store(store_url)
        done = await invalidate(store, [task_tag("lenient")])
        await store.aclose()
        assert done.complete
        waiting = await send(rig, again("old", "late", 4, "lenient"))
        probes = rig.workers[0].vitals().models["m"].probes
        await eventually(lambda: rig.workers[0].vitals().models["m"].probes > probes + 1)
        assert not set(waiting) & set(rig.replies)
        await rig.serve(Behaviour())
        found = await rig.answered(waiting)
        assert "stale" not in {reply.source for reply in found}


async def test_a_429_with_retry_after_holds_all_calls_back(store_url: str, tmp_path: Path) -> None:
    async with running(store_url, tmp_path, workers=1) as rig:
        server = await rig.serve(Behaviour(retry_after_s=1.5), {"first 0": ["status_429"]})
        ids = await send(rig, jobs("first", 1))
        await eventually(lambda: server.total_calls == 1)
        began = time.monotonic()
        ids += await send(rig, jobs("other", 20))
        await eventually(lambda: server.total_calls > 1)
        assert time.monotonic() - began > 1.2
        await rig.answered(ids)
        assert rig.circuits() == ["closed"]
