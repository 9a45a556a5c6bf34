"""Limits that workers share, end to end: eight workers, a real store, a real model server.

What a whole minute sees is in `test_quota_fleet.py`, in virtual time.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import redis.asyncio

from askonce_loadtest.model_server import Behaviour, ModelServer
from askonce_queue import Client, Job, names
from askonce_queue.errors import ConfigError
from askonce_queue.job import CacheControl
from askonce_queue.scripts import send
from askonce_worker import AnswerCache
from askonce_worker.build import build_tasks, open_models
from askonce_worker.config import LimitsConfig, load_settings
from askonce_worker.pool.worker import Worker
from askonce_worker.quota import VALID_S, rates_of
from tests.support.queue_worker import EchoModel, echo_tasks, echo_worker
from tests.support.resolving import LIMIT_S
from tests.support.waiting import eventually
from tests.support.worker_fleet import Fleet

WORKERS = 8
LATE_S = 0.3
"""How much later a call may arrive at the server than it began, on a busy machine."""

pytestmark = pytest.mark.usefixtures("store")


class Arrivals(ModelServer):
    """A model server that notes when calls arrive."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.at: list[float] = []
        super().__init__(behaviour, on_call=self._note)

    def _note(self, *_: object) -> None:
        self.at.append(time.monotonic())

    def most_within(self, seconds: float) -> int:
        """The most calls that arrived in any such time."""
        first = most = 0
        for number, at in enumerate(self.at):
            while self.at[first] < at - seconds:
                first += 1
            most = max(most, number - first + 1)
        return most


@asynccontextmanager
async def eight_workers(
    url: str, folder: Path, server: ModelServer, limits: str
) -> AsyncGenerator[list[Worker]]:
    """Workers as the command starts them, each with its own connections to store and model."""
    path = folder / "askonce.toml"
    path.write_text(f"""
[models.gpt]
kind = "openai"
base_url = "{server.base_url}"
model = "stand-in-1"
[models.gpt.limits]
{limits}
[tasks.tone]
model = "gpt"
labels = ["good", "bad"]
[worker]
batch = 20
lease_ttl_s = 2
lease_renew_s = 0.6
""")
    settings = load_settings(path)
    async with AsyncExitStack() as stack:
        workers: list[Worker] = []
        for _ in range(WORKERS):
            backends = await stack.enter_async_context(open_models(settings))
            worker = Worker(url, build_tasks(settings, backends), settings.worker)
            workers.append(await stack.enter_async_context(worker.running()))
        yield workers


async def enqueue(client: Client, count: int, task: str = "tone", text: str = "text") -> None:
    await client.enqueue_many(
        [Job(task=task, text=f"{text} {n:04}", id=f"{text} {n}") for n in range(count)]
    )


async def test_no_more_calls_at_once_than_the_limit(
    store_url: str, store: redis.asyncio.Redis, tmp_path: Path
) -> None:
    async with (
        Arrivals(Behaviour(latency_ms=40)) as server,
        Client(store_url) as client,
        eight_workers(store_url, tmp_path, server, "concurrency = 10") as workers,
    ):
        await enqueue(client, 250)
        replies = client.replies()
        for _ in range(250):
            assert (await anext(replies)).answer is not None
        assert server.total_calls == 250
        assert server.max_in_flight == 10
        assert sum(worker.counters.total("calls_fill") > 0 for worker in workers) >= WORKERS // 2
    key = (names.quota_prefix("0") + b"gpt").decode()
    assert await store.hkeys(key) == [b"."]  # all has been given back


@pytest.mark.parametrize("kind", ["requests", "tokens"])
async def test_rates_hold_over_eight_workers(store_url: str, tmp_path: Path, kind: str) -> None:
    """Some 40 calls a second, in any part of the time; those that fail are tried again.

    That they get no less either is for virtual time: who has no processor for half a second loses
    what it was granted.
    """
    limit = 2400 if kind == "requests" else 14_400
    failing = 0.1 if kind == "requests" else 0.0
    async with (
        Arrivals(Behaviour(latency_ms=20, status_500=failing)) as server,
        Client(store_url) as client,
        eight_workers(store_url, tmp_path, server, f"{kind}_per_minute = {limit}") as workers,
    ):
        await enqueue(client, 260)
        await eventually(lambda: len(server.at) >= 200, timeout_s=60)
        counted = Counter[str]()
        in_flight = server.in_flight
        for worker in workers:
            for (_, name), count in worker.counters.since_start().items():
                counted[name] += count
    if kind == "tokens":  # all calls have as many
        answered = counted["model_calls"] - in_flight
        limit = round(limit * answered / (counted["input_tokens"] + counted["output_tokens"]))
    rates = rates_of(LimitsConfig(requests_per_minute=limit))
    for seconds in (0.5, 1.0, 2.0, 4.0):
        passed_s = seconds + VALID_S + LATE_S
        assert server.most_within(seconds) <= rates.most_calls + rates.calls_per_s * passed_s


async def test_scarce_requests_hold_and_are_full_of_questions(
    store_url: str, tmp_path: Path
) -> None:
    """Two workers and a server that enforces the limit, with little of its minute left."""
    limit, jobs, size = 600, 2000, 32
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            ModelServer(Behaviour(latency_ms=30, requests_per_minute=limit))
        )
        bucket = server._limits.requests  # pyright: ignore[reportPrivateUsage]
        assert bucket is not None
        bucket.take(limit - 15)
        path = tmp_path / "askonce.toml"
        path.write_text(f"""
[models.guard]
kind = "predict"
base_url = "{server.root_url}"
model = "m"
batch = {{ size = {size}, wait_ms = 5 }}
limits = {{ requests_per_minute = {limit} }}
[tasks.tone]
model = "guard"
""")
        settings = load_settings(path)
        workers: list[Worker] = []
        for _ in range(2):
            backends = await stack.enter_async_context(open_models(settings))
            worker = Worker(store_url, build_tasks(settings, backends), settings.worker)
            workers.append(await stack.enter_async_context(worker.running()))
        client = await stack.enter_async_context(Client(store_url))
        began = time.monotonic()
        await enqueue(client, jobs)
        replies = client.replies()
        for _ in range(jobs):
            assert (await anext(replies)).answer is not None
        passed_s = time.monotonic() - began + VALID_S + LATE_S
        rates = rates_of(LimitsConfig(requests_per_minute=limit))
        assert server.limited == 0
        assert server.total_calls == jobs
        assert server.total_requests <= rates.most_calls + rates.calls_per_s * passed_s
        assert server.total_calls > server.total_requests * size / 2
        requests = sum(worker.counters.total("model_requests") for worker in workers)
        assert requests == server.total_requests


async def test_a_killed_workers_slots_come_back(store_url: str, tmp_path: Path) -> None:
    """And no sooner: its calls may still be on their way."""
    limits = {"concurrency": 2}
    async with Fleet(store_url, tmp_path) as fleet, Client(store_url) as client:
        killed = await fleet.start(limits=limits)
        await enqueue(client, 2, task="echo", text="hold")
        await fleet.until_called(2)
        await fleet.start(limits=limits)
        await enqueue(client, 3, task="echo", text="hold more")
        await asyncio.sleep(0.3)  # nothing tells that nothing happens
        assert len(fleet.calls()) == 2
        os.kill(killed.pid, signal.SIGKILL)
        await fleet.until_called(4)
        assert len(fleet.calls()) == 4
        fleet.release()
        replies = client.replies()
        for _ in range(5):
            assert (await anext(replies)).answer is not None


async def test_retries_and_bypasses_wait_for_their_turn(store_url: str) -> None:
    """Jobs that share nothing take no lease, and are calls all the same."""
    model = EchoModel()
    limits = LimitsConfig(requests_per_minute=2)
    worker = echo_worker(store_url, model, shared=limits)
    async with Client(store_url) as client, worker.running():
        never = CacheControl(cacheable=False)
        jobs = [Job(task="echo", text=f"{n}", cache=never) for n in range(3)]
        await client.enqueue_many(jobs)
        await eventually(lambda: len(model.asked) == 1)
        await eventually(lambda: worker.vitals().quotas["echo"].waited_s > 0)
        assert len(model.asked) == 1
        assert worker.vitals().quotas["echo"].calls == 1


async def test_checks_of_hits_wait_for_their_turn(store_url: str) -> None:
    model = EchoModel()
    tasks = echo_tasks(model, shared=LimitsConfig(requests_per_minute=1))
    backend = tasks["echo"].backend
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(
            Worker(store_url, tasks, echo_worker(store_url).config).running()
        )
        verifier = worker.resolver.verifier
        assert not verifier.reserve(backend)
        await eventually(lambda: backend.free_slots > 0)  # it has been asked for
        assert verifier.reserve(backend)
        backend.in_flight -= 1


async def test_hits_need_no_quota(store_url: str, store: redis.asyncio.Redis) -> None:
    async with Client(store_url) as client:
        async with echo_worker(store_url).running():
            assert (await client.ask(Job(task="echo", text="a"))).source == "model"
        model = EchoModel()
        limited = echo_worker(store_url, model, shared=LimitsConfig(requests_per_minute=1))
        async with limited.running():
            for _ in range(3):
                assert (await client.ask(Job(task="echo", text="a"))).source in {"store", "memory"}
        assert model.asked == []
        assert not await send(store, "EXISTS", names.quotas("0"))


@pytest.fixture
async def caches(store_url: str) -> AsyncIterator[list[AnswerCache]]:
    async with (
        AnswerCache(store_url, concurrency=2, limits_of="api") as one,
        AnswerCache(store_url, concurrency=2, limits_of="api") as two,
    ):
        yield [one, two]


async def test_the_library_keeps_limits(caches: list[AnswerCache]) -> None:
    running = most = 0

    async def call() -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        return "done"

    asked = [caches[n % 2].get_or_call("it", n, call) for n in range(30)]
    results = await asyncio.wait_for(asyncio.gather(*asked), LIMIT_S)
    assert {result.value for result in results} == {"done"}
    assert most == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"concurrency": 0}, "concurrency: expected at least 1, got 0"),
        ({"requests_per_minute": -1}, "requests_per_minute: expected at least 1, got -1"),
        ({"limits_of": "a\nb"}, "limits_of: expected 1 to "),
    ],
)
def test_the_library_refuses_what_is_no_limit(options: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AnswerCache("redis://127.0.0.1:1/0", **options)  # type: ignore[arg-type]
