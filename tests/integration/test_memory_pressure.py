"""A store whose memory is full, by every way to fill it: what was accepted is answered, what is
refused is named, nothing deadlocks, and all is well again once there is room, without a restart.

Each test has a real server of its own, with 32 MB, under each policy that askonce runs on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.exceptions import OutOfMemoryError

from askonce_queue import Job, names, queue_scripts
from askonce_queue.pressure import MAX_MEMORY_SHARE, STOP_FILLS_AT
from askonce_queue.queue_scripts import LANES, Lane
from tests.integration.test_scripts_binding import ALL_STUBS, REFUSED_WITHOUT_MEMORY
from tests.support.small_server import (
    FOREIGN,
    MAXMEMORY,
    PART,
    TEXT_BYTES,
    Producer,
    SmallServer,
    jobs,
    producer,
    small_server,
    small_worker,
)
from tests.support.waiting import eventually


@pytest.fixture(params=["volatile-lfu", "noeviction"])
async def server(request: pytest.FixtureRequest, state_folder: Path) -> AsyncIterator[SmallServer]:
    async with small_server(state_folder, request.param) as one:
        yield one


async def assert_all_is_well(server: SmallServer, one: Producer) -> None:
    """Jobs are accepted and answered, and answers are kept, if others may go for them."""
    some = jobs("again", 10, 100)
    await one.ask_when_there_is_room(some)
    replies = await one.ask(some)
    if (await server.memory()).evicts:
        assert {reply.source for reply in replies} <= {"memory", "store"}


async def test_full_of_answers(server: SmallServer) -> None:
    """Answers alone keep no job out; and jobs that wait are not what is evicted."""
    evicts = (await server.memory()).evicts
    asked: list[Job] = []
    async with producer(server) as one, producer(server, "patient", pool="other") as patient:
        waiting = jobs("waiting", PART)
        await patient.enqueue(waiting)
        theirs = [names.jobs("0", "other", "interactive"), names.ids("0", "other")]
        before = [await server.send("DUMP", name) for name in theirs]
        async with small_worker(server).running():
            for number in range(2 * MAXMEMORY // (PART * TEXT_BYTES)):
                asked += (some := jobs(f"{number}-", PART))
                await one.ask(some)
            memory = await server.memory()
        if evicts:
            assert memory.used_bytes > 0.9 * memory.max_bytes
            assert memory.held_share < 0.5
            assert await server.evicted() > 1000
        else:
            assert STOP_FILLS_AT - 0.1 < memory.held_share < MAX_MEMORY_SHARE
            assert await server.evicted() == 0

        # Hits keep flowing, to a worker that remembers nothing itself.
        async with small_worker(server).running():
            known = asked[-20:] if evicts else asked[:20]
            sources = [reply.source for reply in await one.ask(known)]
            assert sources.count("store") == 20 or (evicts and sources.count("store") >= 10)

        assert [await server.send("DUMP", name) for name in theirs] == before
        async with small_worker(server, pool="other").running():
            await patient.read(waiting)


async def test_full_of_backlog(server: SmallServer) -> None:
    """No worker is up. Those that come find all of it, and what was refused fits again."""
    async with producer(server) as one:
        accepted, refused = await one.enqueue_until_full("j")
        assert await server.backlog() == len(accepted)
        memory = await server.memory()
        assert MAX_MEMORY_SHARE - 0.05 < memory.held_share < MAX_MEMORY_SHARE + 0.05
        # To enqueue the same again is the same job, also now: nobody is told that it was refused.
        still = await one.enqueue([*accepted[-20:], *refused])
        assert still <= {job.id for job in refused}
        assert await server.backlog() == len(accepted) + len(refused) - len(still)
        async with small_worker(server).running():
            await one.read([*accepted, *(job for job in refused if job.id not in still)])
            await one.ask_when_there_is_room([job for job in refused if job.id in still])
            await assert_all_is_well(server, one)


async def test_full_of_unread_replies(server: SmallServer) -> None:
    """A client that reads nothing keeps everybody out, until it reads; nobody waits for ever."""
    async with (
        small_worker(server).running(),
        producer(server, "lazy") as lazy,
        producer(server, "keen") as keen,
    ):
        accepted: list[Job] = []
        while (await server.memory()).held_share < MAX_MEMORY_SHARE - 0.05:
            # Replies can be smaller than their jobs: there is room for more.
            accepted += (await lazy.enqueue_until_full(f"{len(accepted)}-"))[0]
            await server.until_settled()
        some, refused = await keen.enqueue_until_full("keen")
        assert len(some) < len(accepted) / 5, "the others' replies keep it out"
        await keen.read(some)
        await lazy.read(accepted)
        await keen.ask_when_there_is_room(refused)
        await assert_all_is_well(server, keen)


async def test_full_of_dead_letters(server: SmallServer) -> None:
    """Jobs of no known task are answered with errors and kept for people, until it is too much."""
    async with small_worker(server).running(), producer(server) as one:
        accepted: list[Job] = []
        while True:
            part, refused = await one.enqueue_until_full(f"{len(accepted)}-", task="unknown")
            accepted += part
            await one.read(part, error="unknown_task")
            if len(refused) == PART:
                break
        assert await server.send("XLEN", names.dead("0", "default")) == len(accepted)
        await server.send("XTRIM", names.dead("0", "default"), "MAXLEN", 10)
        await assert_all_is_well(server, one)


async def test_full_of_what_is_somebody_elses(server: SmallServer) -> None:
    """To the last byte: workers and clients come and go, and all that was accepted is answered."""
    some, lost = jobs("j", PART), jobs("k", 3)
    async with producer(server) as one, producer(server, "resumed") as crashed:
        await one.enqueue(some)
        await crashed.enqueue(lost)
        known = {name: await server.send("DUMP", name) for name in await server.lasting()}
        foreign = await server.fill_up()
        with pytest.raises(OutOfMemoryError):
            await server.send("SET", "one", bytes(100))
        assert (await server.memory()).held_share > 0.99

        assert await one.enqueue([*some, *lost]) == {job.id for job in lost}
        for name, content in known.items():
            assert name == names.memory("0") or await server.send("DUMP", name) == content
        worker = small_worker(server)
        async with worker.running(), producer(server, "new") as new:
            await one.read(some)
            assert await new.enqueue(lost) == {job.id for job in lost}
            assert worker.counters.total("model_calls") == PART + 3
            await server.until_settled()
        assert await server.answers() == 0
        assert await server.send("HLEN", names.beats("0", "default")) == 0, "it has left"
        assert await server.send("HLEN", names.leases("0")) == 0, "leases were given back"
        assert not await server.send("HEXISTS", names.clients("0"), "new")
    async with producer(server, "resumed") as resumed, small_worker(server).running():
        await resumed.read(lost)
        assert sum(key.startswith(FOREIGN) for key in await server.lasting()) == foreign
        await server.make_room()
        await assert_all_is_well(server, resumed)


async def test_streams_are_served_to_the_last_byte(server: SmallServer) -> None:
    """What a worker sends besides scripts: no command of it is refused."""
    stream = names.jobs("0", "default", "interactive")
    async with producer(server) as one:
        await one.enqueue(jobs("j", 3))
        await server.send("XGROUP", "CREATE", stream, names.GROUP, "0")
        await server.fill_up()
        read = ("XREADGROUP", "GROUP", names.GROUP, "w", "COUNT", 3, "STREAMS", stream, ">")
        ((_, entries),) = await server.send(*read)
        entry_ids = [entry_id for entry_id, _ in entries]
        assert len(await server.send("XPENDING", stream, names.GROUP, "-", "+", 9)) == 3
        claim = ("XCLAIM", stream, names.GROUP, "other", 0, *entry_ids)
        assert [entry_id for entry_id, _ in await server.send(*claim)] == entry_ids
        assert await server.send("XACK", stream, names.GROUP, *entry_ids) == 3
        assert await server.send("XDEL", stream, *entry_ids) == 3


async def test_scripts_run_to_the_last_byte(server: SmallServer) -> None:
    """Scripts of which the server has never heard: all but the one that writes answers."""
    await server.fill_up()
    for lane in LANES:
        assert await server.run(queue_scripts.ensure_group(Lane("0", "default", lane))) == 1
    refused: set[str] = set()
    for name, stub in ALL_STUBS:
        try:
            await server.run(stub.call(1))
        except OutOfMemoryError:
            refused.add(name)
    assert refused == REFUSED_WITHOUT_MEMORY


async def test_a_burst_that_eviction_cannot_follow_waits(state_folder: Path) -> None:
    """Far over its limit the server is full, whatever may still be evicted."""
    async with small_server(state_folder, "volatile-lfu") as server, producer(server) as one:
        await server.write_answers(150_000, 100)
        used = (await server.memory()).used_bytes
        assert used > 0.8 * MAXMEMORY
        limit = used // 2
        await server.send("CONFIG", "SET", "maxmemory", limit)
        await server.send("DEL", names.memory("0"))
        assert await one.enqueue(jobs("j", 1, 20)) == {"j0"}

        async def evicted() -> bool:
            return (await server.memory()).used_bytes < 1.05 * limit

        await eventually(evicted)
        assert not await one.enqueue(jobs("j", 1, 20))
