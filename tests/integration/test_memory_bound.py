"""The bound on memory itself: what counts as held, which jobs fit, which answers are kept."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import cast

import msgspec
import pytest
import redis

from askonce_queue import Limits, QueueFull, answer_scripts, names, queue_scripts
from askonce_queue.answer_scripts import Fill
from askonce_queue.pressure import MAX_MEMORY_SHARE, STOP_FILLS_AT
from askonce_queue.queue_scripts import Lane
from askonce_queue.sync import Client as SyncClient
from tests.support.small_server import (
    MAXMEMORY,
    SmallServer,
    jobs,
    producer,
    small_server,
    small_worker,
)
from tests.support.virtual_scripts import VirtualShard

TOKEN = b"0123456789abcdef"
RECORD = struct.Struct("<dddBdd")
"""Written down again, so that a change of the layout fails a test."""


@pytest.fixture
async def server(state_folder: Path) -> AsyncIterator[SmallServer]:
    """One that evicts, as the embedded store does."""
    async with small_server(state_folder, "volatile-lfu") as one:
        yield one


@pytest.fixture
async def strict(state_folder: Path) -> AsyncIterator[SmallServer]:
    """One that evicts nothing."""
    async with small_server(state_folder, "noeviction") as one:
        yield one


async def now_ms(server: SmallServer) -> float:
    """The time on the server."""
    seconds, micros = await server.send("TIME")
    return float(int(seconds) * 1000 + int(micros) // 1000)


async def lease(server: SmallServer, digests: Sequence[bytes], token: bytes = TOKEN) -> None:
    call = answer_scripts.look_up(
        "0",
        token=token,
        lease_ms=60_000,
        max_new_leases=len(digests),
        digests=digests,
        asker_tags=[""] * len(digests),
    )
    assert all(told.startswith(b"L") for told in (await server.run(call))[2:])


async def fill(
    server: SmallServer, digests: Sequence[bytes], size: int, token: bytes = TOKEN, tags: str = ""
) -> str:
    """The letters that the script has for these answers of `size` bytes."""
    ttl_ms = 3_600_000
    fills = [Fill(digest, token, ttl_ms, ttl_ms, tags, bytes(size)) for digest in digests]
    return cast("bytes", (await server.run(answer_scripts.fill("0", fills)))[1]).decode()


async def keep_answers(server: SmallServer, start: int, amount: int, size: int) -> set[str]:
    """Write answers, as workers do; the letters they got."""
    letters: set[str] = set()
    for first in range(start, start + amount, 100):
        digests = [b"%032d" % number for number in range(first, first + 100)]
        await lease(server, digests)
        letters |= set(await fill(server, digests, size))
    return letters


class TestHeld:
    async def test_it_is_what_no_answer_takes(self, server: SmallServer) -> None:
        """Answers of very different sizes; then somebody else's data beside them."""
        empty = (await server.memory()).used_bytes
        for start in range(0, 50_000, 5_000):
            await keep_answers(server, start, 4_900, 40)
            await keep_answers(server, start + 4_900, 100, 8_000)
        memory = await server.memory()
        answers_bytes = memory.used_bytes - empty
        assert answers_bytes > MAXMEMORY / 3
        assert abs(memory.held_bytes - empty) < 0.25 * answers_bytes
        await server.fill_up(0.6)
        memory = await server.memory()
        assert memory.used_bytes > 0.9 * MAXMEMORY
        assert abs(memory.held_share - 0.6) < 0.1

    async def test_before_an_answer_was_looked_at_keys_count_alike(
        self, server: SmallServer
    ) -> None:
        """As in a store that an older version has filled."""
        await server.write_answers(20_000, 400)
        memory = await server.memory()
        assert memory.used_bytes > 9 << 20
        assert memory.held_share < 0.1

    async def test_without_eviction_it_is_all(self, strict: SmallServer) -> None:
        await keep_answers(strict, 0, 5_000, 40)
        memory = await strict.memory()
        assert memory.held_bytes == memory.used_bytes
        assert not memory.evicts

    async def test_looking_changes_nothing(self, server: SmallServer) -> None:
        await server.memory()
        assert await server.send("DBSIZE") == 0

    async def test_without_a_limit_nothing_is_refused(self, server: SmallServer) -> None:
        await server.fill_up(0.9)
        await server.send("CONFIG", "SET", "maxmemory", 0)
        memory = await server.memory()
        assert (memory.max_bytes, memory.held_share) == (0, 0.0)
        async with producer(server) as one:
            assert not await one.enqueue(jobs("j", 100))


class TestEnqueue:
    async def test_of_one_call_what_fits_is_accepted(self, server: SmallServer) -> None:
        await server.fill_up(MAX_MEMORY_SHARE - 0.05)
        some = jobs("j", 500, 8_000)  # 4 MB; there is room for 1.6 MB
        async with producer(server) as one:
            refused = await one.enqueue(some)
            assert 250 < len(refused) < 350
            assert refused == {job.id for job in some[-len(refused) :]}
            assert await server.backlog() == 500 - len(refused)
            memory = await server.memory()
            assert abs(memory.held_share - MAX_MEMORY_SHARE) < 0.01
            still = await one.enqueue(some)
            assert still <= refused, "those accepted are the same jobs"
            assert await server.backlog() == 500 - len(still)

    async def test_everything_about_a_job_counts(self, server: SmallServer) -> None:
        """Tenants and tags, too, where the stride is the wide one."""
        await server.fill_up(MAX_MEMORY_SHARE - 0.03)  # 1 MB
        tags = tuple(f"{number} ".ljust(200, "t") for number in range(16))
        plain = jobs("j", 500, 10)
        tagged = [msgspec.structs.replace(job, tenant="acme", tags=tags) for job in plain]
        async with producer(server) as one:
            assert 100 < len(await one.enqueue(tagged)) < 400

    async def test_the_share_is_the_producers(self, server: SmallServer) -> None:
        await server.fill_up(0.55)
        async with (
            producer(server, "modest", limits=Limits(max_memory_share=0.5)) as modest,
            producer(server, "usual") as usual,
        ):
            assert await modest.enqueue(jobs("j", 3)) == {"j0", "j1", "j2"}
            assert not await usual.enqueue(jobs("j", 3))

    async def test_the_server_is_asked_now_and_then_while_there_is_room(
        self, server: SmallServer
    ) -> None:
        async with producer(server) as one:
            before = await server.calls_of("info")
            for number in range(300):
                assert not await one.enqueue(jobs(f"{number}-", 1, 100))
            assert await server.calls_of("info") - before < 100

    async def test_what_was_found_is_not_believed_for_long(self, server: SmallServer) -> None:
        """Nor when it is of the future: the clock went back, or another server took over."""
        await server.fill_up(0.9)
        async with producer(server) as one:
            for ago_ms in (1_500, -60_000):
                plenty = RECORD.pack(await now_ms(server) - ago_ms, 0.0, 1e12, 1, 0.0, 0.0)
                await server.send("SET", names.memory("0"), plenty)
                assert await one.enqueue(jobs("j", 1)) == {"j0"}

    async def test_a_large_call_is_measured_itself(self, server: SmallServer) -> None:
        """What was found this very instant says too little about so much."""
        await server.fill_up(0.8)
        with closing(redis.Redis.from_url(server.url)) as client:
            shard = VirtualShard(client)
            shard.run(queue_scripts.claim_name("0", "c", "t", 15_000))
            client.set(names.memory("0"), RECORD.pack(shard.now_ms, 0.0, MAXMEMORY, 1, 0.0, 0.0))
            for amount, least, most in ((10, 10, 10), (500, 100, 250)):  # room for 1.6 MB
                call = queue_scripts.enqueue(
                    Lane("0", "default", "bulk"),
                    client="c",
                    token="t",  # noqa: S106 -- of a client's name
                    reply_to="",
                    max_backlog=1_000,
                    max_unread=1_000,
                    max_memory_share=MAX_MEMORY_SHARE,
                    stride=2,
                    jobs=[arg for n in range(amount) for arg in (f"{amount}-{n}", bytes(8_000))],
                )
                letters = cast("bytes", shard.run(call))
                assert least <= letters.count(b"a") <= most
                assert letters.count(b"a") + letters.count(b"m") == amount

    async def test_a_call_larger_than_what_is_left_is_split(self, server: SmallServer) -> None:
        """Its own arguments, in the server's memory until it ends, do not keep all of it out."""
        async with producer(server) as one:
            refused = await one.enqueue(jobs("large", 500, 60_000))  # 30 MB
            assert 0 < len(refused) < 250
            assert (await server.memory()).held_share < MAX_MEMORY_SHARE + 0.05

    async def test_the_sync_client_is_told_the_same(self, server: SmallServer) -> None:
        await server.fill_up(0.9)
        with SyncClient(server.url) as client:
            with pytest.raises(QueueFull, match="max_memory_share") as caught:
                client.enqueue_many(jobs("j", 3))
            assert caught.value.job_ids == ("j0", "j1", "j2")


class TestFill:
    async def test_where_nothing_is_evicted_answers_leave_room_for_jobs(
        self, strict: SmallServer
    ) -> None:
        start = 0
        while "m" not in await keep_answers(strict, start, 1_000, 2_000):
            start += 1_000
        memory = await strict.memory()
        assert abs(memory.held_share - STOP_FILLS_AT) < 0.02
        async with producer(strict) as one, small_worker(strict).running():
            for number in range(5):
                await one.ask(jobs(f"{number}-", 100, 2_000))

    async def test_where_answers_are_evicted_new_ones_are_kept(self, server: SmallServer) -> None:
        await server.fill_up(0.9)
        assert await keep_answers(server, 0, 5_000, 2_000) == {"f"}
        assert await server.evicted() > 0

    async def test_what_is_not_kept_gives_its_lease_back(self, strict: SmallServer) -> None:
        await strict.fill_up(0.8)
        digests = [b"%032d" % number for number in range(3)]
        await lease(strict, digests)
        assert await fill(strict, digests, 10) == "mmm"
        assert await strict.send("HLEN", names.leases("0")) == 0
        await lease(strict, digests, b"another-token-16")

    async def test_what_may_not_be_written_is_told_so_first(self, strict: SmallServer) -> None:
        await strict.fill_up(0.8)
        fenced, invalid, good = (b"%032d" % number for number in range(3))
        await lease(strict, [invalid])
        await strict.run(answer_scripts.invalidate("0", everything=False, tags=["tag"]))
        await lease(strict, [good])
        assert await fill(strict, [fenced, invalid, good], 10, tags="tag") == "xim"
        assert await strict.answers() == 0
