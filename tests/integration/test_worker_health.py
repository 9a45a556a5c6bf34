"""The health of a worker in this process, on a real server that refuses it one thing or all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import msgspec
import pytest

from askonce_queue import Client, Job
from askonce_queue.connections import connect
from askonce_queue.embedded import EmbeddedStore
from askonce_queue.store_config import StoreConfig
from askonce_worker.config_listen import ListenAddress
from askonce_worker.observe.observer import observed
from askonce_worker.pool.worker import Worker
from tests.support.queue_worker import EchoModel, echo_worker
from tests.support.waiting import eventually

ANY_PORT = ListenAddress("127.0.0.1", 0)


class Probe:
    """Asks a worker's port."""

    def __init__(self, session: aiohttp.ClientSession, address: ListenAddress) -> None:
        self._session = session
        self._url = f"http://{address}"

    async def reasons(self, path: str) -> list[str]:
        """Why it is not so; nothing when it is."""
        async with self._session.get(f"{self._url}/{path}") as response:
            said = msgspec.json.decode(await response.read())
            assert response.status == (503 if said["reasons"] else 200)
            return cast("list[str]", said["reasons"])

    async def live(self) -> bool:
        return not await self.reasons("livez")

    async def ready(self) -> bool:
        return not await self.reasons("readyz")

    async def metrics(self) -> str:
        async with self._session.get(f"{self._url}/metrics") as response:
            return await response.text()


@asynccontextmanager
async def watched(worker: Worker, store: StoreConfig) -> AsyncGenerator[Probe]:
    """A worker that is to be run in the block, and what its port says."""
    async with (
        observed(
            ANY_PORT,
            vitals=worker.vitals,
            counters=worker.counters,
            store=store,
            config=worker.config,
            models={"echo": "echo"},
        ) as at,
        aiohttp.ClientSession() as session,
    ):
        yield Probe(session, at)


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """A server of this test's own: it changes what clients may do."""
    async with EmbeddedStore(tmp_path / "own", maxmemory="64mb") as embedded:
        yield embedded.url


async def send(url: str, *words: Any) -> Any:
    client = connect(url, role="commands")
    try:
        return await cast("Any", client.execute_command(*words))
    finally:
        await client.aclose()


async def test_it_is_unready_until_it_has_started(url: str) -> None:
    worker = echo_worker(url)
    async with watched(worker, StoreConfig(url=url)) as probe:
        assert await probe.reasons("readyz") == ["starting"]
        assert await probe.live()
        async with worker.running():
            await eventually(probe.ready)
        assert await probe.reasons("readyz") == ["draining"]
        assert await probe.live()


async def test_a_worker_that_does_not_consume_although_the_store_answers_is_not_live(
    url: str,
) -> None:
    worker = echo_worker(url, max_read_age_s=1.0)
    async with watched(worker, StoreConfig(url=url)) as probe, worker.running():
        await eventually(probe.ready)
        await send(url, "ACL", "SETUSER", "default", "-xreadgroup")
        reasons = await eventually(lambda: probe.reasons("livez"))
        assert "was not read for" in reasons[0]
        assert "although the store answers" in reasons[0]
        assert not await probe.ready()
        assert 'askonce_store_reachable{shard="0"} 1.0' in await probe.metrics()
        await send(url, "ACL", "SETUSER", "default", "+xreadgroup")
        await eventually(probe.live)
        await eventually(probe.ready)


async def test_a_store_that_hangs_makes_it_unready_and_not_dead(url: str) -> None:
    store = StoreConfig(url=url, timeout_s=1.1)
    worker = Worker(store, {}, echo_worker(url, max_read_age_s=10.0).config)
    async with watched(worker, store) as probe, worker.running():
        await eventually(probe.ready)
        await send(url, "CLIENT", "PAUSE", 8000, "ALL")

        async def cut_off() -> bool:
            assert await probe.live(), "the store does not answer: that is not its fault"
            return "cannot be reached" in "".join(await probe.reasons("readyz"))

        await eventually(cut_off)
        await eventually(probe.ready, timeout_s=30)


async def test_a_worker_with_its_hands_full_is_live_and_ready(url: str) -> None:
    model = EchoModel()
    model.open.clear()
    worker = echo_worker(url, model, max_read_age_s=1.0, max_held=8, max_waiting=7, batch=8)
    async with Client(url) as client, watched(worker, StoreConfig(url=url)) as probe:
        await client.enqueue_many([Job(task="echo", text=f"text {i}") for i in range(20)])
        async with worker.running():
            await eventually(lambda: worker.vitals().full)

            async def has_not_read_for_long() -> bool:
                (shard,) = worker.vitals().shards
                return shard.read_age_s is not None and shard.read_age_s > 2

            await eventually(has_not_read_for_long)
            assert await probe.live()
            assert await probe.ready()
            model.open.set()
            replies = client.replies()
            async with asyncio.timeout(20):
                for _ in range(20):
                    await anext(replies)
            await cast("AsyncGenerator[object]", replies).aclose()
            assert not worker.vitals().full
            assert await probe.ready()
