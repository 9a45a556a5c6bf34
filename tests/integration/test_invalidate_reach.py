"""How far and how fast: every worker process's memory, through restarts, pauses and a failover."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
import redis.asyncio
from redis.exceptions import RedisError

from askonce_loadtest.servers.replicated import Replicated
from askonce_queue import Client, Job
from askonce_queue.embedded import EmbeddedStore
from askonce_queue.reply import Reply
from askonce_queue.store import Store
from askonce_worker.cache.invalidation import Invalidation, invalidate
from tests.support.embedded_server import server_pid
from tests.support.resolving import StepModel, ask, make_task, resolver_on
from tests.support.waiting import eventually
from tests.support.worker_fleet import Fleet

BOUND_S = 0.5
MARGIN_S = 0.1
"""Answers are at least this much older than the invalidation: their age tells which they are."""
POOLS = ("a", "b", "c")
"""A worker each, so that it is known who answers."""


async def invalidated(
    url: str, tags: Sequence[str] = (), *, globs: Sequence[str] = (), keys: Sequence[bytes] = ()
) -> Invalidation:
    store = Store(url)
    try:
        done = await invalidate(store, tags, globs=globs, keys=keys)
    finally:
        await store.aclose()
    assert done.complete, done.failures
    return done


async def ask_pool(client: Client) -> Reply:
    reply = await client.ask(Job(task="echo", text="x", tags=("red",)))
    assert reply.error is None
    return reply


@pytest.mark.parametrize("how", ["tag", "glob"])
async def test_it_reaches_every_worker_process_within_the_bound(
    store: redis.asyncio.Redis, store_url: str, tmp_path: Path, how: str
) -> None:
    """An ask that began later than `stamp_bound_s` after it gets no old answer, from nobody."""
    del store
    async with Fleet(store_url, tmp_path) as fleet:
        await asyncio.gather(*[fleet.start(pool=one, stamp_bound_s=BOUND_S) for one in POOLS])
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(Client(store_url, pool=p)) for p in POOLS]
            for client in clients:
                await ask_pool(client)
                assert (await ask_pool(client)).source == "memory"
            built_before = time.monotonic()
            await eventually(lambda: time.monotonic() - built_before > MARGIN_S)
            tags, globs = (["red"], []) if how == "tag" else ([], ["r*d"])
            await invalidated(store_url, tags, globs=globs)
            since = time.monotonic()

            async def last_old_s(client: Client) -> float:
                """How long after it an ask began that got an old answer, at the latest."""
                latest_s = 0.0
                while True:
                    asked_at = time.monotonic()
                    reply = await ask_pool(client)
                    if reply.age_s < time.monotonic() - since + MARGIN_S:
                        return latest_s
                    latest_s = asked_at - since

            late_s = await asyncio.gather(*map(last_old_s, clients))
        assert max(late_s) <= BOUND_S
        assert [text for _, text in fleet.calls()] == ["x", "x"]


async def test_a_worker_that_was_paused_serves_nothing_old_when_it_wakes(
    store: redis.asyncio.Redis, store_url: str, tmp_path: Path
) -> None:
    """It has not looked for longer than the bound, and knows that."""
    del store
    async with Fleet(store_url, tmp_path) as fleet, Client(store_url) as client:
        worker = await fleet.start(stamp_bound_s=BOUND_S, heartbeat_ttl_s=30)
        await ask_pool(client)
        assert (await ask_pool(client)).source == "memory"
        worker.send_signal(signal.SIGSTOP)
        await invalidated(store_url, globs=["red"])
        since = time.monotonic()
        await eventually(lambda: time.monotonic() - since > BOUND_S)
        waiting = asyncio.create_task(ask_pool(client))
        await asyncio.sleep(0.05)
        worker.send_signal(signal.SIGCONT)
        assert (await waiting).source == "model"


async def test_invalidate_then_restart_everything(tmp_path: Path, state_folder: Path) -> None:
    """Workers and store are killed: the log has the invalidation."""
    embedded = EmbeddedStore(state_folder, maxmemory="64mb")
    async with embedded, Fleet(embedded.url, tmp_path) as fleet:
        worker = await fleet.start()
        async with Client(embedded.url) as client:
            await ask_pool(client)
            await client.ask(Job(task="echo", text="kept"))
        await invalidated(embedded.url, globs=["r?d"])
        worker.kill()
        with suppress(RedisError, OSError):
            os.kill(server_pid(embedded.url), signal.SIGKILL)
        await asyncio.to_thread(embedded.revive)
        await fleet.start()
        async with Client(embedded.url) as client:
            assert (await ask_pool(client)).source == "model"
            assert (await client.ask(Job(task="echo", text="kept"))).source == "store"


async def test_a_failover_brings_nothing_back(tmp_path: Path) -> None:
    """What was confirmed is at the replica; who leads a flight over it is fenced there, too."""
    pair = Replicated(tmp_path)
    try:
        await pair.start()
        old, new = pair.primary, pair.replica
        model = StepModel("old")
        task = make_task(model)
        texts = ("by tag", "by key", "by glob", "kept")
        async with resolver_on(old.url) as resolver:
            for text in texts:
                await ask(resolver, task, text, tags=[text])
        await pair.wait_in_sync()
        key = task.key_maker.text_key("by key")
        await invalidated(old.url, ["by tag"], globs=["*lob"], keys=[key])
        old.kill()
        await new.command("REPLICAOF", "NO", "ONE")
        model.label = "new"
        async with resolver_on(new.url) as resolver:
            found = {text: (await ask(resolver, task, text)).label for text in texts}
        assert found == {"by tag": "new", "by key": "new", "by glob": "new", "kept": "old"}
    finally:
        pair.close()
