"""A store server of its own with little memory, ways to fill that, and producers that read on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import redis.asyncio
from redis.exceptions import OutOfMemoryError

from askonce_queue import Client, Job, Limits, QueueFull, Reply, queue_scripts
from askonce_queue.connections import connect
from askonce_queue.embedded import EmbeddedStore
from askonce_queue.pressure import Memory, read_memory
from askonce_queue.scripts import Call
from askonce_worker.pool.worker import Worker
from tests.support.queue_worker import echo_worker
from tests.support.waiting import eventually

MAXMEMORY = 32 << 20
TEXT_BYTES = 16_000
PART = 50
"""Jobs in one call."""
FOREIGN = b"somebody else's "
"""How keys begin that are not askonce's."""


class SmallServer:
    """A running server: its URL, and a look behind its users' backs."""

    def __init__(self, url: str, client: redis.asyncio.Redis) -> None:
        self.url = url
        self._client = client

    async def send(self, *words: Any) -> Any:
        """Send one command. Raises redis-py's errors."""
        return await cast("Awaitable[Any]", self._client.execute_command(*words))

    async def run(self, call: Call) -> Any:
        """Run a script, which the server need not know. Raises redis-py's errors."""
        return await self.send(*call.command("EVAL"))

    async def memory(self) -> Memory:
        """What the server's memory is taken by."""
        return read_memory(await self.run(queue_scripts.measure("0")))

    async def evicted(self) -> int:
        """How many keys were evicted."""
        return int((await self._client.info("stats"))["evicted_keys"])

    async def calls_of(self, command: str) -> int:
        """How often a command ran, those in scripts included."""
        info = await self._client.info("commandstats")
        return int(info.get(f"cmdstat_{command}", {"calls": 0})["calls"])

    async def lasting(self) -> dict[bytes, bytes]:
        """Every key that is no answer, with its type."""
        found = cast("AsyncIterator[bytes]", self._client.scan_iter(count=1000))
        keys = [key async for key in found]
        return {key: await self.send("TYPE", key) for key in keys if not key.startswith(b"a:")}

    async def answers(self) -> int:
        """How many answers are kept."""
        return int(await self.send("DBSIZE")) - len(await self.lasting())

    async def backlog(self) -> int:
        """The unsettled jobs of all lanes."""
        streams = [key for key in await self.lasting() if key.startswith(b"jobs:")]
        return sum([int(await self.send("XLEN", stream)) for stream in streams])

    async def until_settled(self) -> None:
        """Wait until no job is left."""

        async def settled() -> bool:
            return await self.backlog() == 0

        await eventually(settled, timeout_s=60)

    async def fill_up(self, share: float = 2.0) -> int:
        """Let somebody else hold `share` of the memory, or all that the server gives; the keys.

        A full server stays so when connections free their buffers.
        """
        keys, size = 0, 100_000
        while (await self.memory()).held_share < share and size > 50:
            try:
                await self.send("SET", FOREIGN + b"%d" % keys, bytes(size))
                keys += 1
            except OutOfMemoryError:
                size //= 2
        if size <= 50:
            used = (await self.memory()).used_bytes
            await self.send("CONFIG", "SET", "maxmemory", used - 500_000)
        return keys

    async def write_answers(self, amount: int, size: int) -> None:
        """Write what looks like answers of `size` bytes, without anybody's knowledge."""
        script = """
            for i = 1, ARGV[1] do
                local name = string.format('a:{0}:%032d', i)
                redis.call('SET', name, string.rep('x', ARGV[2]), 'EX', 3600)
            end"""
        await self.send("EVAL", script, 0, amount, size)

    async def make_room(self) -> None:
        """Take away what `fill_up` has added."""
        await self.send("CONFIG", "SET", "maxmemory", MAXMEMORY)
        for key in await self.lasting():
            if key.startswith(FOREIGN):
                await self.send("DEL", key)


@asynccontextmanager
async def small_server(folder: Path, policy: str) -> AsyncGenerator[SmallServer]:
    """A real server with this maxmemory-policy, for the length of a block."""
    async with EmbeddedStore(folder, maxmemory=MAXMEMORY) as embedded:
        client = connect(embedded.url, role="commands")
        try:
            await client.config_set("maxmemory-policy", policy)
            yield SmallServer(embedded.url, client)
        finally:
            await client.aclose()


def small_worker(server: SmallServer, **config: Any) -> Worker:
    """A worker that fetches and settles little at once: buffers are held memory while they last."""
    return echo_worker(server.url, batch=PART, **config)


def jobs(prefix: str, amount: int, size: int = TEXT_BYTES, task: str = "echo") -> list[Job]:
    """Distinct questions of `size` bytes."""
    return [
        Job(task=task, id=f"{prefix}{n}", text=f"{prefix}{n} ".ljust(size, "x"))
        for n in range(amount)
    ]


class Producer:
    """A client that reads its replies through one iterator: each is deleted as the next is read."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._replies = cast("AsyncGenerator[Reply]", client.replies())

    async def enqueue(self, some: Sequence[Job]) -> set[str]:
        """Enqueue jobs; the ids of those that did not fit, for lack of memory."""
        try:
            await self.client.enqueue_many(some)
        except QueueFull as full:
            if "memory" not in full.reason:
                raise
            return set(full.job_ids)
        return set()

    async def enqueue_until_full(self, prefix: str, **options: Any) -> tuple[list[Job], list[Job]]:
        """Enqueue until the store refuses: the jobs it accepted, and those it named."""
        accepted: list[Job] = []
        for number in range(1_000):
            part = jobs(f"{prefix}{number}-", PART, **options)
            refused = await self.enqueue(part)
            accepted += [job for job in part if job.id not in refused]
            if refused:
                return accepted, [job for job in part if job.id in refused]
        raise AssertionError("never refused")

    async def read(self, some: Sequence[Job], error: str | None = None) -> list[Reply]:
        """The replies to exactly these jobs, each once, all answers (or this error)."""
        left = {str(job.id) for job in some}
        replies: list[Reply] = []
        async with asyncio.timeout(60):
            while left:
                reply = await anext(self._replies)
                assert (reply.error and reply.error.code) == error
                left.remove(reply.id)
                replies.append(reply)
        return replies

    async def ask(self, some: Sequence[Job]) -> list[Reply]:
        """Enqueue, which must succeed, and read."""
        assert not await self.enqueue(some)
        return await self.read(some)

    async def ask_when_there_is_room(self, some: Sequence[Job]) -> list[Reply]:
        """Enqueue what does not fit again and again, and read.

        Replies are deleted from the store a moment after they were read.
        """
        left = list(some)

        async def fits() -> bool:
            refused = await self.enqueue(left)
            left[:] = [job for job in left if job.id in refused]
            return not left

        await eventually(fits)
        return await self.read(some)

    async def close(self) -> None:
        await self._replies.aclose()


@asynccontextmanager
async def producer(
    server: SmallServer,
    name: str = "producer",
    *,
    pool: str = "default",
    limits: Limits | None = None,
) -> AsyncGenerator[Producer]:
    """A client of that name, for the length of a block."""
    async with Client(server.url, name=name, pool=pool, limits=limits) as client:
        one = Producer(client)
        yield one
        await one.close()
