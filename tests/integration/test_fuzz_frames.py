"""Garbled replies from the store: nobody takes them for what was asked, hangs, or loses a job.

Only a frame that is no reply can be told from one: a byte that was flipped inside a text makes
another text, and an integer another integer, which TCP's checksum and TLS have to keep away.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from redis.exceptions import RedisError

from askonce_queue import Client, Job, StoreUnavailable
from askonce_queue.connections import Endpoint
from askonce_queue.store_config import StoreConfig
from askonce_worker import AnswerCache
from askonce_worker.config import WorkerConfig
from askonce_worker.pool import intake
from askonce_worker.pool.worker import Worker
from tests.support.garbling import BROKEN, HUGE, Frames, Garble, GarblingProxy
from tests.support.queue_worker import QUICK, EchoModel, echo_tasks, echo_worker

pytestmark = pytest.mark.usefixtures("store")  # every test begins with an empty store

SEED = 20_261_121
EXCHANGES = 1_200
COMMANDS = 30
"""Commands in one exchange, each of which gets a frame that was drawn."""
NEW_BLOCKS = 5_000
"""Blocks of memory that may be new after half of the exchanges."""
TIMEOUT_S = 0.2
RATE = 0.05
"""The part of the replies that is garbled. A request is tried four times."""
MOST_NEW_BYTES = 600 << 20
"""What `TIMEOUT_S` of an endless reply may take, on a machine that does nothing else."""
every_kind = pytest.mark.parametrize("kinds", [BROKEN, HUGE], ids=["broken", "huge"])


# --- one connection after the other ----------------------------------------------------------


class FakeStore:
    """Answers every command with a frame that was drawn, or, once `sound`, with PONG."""

    def __init__(self) -> None:
        self.sound = False
        self.sent = 0
        self.connections = 0
        self._frames = Frames(SEED)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                count = int((await reader.readuntil(b"\r\n"))[1:])
                words = [await self._word(reader) for _ in range(count)]
                writer.write(self._reply(words))
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass  # the client has had enough of it
        finally:
            self.connections -= 1
            writer.close()

    async def _word(self, reader: asyncio.StreamReader) -> bytes:
        size = int((await reader.readuntil(b"\r\n"))[1:])
        return (await reader.readexactly(size + 2))[:-2]

    def _reply(self, words: list[bytes]) -> bytes:
        if words[0] == b"CLIENT":
            return b"+OK\r\n"
        if self.sound:
            return b"+PONG\r\n"
        self.sent += 1
        return self._frames.draw()


async def test_tens_of_thousands_of_frames(tmp_path: Path) -> None:
    """Each exchange has as many replies as commands, or fails as a connection does."""
    fake = FakeStore()
    path = str(tmp_path / "socket")
    server = await asyncio.start_unix_server(fake.serve, path)
    config = StoreConfig(url=f"unix://{path}", timeout_s=TIMEOUT_S, wait_timeout_s=TIMEOUT_S / 2)
    endpoint = Endpoint(config, config.addresses[0], max_connections=4)
    ended = Counter[str]()
    blocks = 0
    for number in range(EXCHANGES // 4):
        if number == EXCHANGES // 8:
            gc.collect()
            blocks = sys.getallocatedblocks()
        outcomes = await asyncio.gather(
            *[endpoint.exchange([("PING",)] * COMMANDS) for _ in range(4)], return_exceptions=True
        )
        for outcome in outcomes:
            assert isinstance(outcome, list | RedisError | OSError)
            assert not isinstance(outcome, list) or len(outcome) == COMMANDS
            ended["replies" if isinstance(outcome, list) else type(outcome).__name__] += 1
        assert fake.connections <= 4
    gc.collect()
    assert sys.getallocatedblocks() - blocks < NEW_BLOCKS
    assert fake.sent == EXCHANGES * COMMANDS
    assert ended["replies"]
    assert ended["InvalidResponse"] > EXCHANGES / 4
    fake.sound = True
    assert await endpoint.exchange([("PING",)] * 2) == [b"PONG"] * 2
    await endpoint.aclose()
    server.close()
    await server.wait_closed()


# --- whole programs --------------------------------------------------------------------------


@asynccontextmanager
async def garbling(
    store_url: str, kinds: Mapping[str, Garble]
) -> AsyncGenerator[tuple[GarblingProxy, StoreConfig]]:
    """A proxy, and how a program reaches the store through it; memory is watched meanwhile."""
    async with GarblingProxy(store_url, kinds, SEED) as proxy:
        before, peak = resident_bytes(), [0]

        async def watch() -> None:
            while True:
                peak[0] = max(peak[0], resident_bytes())
                await asyncio.sleep(TIMEOUT_S / 10)

        watching = asyncio.create_task(watch())
        try:
            config = StoreConfig(url=proxy.url, timeout_s=TIMEOUT_S, wait_timeout_s=TIMEOUT_S / 2)
            yield proxy, config
        finally:
            watching.cancel()
        assert peak[0] - before < MOST_NEW_BYTES
        assert set(proxy.garbled) == set(kinds)


def resident_bytes() -> int:
    """The memory that this process takes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@every_kind
async def test_a_worker(
    store_url: str, kinds: Mapping[str, Garble], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "STRAY_CHECK_S", 0.2)
    monkeypatch.setattr(intake, "STRAY_IDLE_MS", 200)
    model = EchoModel()
    jobs = [Job(task="echo", text=f"text {n}", id=f"j{n}") for n in range(1500)]
    async with (
        garbling(store_url, kinds) as (proxy, config),
        Client(store_url) as client,
        Worker(config, echo_tasks(model), WorkerConfig(**QUICK, batch=20)).running(),
    ):
        proxy.rate = RATE
        replies = [one async for one in client.ask_many(jobs, ordered=True, window=60)]
        proxy.rate = 0.0
    labels = [one.answer.label for one in replies if one.answer is not None]
    assert labels == [f"TEXT {n}" for n in range(1500)]
    assert set(model.asked) == {job.text for job in jobs}


@every_kind
async def test_a_client(store_url: str, kinds: Mapping[str, Garble]) -> None:
    """It tells when it does not know what was accepted; the same ids again, and nothing is lost."""
    found = Counter[str | None]()
    jobs = [Job(task="echo", text=f"text {n}", id=f"j{n}") for n in range(1500)]
    async with (
        garbling(store_url, kinds) as (proxy, config),
        echo_worker(store_url).running(),
        Client(config) as client,
    ):
        proxy.rate = RATE
        for start in range(0, len(jobs), 10):
            left = jobs[start : start + 10]
            while left:
                with suppress(StoreUnavailable):
                    async for reply in client.ask_many(left):
                        assert reply.answer is not None
                        assert reply.answer.label == f"TEXT {reply.id[1:]}"
                        found[reply.id] += 1
                left = [job for job in left if job.id not in found]
        proxy.rate = 0.0
    assert found == Counter(f"j{n}" for n in range(1500))


@every_kind
async def test_the_library(store_url: str, kinds: Mapping[str, Garble]) -> None:
    async with (
        garbling(store_url, kinds) as (proxy, config),
        AnswerCache(config, memory_bytes=0) as cache,
    ):

        async def ask(number: int) -> None:
            async def call() -> int:
                return number

            assert (await cache.get_or_call("f", number, call)).value == number

        proxy.rate = RATE
        for part in range(12):
            await asyncio.gather(*[ask(100 * part + n) for n in range(30)])
            for n in range(30):
                await ask(100 * part + n)
        proxy.rate = 0.0
