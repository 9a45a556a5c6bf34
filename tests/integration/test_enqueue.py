"""The enqueue script: each job once, within the bounds, and a name for every one that did not fit.

No worker runs here: what was accepted stays in its stream, to be looked at.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import redis.asyncio

from askonce_queue import Client, IdConflict, Job, Limits, QueueFull, Reply, names, queue_scripts
from askonce_queue.envelope import Envelope, read_envelope
from askonce_queue.errors import ClientNameInUse, ConfigError, InvalidJob
from askonce_queue.queue_scripts import Lane, SettleGroup
from askonce_queue.reply import WireReply, encode_replies
from askonce_queue.scripts import CHUNK, run, send
from askonce_queue.shards import shard_of_job, shard_tags
from askonce_queue.sync import Client as SyncClient
from tests.support.queue_worker import BULK, INTERACTIVE, backlog
from tests.support.waiting import eventually

Store = redis.asyncio.Redis
pytestmark = pytest.mark.usefixtures("store")  # every test begins with an empty store


def job(job_id: str, text: str = "a", **more: Any) -> Job:
    return Job(task="echo", text=text, id=job_id, **more)


def jobs(count: int, prefix: str = "j") -> list[Job]:
    return [job(f"{prefix}{n}") for n in range(count)]


async def queued(store: Store, lane: Lane = INTERACTIVE) -> list[Envelope]:
    """The entries of a lane, decoded."""
    entries: list[Any] = await send(store, "XRANGE", lane.stream, "-", "+")
    return [read_envelope(entry_id, fields) for entry_id, fields in entries]


async def queued_ids(store: Store, lane: Lane = INTERACTIVE) -> list[str]:
    return [envelope.job_id for envelope in await queued(store, lane)]


async def records(store: Store, lane: Lane = INTERACTIVE) -> dict[str, str]:
    found = cast("dict[bytes, bytes]", await store.hgetall(lane.ids))
    return {field.decode(): value.decode() for field, value in found.items()}


async def owed(store: Store, client: Client, tag: str = "0") -> int:
    return int(await store.hget(names.owed(tag).decode(), client.name) or 0)


async def fetch_all(store: Store, lane: Lane = INTERACTIVE) -> None:
    """Deliver everything in a lane."""
    await send(store, "XGROUP", "CREATE", lane.stream, names.GROUP, "0")
    await send(store, "XREADGROUP", "GROUP", names.GROUP, "w", "STREAMS", lane.stream, ">")


async def settle_all(store: Store, client: Client, lane: Lane = INTERACTIVE) -> None:
    """Answer everything that was delivered, as a worker's outbox does."""
    envelopes = await queued(store, lane)
    lines = encode_replies([WireReply(id=envelope.job_id) for envelope in envelopes])
    pairs = [(envelope.entry_id, envelope.record) for envelope in envelopes]
    group = SettleGroup(client.name, lines, pairs)
    assert await run(store, queue_scripts.settle(lane, [group])) == len(envelopes)


@pytest.fixture
async def client(store_url: str) -> AsyncIterator[Client]:
    # A client must be closed by the task that opened it, and fixtures end in another one.
    opened: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
    end = asyncio.Event()

    async def hold() -> None:
        async with Client(store_url, name="producer") as one:
            opened.set_result(one)
            await end.wait()

    holding = asyncio.create_task(hold())
    yield await opened
    end.set()
    await holding


def bounded(store_url: str, **limits: int) -> Client:
    return Client(store_url, name="bounded", limits=Limits(**limits))


class TestIdentity:
    async def test_the_same_id_and_payload_are_the_same_job(
        self, client: Client, store: Store
    ) -> None:
        for _ in range(3):
            assert await client.enqueue_many(jobs(2)) == ["j0", "j1"]
        assert await queued_ids(store) == ["j0", "j1"]
        assert await owed(store, client) == client.outstanding == 2

    async def test_ids_are_the_clients_own(
        self, client: Client, store_url: str, store: Store
    ) -> None:
        async with Client(store_url, name="other") as other:
            await client.enqueue(job("1", "mine"))
            await other.enqueue(job("1", "theirs"))
            assert set(await records(store)) == {"producer/1", "other/1"}
            assert [one.client for one in await queued(store)] == ["producer", "other"]

    @pytest.mark.parametrize(
        "other",
        [
            job("1", "b"),
            Job(task="other", text="a", id="1"),
            Job(task="echo", messages=[{"content": "a"}], id="1"),
            job("1", params={"top_p": 1}),
            job("1", tenant="acme"),
            job("1", tags=("x",)),
        ],
    )
    async def test_another_content_is_a_conflict(
        self, client: Client, store: Store, other: Job
    ) -> None:
        await client.enqueue(job("1"))
        with pytest.raises(IdConflict) as caught:
            await client.enqueue_many([other, job("2")])
        assert caught.value.job_ids == ("1",)
        assert await queued_ids(store) == ["1", "2"]
        assert (await queued(store))[0].payload == b'{"task":"echo","text":"a"}'

    async def test_another_reply_address_is_a_conflict(self, client: Client) -> None:
        await client.enqueue(job("1"))
        with pytest.raises(IdConflict):
            await client.enqueue(job("1"), reply_to="sink")

    async def test_another_lane_is_a_conflict(self, client: Client, store: Store) -> None:
        await client.enqueue(job("1"), lane="bulk")
        with pytest.raises(IdConflict):
            await client.enqueue(job("1"), lane="interactive")
        assert await client.enqueue(job("1"), lane="bulk") == "1"
        assert (await queued_ids(store, BULK), await backlog(store)) == (["1"], 0)

    async def test_after_it_is_settled_a_repeat_is_a_new_job(
        self, client: Client, store: Store
    ) -> None:
        await client.enqueue(job("1"))
        await fetch_all(store)
        await settle_all(store, client)
        assert (await backlog(store), await records(store)) == (0, {})
        assert (await anext(client.replies())).id == "1"
        await client.enqueue(job("1", "another text"))
        assert await queued_ids(store) == ["1"]

    async def test_a_record_whose_job_is_gone_heals(self, client: Client, store: Store) -> None:
        await store.hset(INTERACTIVE.ids.decode(), "producer/1", "interactive/1-1")
        await client.enqueue(job("1"))
        (envelope,) = await queued(store)
        assert await records(store) == {"producer/1": f"interactive/{envelope.entry_id.decode()}"}

    async def test_a_record_of_another_lane_heals(self, client: Client, store: Store) -> None:
        await store.hset(INTERACTIVE.ids.decode(), "producer/1", "bulk/1-1")
        await client.enqueue(job("1"))
        assert await queued_ids(store) == ["1"]

    async def test_the_same_job_twice_in_one_call_of_a_named_stream_is_one(
        self, client: Client, store: Store
    ) -> None:
        await client.enqueue_many([job("1"), job("2"), job("1")], reply_to="sink")
        assert await queued_ids(store) == ["1", "2"]

    async def test_two_jobs_of_one_id_in_one_call_conflict(
        self, client: Client, store: Store
    ) -> None:
        with pytest.raises(IdConflict) as caught:
            await client.enqueue_many([job("1"), job("2"), job("1", "b")], reply_to="sink")
        assert caught.value.job_ids == ("1",)
        assert await queued_ids(store) == ["1", "2"]

    async def test_jobs_beside_a_repeated_id_are_accepted(
        self, client: Client, store: Store
    ) -> None:
        """IdConflict: every job that it does not name was accepted."""
        assert await client.enqueue_many([job("1"), job("2"), job("1")]) == ["1", "2", "1"]
        assert await queued_ids(store) == ["1", "2"]
        assert client.outstanding == 2

    async def test_pools_have_streams_and_ids_of_their_own(
        self, client: Client, store_url: str, store: Store
    ) -> None:
        await client.enqueue(job("1"))
        async with Client(store_url, name="other-pool", pool="gpu") as other:
            await other.enqueue(job("1", "b"))
        assert await queued_ids(store, Lane("0", "gpu", "interactive")) == ["1"]
        assert await queued_ids(store) == ["1"]


class TestEnvelopes:
    async def test_a_plain_job_has_four_fields(self, client: Client, store: Store) -> None:
        await client.enqueue(job("1"))
        ((_, fields),) = await send(store, "XRANGE", INTERACTIVE.stream, "-", "+")
        payload = b'{"task":"echo","text":"a"}'
        assert fields == [b"v", b"1", b"c", b"producer", b"i", b"1", b"p", payload]

    async def test_tenant_tags_and_reply_address(self, client: Client, store: Store) -> None:
        tagged = job("1", tenant="größe", tags=("a", "b c"))
        await client.enqueue_many([tagged, job("2")], reply_to="sink")
        first, second = await queued(store)
        assert (first.tenant, first.tags, first.reply_to) == ("größe", ("a", "b c"), "@sink")
        assert (second.tenant, second.tags, second.reply_to) == ("", (), "@sink")
        assert not first.problem
        assert not second.problem

    async def test_the_same_tagged_job_again(self, client: Client, store: Store) -> None:
        tagged = job("1", tenant="acme", tags=("a", "b"))
        await client.enqueue(tagged)
        await client.enqueue_many([tagged, job("2", tags=("x",))])
        await client.enqueue_many([tagged, job("3")])
        assert await queued_ids(store) == ["1", "2", "3"]

    async def test_a_plain_job_again_beside_tagged_ones(self, client: Client, store: Store) -> None:
        await client.enqueue(job("1"))
        await client.enqueue_many([job("1"), job("2", tenant="acme")])
        assert await queued_ids(store) == ["1", "2"]

    async def test_a_call_larger_than_a_chunk_keeps_its_order(
        self, client: Client, store: Store
    ) -> None:
        ids = await client.enqueue_many(jobs(2 * CHUNK + 1))
        assert await queued_ids(store) == ids

    async def test_an_invalid_job_keeps_its_call_out(self, client: Client, store: Store) -> None:
        with pytest.raises(InvalidJob):
            await client.enqueue_many([*jobs(3), Job(task="echo")])
        assert await backlog(store) == 0
        assert client.outstanding == 0


class TestBounds:
    async def test_the_backlog_is_bounded(self, store_url: str, store: Store) -> None:
        async with bounded(store_url, max_backlog=5) as client:
            await client.enqueue_many(jobs(3))
            with pytest.raises(QueueFull) as caught:
                await client.enqueue_many(jobs(4, "k"))
            assert caught.value.job_ids == ("k2", "k3")
            assert "max_backlog" in caught.value.reason
            assert await queued_ids(store) == ["j0", "j1", "j2", "k0", "k1"]
            assert await owed(store, client) == client.outstanding == 5

    async def test_a_job_that_is_there_fits_always(self, store_url: str) -> None:
        async with bounded(store_url, max_backlog=2) as client:
            await client.enqueue_many(jobs(2))
            assert await client.enqueue_many(jobs(2)) == ["j0", "j1"]
            with pytest.raises(QueueFull) as caught:
                await client.enqueue_many([job("new"), job("j1")])
            assert caught.value.job_ids == ("new",)

    async def test_each_lane_has_its_own_bound(self, store_url: str, store: Store) -> None:
        async with bounded(store_url, max_backlog=1) as client:
            await client.enqueue(job("1"), lane="bulk")
            await client.enqueue(job("2"), lane="interactive")
            assert (await backlog(store, BULK), await backlog(store)) == (1, 1)

    async def test_the_bound_holds_over_the_chunks_of_a_call(
        self, store_url: str, store: Store
    ) -> None:
        async with bounded(store_url, max_backlog=CHUNK + 10) as client:
            with pytest.raises(QueueFull) as caught:
                await client.enqueue_many(jobs(2 * CHUNK))
            assert caught.value.job_ids == tuple(f"j{n}" for n in range(CHUNK + 10, 2 * CHUNK))
            assert await backlog(store) == CHUNK + 10

    async def test_replies_owed_are_bounded(self, store_url: str, store: Store) -> None:
        async with bounded(store_url, max_unread=3) as client:
            with pytest.raises(QueueFull) as caught:
                await client.enqueue_many(jobs(5))
            assert caught.value.job_ids == ("j3", "j4")
            assert "read replies" in caught.value.reason
            await fetch_all(store)
            await settle_all(store, client)
            with pytest.raises(QueueFull):  # answered but not read: still owed
                await client.enqueue(job("j3"))
            replies = client.replies()
            for _ in range(3):
                await anext(replies)
            assert await owed(store, client) == 3  # the last one was not asked past
            waiting = asyncio.ensure_future(anext(replies))

            async def owes_nothing() -> bool:
                return await owed(store, client) == 0

            await eventually(owes_nothing)
            waiting.cancel()
            assert await client.enqueue_many([job("j3"), job("j4")]) == ["j3", "j4"]

    async def test_a_named_stream_is_bounded_by_its_entries(
        self, store_url: str, store: Store
    ) -> None:
        for _ in range(2):
            await store.xadd(names.replies("0", "@sink"), {"n": 1, "r": "{}"})
        async with bounded(store_url, max_unread=2) as strict:
            with pytest.raises(QueueFull) as caught:
                await strict.enqueue_many(jobs(2), reply_to="sink")
            assert caught.value.job_ids == ("j0", "j1")
            await store.xtrim(names.replies("0", "@sink"), 1, approximate=False)
            await strict.enqueue_many(jobs(2), reply_to="sink")
            assert await owed(store, strict) == 0

    async def test_without_memory_nothing_is_accepted(self, store_url: str, store: Store) -> None:
        async with bounded(store_url) as client:
            await client.enqueue(job("before"))
            async with out_of_memory(store):
                with pytest.raises(QueueFull) as caught:
                    await client.enqueue_many([job("1"), job("before"), job("2")])
                assert caught.value.job_ids == ("1", "2")
                assert "memory" in caught.value.reason
                with pytest.raises(QueueFull) as caught:
                    await client.enqueue_many(jobs(CHUNK + 1))
                assert len(caught.value.job_ids) == CHUNK + 1
            await client.enqueue_many([job("1"), job("2")])
            assert await queued_ids(store) == ["before", "1", "2"]

    async def test_without_memory_jobs_are_still_settled_and_read(
        self, store_url: str, store: Store
    ) -> None:
        async with bounded(store_url) as client:
            await client.enqueue_many(jobs(3))
            await fetch_all(store)
            async with out_of_memory(store):
                await settle_all(store, client)
                replies = client.replies()
                assert [(await anext(replies)).id for _ in range(3)] == ["j0", "j1", "j2"]
                await cast("AsyncGenerator[Reply]", replies).aclose()

    async def test_the_sync_client_is_told_the_same(self, store_url: str, store: Store) -> None:
        with SyncClient(store_url, name="s", limits=Limits(max_backlog=2)) as client:
            with pytest.raises(QueueFull) as caught:
                client.enqueue_many(jobs(3))
            assert caught.value.job_ids == ("j2",)
            with pytest.raises(IdConflict) as conflict:
                client.enqueue_many([job("j0", "other"), job("j1")])
            assert conflict.value.job_ids == ("j0",)
            async with out_of_memory(store):
                with pytest.raises(QueueFull):
                    client.enqueue(job("j2"))


@asynccontextmanager
async def out_of_memory(store: Store) -> AsyncGenerator[None]:
    """Let the server be over its limit, with nothing to evict."""
    before = cast("dict[str, str]", await store.config_get("maxmemory*"))
    await store.config_set("maxmemory-policy", "noeviction")
    await store.config_set("maxmemory", 1)
    await store.delete(names.memory("0"))  # nobody expects the limit itself to change in a second
    try:
        yield
    finally:
        await store.config_set("maxmemory", before["maxmemory"])
        await store.config_set("maxmemory-policy", before["maxmemory-policy"])


class TestNames:
    async def test_a_client_that_lost_its_name_enqueues_nothing(
        self, client: Client, store: Store
    ) -> None:
        usurper = queue_scripts.claim_name("0", "producer", "another-token", 15_000)
        await store.hset(names.clients("0").decode(), "producer", "gone/1")
        assert await run(store, usurper) == 1
        with pytest.raises(ClientNameInUse):
            await client.enqueue(job("1"))
        assert await backlog(store) == 0

    async def test_a_name_that_ran_out_but_was_not_taken_is_still_good(
        self, client: Client, store: Store
    ) -> None:
        token = client._ledger.token
        await store.hset(names.clients("0").decode(), "producer", f"{token}/1")
        assert await client.enqueue(job("1")) == "1"

    async def test_a_name_that_was_lost_is_taken_again(self, client: Client, store: Store) -> None:
        """The store may lose it in a failover, and a sweep takes it from a client that slept."""
        await store.delete(names.clients("0"))
        await client.enqueue(job("1"))
        assert await backlog(store) == 1

    async def test_a_name_that_another_took_is_lost(self, client: Client, store: Store) -> None:
        await store.hset(names.clients("0").decode(), client.name, "other/99999999999999")
        with pytest.raises(ClientNameInUse):
            await client.enqueue(job("1"))
        assert await backlog(store) == 0


class TestShards:
    async def test_jobs_go_where_their_ids_say(self, store_url: str, store: Store) -> None:
        tags = shard_tags(4)
        async with Client(store_url, name="c", shards=4) as client:
            made = await client.enqueue_many([Job(task="echo", text="a")] * 3)
            named = await client.enqueue_many(jobs(40))
            for shard, tag in enumerate(tags):
                there = await queued_ids(store, Lane(tag, "default", "interactive"))
                assert there == [i for i in made + named if shard_of_job(i, 4) == shard]
                assert await owed(store, client, tag) == len(there) > 0

    async def test_ids_are_idempotent_on_every_shard(self, store_url: str, store: Store) -> None:
        async with Client(store_url, name="c", shards=4) as client:
            for _ in range(2):
                await client.enqueue_many(jobs(40))
            with pytest.raises(IdConflict) as caught:
                await client.enqueue_many([job(f"j{n}", "b") for n in range(40)] + jobs(2, "k"))
            assert set(caught.value.job_ids) == {f"j{n}" for n in range(40)}
            counts = [
                await backlog(store, Lane(tag, "default", "interactive")) for tag in shard_tags(4)
            ]
            assert sum(counts) == 42

    async def test_full_names_those_of_every_shard(self, store_url: str, store: Store) -> None:
        limits = Limits(max_backlog=2)
        async with Client(store_url, name="c", shards=4, limits=limits) as client:
            with pytest.raises(QueueFull) as caught:
                await client.enqueue_many(jobs(40))
            there: list[str] = []
            for tag in shard_tags(4):
                there += await queued_ids(store, Lane(tag, "default", "interactive"))
            assert len(there) == 8
            assert set(caught.value.job_ids) == {f"j{n}" for n in range(40)} - set(there)

    @pytest.mark.parametrize("odd_id", ["s9-x", "s-1-x", "s²-x", "s٣-x", "s1", "S1-x", "s01-x"])
    async def test_ids_that_look_like_ours(self, store_url: str, store: Store, odd_id: str) -> None:
        async with Client(store_url, name="c", shards=4) as client:
            assert await client.enqueue(job(odd_id)) == odd_id
            tag = shard_tags(4)[shard_of_job(odd_id, 4)]
            assert await queued_ids(store, Lane(tag, "default", "interactive")) == [odd_id]

    async def test_another_number_of_shards_is_refused(self, store_url: str) -> None:
        async with Client(store_url, shards=4):
            pass
        with pytest.raises(ConfigError, match="shards is 1, but this store was set up with 4"):
            async with Client(store_url):
                pytest.fail("entered")

    async def test_the_sync_client_refuses_it_too(self, store_url: str) -> None:
        """Jobs would go to streams that no worker reads."""
        async with Client(store_url, shards=1):
            pass
        with pytest.raises(ConfigError), SyncClient(store_url, shards=4):
            pytest.fail("entered")
