"""Cache control of a job, from the producer to the worker and back."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import redis.asyncio

from askonce_queue import CacheControl, Client, InvalidJob, Job
from askonce_queue.reply import Reply
from askonce_worker import AnswerCache
from askonce_worker.cache.invalidation import invalidate
from askonce_worker.cache.policy import Policy
from tests.support.queue_worker import EchoModel, echo_worker
from tests.support.waiting import eventually


async def ask(client: Client, **job: Any) -> Reply:
    return await client.ask(Job(task="echo", text="hi", **job))


async def test_directives_reach_the_worker(store: redis.asyncio.Redis, store_url: str) -> None:
    del store
    model = EchoModel()
    async with echo_worker(store_url, model).running(), Client(store_url) as client:
        missed = await ask(client, cache=CacheControl(only_if_cached=True))
        assert missed.error is not None
        assert missed.error.code == "not_cached"
        assert (await ask(client)).source == "model"
        for control, source in (
            (CacheControl(only_if_cached=True), "memory"),
            (CacheControl(max_age_s=3600), "memory"),
            (CacheControl(no_cache=True), "model"),
            (CacheControl(namespace="mine"), "model"),
            (CacheControl(namespace="mine"), "memory"),
            (CacheControl(cacheable=False), "model"),
            (None, "memory"),
        ):
            assert (await ask(client, cache=control)).source == source
        sampled = {"params": {"temperature": 0.9}}
        for _ in range(2):
            assert (await ask(client, **sampled)).source == "model"
    assert Counter(model.asked) == {"hi": 6}


async def test_a_task_that_is_not_cached_unless_the_job_says_so(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    del store
    worker = echo_worker(store_url, EchoModel(), policy=Policy(cacheable=False))
    async with worker.running(), Client(store_url) as client:
        for _ in range(2):
            assert (await ask(client)).source == "model"
        said = CacheControl(cacheable=True)
        assert (await ask(client, cache=said)).source == "model"
        assert (await ask(client, cache=said)).source == "memory"


async def test_what_is_built_on_a_source_goes_with_it(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    del store
    model = EchoModel()
    worker = echo_worker(store_url, model)
    async with worker.running(), Client(store_url) as client:
        await ask(client, sources=("policy",))
        assert (await ask(client)).source == "memory"
        assert (await invalidate(worker.resolver.stamps._store, ["source:policy"])).complete

        async def gone() -> bool:
            return (await ask(client)).source == "model"

        await eventually(gone)


async def test_bad_directives_are_refused_at_once(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    del store
    async with Client(store_url) as client:
        with pytest.raises(InvalidJob, match=r"cache\.max_age_s"):
            await client.enqueue(Job(task="echo", text="hi", cache=CacheControl(max_age_s=-1)))


async def test_the_library_takes_directives_too(store: redis.asyncio.Redis, store_url: str) -> None:
    del store
    calls = 0

    async def call() -> int:
        nonlocal calls
        calls += 1
        return calls

    async with AnswerCache(store_url) as cache:
        assert (await cache.get_or_call("f", 1, call)).value == 1
        anew = await cache.get_or_call("f", 1, call, control=CacheControl(no_cache=True))
        assert (anew.value, anew.source) == (2, "model")
        assert (await cache.get_or_call("f", 1, call)).value == 2
        apart = await cache.get_or_call("f", 1, call, control=CacheControl(namespace="a"))
        assert apart.value == 3
        alone = await cache.get_or_call("f", 1, call, control=CacheControl(cacheable=False))
        assert alone.value == 4
        assert (await cache.get_or_call("f", 1, call)).value == 2
