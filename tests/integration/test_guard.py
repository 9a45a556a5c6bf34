"""The guard on the real server: what is wrong too often is not served, while there is evidence."""

from __future__ import annotations

import asyncio
import math
import random
import struct
from typing import Any, cast

import pytest
import redis.asyncio
from structlog.testing import capture_logs

from askonce_queue import names, queue_scripts
from askonce_queue.client import Client
from askonce_queue.job import CacheControl, Job
from askonce_queue.store import Store
from askonce_worker.config import WorkerConfig
from askonce_worker.observe.counters import Counters
from askonce_worker.pool.worker import Worker
from askonce_worker.resolver import Resolver
from askonce_worker.shadow import guard, report
from askonce_worker.shadow.guard import Guard
from askonce_worker.shadow.verdicts import VerdictReader, place
from askonce_worker.tasks import Task
from tests.support.queue_worker import QUICK
from tests.support.resolving import ShiftedClock, StepModel, Waiter, ask, make_task, resolver_on
from tests.support.waiting import eventually

FINE, BAD = (1000, 0), (1000, 200)
CREATED = (2, 9)
"""Where `created` stands in an entry."""


async def find(store: Store, task: str = "t", **bands: tuple[int, int]) -> None:
    """Count verdicts as workers do: checks, and how many of them differ, by age."""
    counters = Counters()
    for band, (checks, differ) in bands.items():
        counters.count(task, f"verify_agree:{band[1:]}:a", checks - differ)
        counters.count(task, f"verify_differ:{band[1:]}:a", differ)
    await counters.flush(store, store.tags[0])


async def forget(store: Store) -> None:
    """The evidence is too old to count."""
    index = names.windows("0")
    buckets = await store.send(index, "KEYS", names.window_prefix("0") + b"*")
    await store.send(index, "DEL", index, *buckets)


async def make_older(store: redis.asyncio.Redis, key: bytes, by_ms: float) -> None:
    """Have a stored answer be created earlier."""
    (created,) = struct.unpack("<d", cast("bytes", await store.getrange(key, *CREATED)))
    assert await store.setrange(key, CREATED[0], struct.pack("<d", created - by_ms))


def guarded(model: StepModel, name: str = "t") -> Task:
    return make_task(model, name, verify_share=0.5, max_disagreement=0.02)


def guard_of(store: Store, resolver: Resolver, *tasks: Task) -> Guard:
    return Guard(
        store,
        tasks,
        forget=resolver.memory.clear,
        counters=resolver.counters,
        rng=random.Random(1),
    )


async def test_older_answers_are_served_from_nowhere_until_the_evidence_is_gone(
    askonce_store: Store, store_url: str
) -> None:
    model, clock = StepModel("old"), ShiftedClock()
    task = guarded(model)
    async with resolver_on(store_url, clock=clock, stamp_bound_s=1e6) as resolver:
        watch = guard_of(askonce_store, resolver, task)
        await ask(resolver, task, "x")
        await find(askonce_store, _1m=FINE, _5m=BAD)
        with capture_logs() as logs:
            await watch.look()
            await watch.look()  # nothing new
        assert [(line["log_level"], line["max_age_s"]) for line in logs] == [("warning", 60.0)]
        assert task.policy.max_age_s == 60.0
        assert (await ask(resolver, task, "x")).source == "store"  # it is young

        clock.shift_s = 50.0  # as this process sees it; the store's clock is the server's
        assert (await ask(resolver, task, "x")).source == "memory"
        clock.shift_s = 70.0
        assert (await ask(resolver, task, "x")).source == "store"  # not from memory

        await forget(askonce_store)
        with capture_logs() as logs:
            await watch.look()
        assert [line["log_level"] for line in logs] == ["warning"]
        assert task.policy.max_age_s == math.inf
        found = resolver.counters.since_start()
        assert (found["t", "limits_set"], found["t", "limits_lifted"]) == (1, 1)


async def test_the_store_serves_nothing_older_either(
    store: redis.asyncio.Redis, askonce_store: Store, store_url: str
) -> None:
    model = StepModel("old")
    task = guarded(model)
    async with resolver_on(store_url) as resolver:
        await ask(resolver, task, "x")
        key = names.answer_prefix("0") + Waiter(task, "x").key
        await find(askonce_store, _1m=FINE, _5m=BAD)
        await guard_of(askonce_store, resolver, task).look()
        await make_older(store, key, 61_000)
        model.label = "new"
        patient = Waiter(task, "x", control=task.policy.control(CacheControl(max_age_s=3600)))
        resolver.resolve([patient])
        outcome = await patient.outcome()
        assert (outcome.label, outcome.source) == ("new", "model")
        assert 0 < await store.pttl(key) <= 60_000  # what is written lasts no longer
        await make_older(store, key, 61_000)
        resolver.memory.clear()
        model.label = "newer"
        assert (await ask(resolver, task, "x")).label == "newer"


async def test_without_an_age_that_is_fine_the_cache_is_off(
    askonce_store: Store, store_url: str
) -> None:
    model = StepModel("a")
    task, other = guarded(model), guarded(model, "other")
    async with resolver_on(store_url) as resolver:
        watch = guard_of(askonce_store, resolver, task, other)
        await find(askonce_store, _1m=BAD, _24h=FINE)
        with capture_logs() as logs:
            await watch.look()
        assert "the cache of the task is off" in logs[0]["event"]
        assert (task.cacheable, other.cacheable) == (False, True)
        assert resolver.counters.since_start()["t", "limits_off"] == 1
        await forget(askonce_store)
        await watch.look()
        assert task.cacheable


async def test_a_store_that_is_away_changes_no_limit(askonce_store: Store, store_url: str) -> None:
    task = guarded(StepModel("a"))
    async with resolver_on(store_url) as resolver:
        await find(askonce_store, _1m=FINE, _5m=BAD)
        await guard_of(askonce_store, resolver, task).look()
        gone = Store("redis://127.0.0.1:1/0")
        running = asyncio.create_task(guard_of(gone, resolver, task).run())
        with capture_logs() as logs:
            await eventually(lambda: logs)
        running.cancel()
        await gone.aclose()
        assert task.policy.max_age_s == 60.0


async def test_labels_survive_the_way_through_the_store(askonce_store: Store) -> None:
    counters = Counters()
    counters.count("t|u", f"verify_agree:{place(1, 'a|b:c', ['a|b:c'])}", 4)
    await counters.flush(askonce_store, "0")
    verdicts = await VerdictReader(askonce_store).read()
    assert {task: list(labels) for task, labels in verdicts.items()} == {"t|u": ["a|b:c"]}


@pytest.mark.parametrize(("hours_ago", "limit_s"), [(0, 60.0), (23, 60.0), (26, math.inf)])
async def test_evidence_counts_for_a_day(
    askonce_store: Store, store_url: str, hours_ago: int, limit_s: float
) -> None:
    now_s, _ = await askonce_store.send(names.META, "TIME")
    bad = {"t|verify_agree:5m:": 500, "t|verify_differ:5m:": 500}
    at_ms = (int(now_s) - hours_ago * 3600) * 1000
    await askonce_store.run(queue_scripts.count("0", bad, at_ms=at_ms))
    task = guarded(StepModel("a"))
    async with resolver_on(store_url) as resolver:
        await guard_of(askonce_store, resolver, task).look()
        assert task.policy.max_age_s == limit_s


async def test_a_worker_whose_model_changes_its_mind(
    askonce_store: Store, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hits are checked and corrected, the fleet hears of it, and the task's cache goes off."""
    monkeypatch.setattr(guard, "EVERY_S", 0.05)
    model = StepModel("old")
    task = make_task(model, verify_share=1.0, max_disagreement=0.02)
    worker = Worker(store_url, {"t": task}, WorkerConfig(**QUICK))
    texts = [str(i) for i in range(40)]
    reader = VerdictReader(askonce_store)
    async with Client(store_url) as client:

        async def labels() -> set[tuple[str | None, str | None]]:
            replies = [
                r async for r in client.ask_many([Job(task="t", text=text) for text in texts])
            ]
            return {(r.answer.label if r.answer else None, r.source) for r in replies}

        async with worker.running():
            assert await labels() == {("old", "model")}
            model.label = "new"
            assert await labels() == {("old", "memory")}
            await eventually(lambda: worker.counters.total("verify_replaced") == len(texts))
            await eventually(lambda: worker.counters.total("flights_filled") == 2 * len(texts))
            await eventually(lambda: not task.cacheable)
            calls = model.total
            assert calls == 2 * len(texts)
            assert await labels() == {("new", "model")}  # each by a call of its own
            assert model.total == calls + len(texts)

            async def all_known() -> bool:
                (shown,) = (await report.read_checks(reader, {"t": task.policy})).values()
                return (shown.age_limit_s, shown.by_age[0].differ) == (0.0, len(texts))

            await eventually(all_known)
            await forget(askonce_store)
            await eventually(lambda: task.cacheable)
            assert await labels() == {("new", "store")}


async def test_a_worker_drains_without_waiting_for_its_checks(
    askonce_store: Store, store_url: str
) -> None:
    del askonce_store  # it empties the server first
    model = StepModel("a")
    task = make_task(model, verify_share=1.0)
    patient: dict[str, Any] = {**QUICK, "drain_s": 3600.0}
    async with Client(store_url) as client:
        async with Worker(store_url, {"t": task}, WorkerConfig(**patient)).running():
            assert (await client.ask(Job(task="t", text="x"))).source == "model"
            model.close()
            assert (await client.ask(Job(task="t", text="x"))).source == "memory"
            await eventually(lambda: model.in_flight == 1)
        assert (model.in_flight, task.backend.in_flight) == (0, 0)
