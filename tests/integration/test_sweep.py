"""The sweep: what the dead leave behind goes, a bounded piece a round, and nothing that lives."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis.asyncio

from askonce_queue import Client, Job, answer_scripts, names
from askonce_queue.buckets import OTHERS
from askonce_queue.scripts import run, send
from askonce_queue.store import Store as AskonceStore
from askonce_worker.pool import sweep
from tests.support.leftovers import (
    BEATS,
    CLIENTS,
    HOUR_MS,
    LANES,
    LAST,
    LEASES,
    OWED,
    SOLO,
    STAMPS,
    STATS,
    TRIES,
    TRY,
    calls,
    consumers,
    fill_hash,
    lease,
    make_groups,
    sweep_all,
    sweep_of,
)
from tests.support.queue_worker import BULK, INTERACTIVE, backlog, echo_worker, pending
from tests.support.virtual_scripts import START_MS
from tests.support.virtual_store import VirtualStore
from tests.support.waiting import eventually
from tests.support.worker_fleet import Fleet

Store = redis.asyncio.Redis
pytestmark = pytest.mark.usefixtures("store")  # every test begins with an empty store


@pytest.fixture
async def fleet(store_url: str, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with Fleet(store_url, tmp_path) as one:
        yield one


async def enqueue(url: str, amount: int, text: str = "text") -> None:
    jobs = [Job(task="echo", text=f"{text} {n}", id=f"j{n}") for n in range(amount)]
    async with Client(url) as client:
        await client.enqueue_many(jobs, reply_to="sink")


async def until_settled(store: Store) -> None:
    async def settled() -> bool:
        return await backlog(store) == 0

    await eventually(settled)


class TestConsumers:
    async def test_a_worker_outlives_its_sweep(self, store_url: str, store: Store) -> None:
        async with echo_worker(store_url, sweep_every_s=0.05).running():
            await send(store, "XGROUP", "CREATECONSUMER", INTERACTIVE.stream, names.GROUP, "dead")

            async def swept() -> bool:
                return b"dead" not in await consumers(store)

            await eventually(swept, timeout_s=3)
            await enqueue(store_url, 3)
            await until_settled(store)

    async def test_the_dead_go_when_they_hold_nothing(
        self, askonce_store: AskonceStore, store_url: str, store: Store
    ) -> None:
        worker = echo_worker(store_url)
        me = worker.consumer.encode()
        async with worker.running():
            await enqueue(store_url, 1)
            await until_settled(store)
            for lane in LANES:
                await send(store, "XGROUP", "CREATECONSUMER", lane.stream, names.GROUP, "dead")
            await store.hset(BEATS, "dead", 1)
            await store.hset(BEATS, "never fetched", 1)
            assert await sweep_of(askonce_store).once() == 2
            assert await consumers(store) == await consumers(store, BULK.stream) == {me}
            assert await store.hkeys(BEATS) == [me]

    async def test_one_that_came_back_without_a_heartbeat(
        self, askonce_store: AskonceStore, store: Store
    ) -> None:
        """It was swept while it was stopped in a read, which then made it anew."""
        await make_groups(store)
        await store.hset(BEATS, "alive", START_MS * 2)
        await send(store, "XGROUP", "CREATECONSUMER", BULK.stream, names.GROUP, "zombie")
        await send(store, "XGROUP", "CREATECONSUMER", BULK.stream, names.GROUP, "alive")
        await send(store, "XGROUP", "CREATECONSUMER", BULK.stream, names.GROUP, names.RETURNED)
        assert await sweep_of(askonce_store).once() == 1
        assert await consumers(store, BULK.stream) == {b"alive", names.RETURNED}

    async def test_one_that_holds_something_stays(
        self, askonce_store: AskonceStore, store_url: str, store: Store
    ) -> None:
        await make_groups(store)
        await enqueue(store_url, 3)
        await send(
            store,
            *("XREADGROUP", "GROUP", names.GROUP, "dead", "STREAMS", INTERACTIVE.stream, ">"),
        )
        await store.hset(BEATS, "dead", 1)
        assert await sweep_all(askonce_store) == 0
        assert await pending(store) == {"dead": 3}
        assert await store.hkeys(BEATS) == [b"dead"]

    async def test_a_store_that_nobody_has_served(self, askonce_store: AskonceStore) -> None:
        assert await sweep_of(askonce_store).once() == 0


class TestRecords:
    async def test_those_without_a_job_go(self, store_url: str, store: Store) -> None:
        await make_groups(store)
        virtual = VirtualStore(store_url)
        await virtual.advance(24 * HOUR_MS)
        async with Client(store_url, name="c") as client:
            await client.enqueue(Job(task="echo", text="a", id="there"), reply_to="sink")
        for field, place in (("gone", "interactive/1-1"), ("gone too", "bulk/99-0")):
            await store.hset(INTERACTIVE.ids, f"c/{field}", place)
        await store.hset(SOLO, "bulk/1-1", "1/x")
        assert await sweep_of(virtual).once() == 3
        await virtual.aclose()
        assert await store.hkeys(INTERACTIVE.ids) == [b"c/there"]
        assert not await store.exists(SOLO)

    async def test_young_ones_wait(self, askonce_store: AskonceStore, store: Store) -> None:
        seconds, _ = await store.time()
        await store.hset(INTERACTIVE.ids, "c/1", f"interactive/{seconds * 1000}-0")
        assert await sweep_of(askonce_store).once() == 0

    async def test_a_lane_of_a_newer_version_is_its_own_business(
        self, askonce_store: AskonceStore, store: Store
    ) -> None:
        await store.hset(INTERACTIVE.ids, "c/1", "express/1-1")
        assert await sweep_of(askonce_store).once() == 0

    @pytest.mark.parametrize(
        "place", ["", "interactive", "interactive/", "/1-1-1", "bulk/-", "bulk/x-1", "bulk/1", "\n"]
    )
    async def test_garbage_goes_and_stops_nothing(
        self, askonce_store: AskonceStore, store: Store, place: str
    ) -> None:
        await store.hset(INTERACTIVE.ids, "c/garbage", place)
        await store.hset(INTERACTIVE.ids, "c/huge", f"bulk/1-{'9' * 30}")
        await store.hset(INTERACTIVE.ids, "c/gone", "bulk/1-1")
        assert await sweep_of(askonce_store).once() == 3

    async def test_large_jobs_are_not_all_read_at_once(self, store_url: str, store: Store) -> None:
        """And what stands behind them in a page is reached all the same."""
        await make_groups(store)
        body = bytes(100_000)
        for n in range(100):
            await store.xadd(INTERACTIVE.stream.decode(), {"p": body}, f"{n + 1}-0")
            await store.hset(INTERACTIVE.ids, f"c/{n}", f"interactive/{n + 1}-0")
        await fill_hash(store, INTERACTIVE.ids, {f"c/gone{n}": "bulk/1-1" for n in range(10)})
        virtual = VirtualStore(store_url)
        await virtual.advance()
        one = sweep_of(virtual)
        rounds = 0
        while await store.hlen(INTERACTIVE.ids) > 100:
            await store.config_resetstat()
            await one.once()
            found = await calls(store, "xrange")
            assert found <= 2 * (11 + 10)  # a megabyte, and those that are gone
            await virtual.advance(1)
            rounds += 1
            assert rounds < 500
        await virtual.aclose()
        assert await backlog(store) == 100


class TestFills:
    async def test_leases_and_tries_of_the_dead(
        self, askonce_store: AskonceStore, fleet: Fleet, store: Store
    ) -> None:
        worker = await fleet.start()
        await enqueue(fleet.url, 10, "hold")
        await fleet.until_called(10)
        assert await sweep_of(askonce_store, lease_ttl_s=0.05).once() == 0
        worker.kill()
        worker.wait()
        assert await store.hlen(LEASES) == 10

        async def swept() -> bool:
            await sweep_of(askonce_store, lease_ttl_s=0.05).once()
            return not await store.exists(LEASES)

        await eventually(swept)

    async def test_a_lease_is_kept_for_six_more_terms(self, store_url: str, store: Store) -> None:
        virtual = VirtualStore(store_url)
        await virtual.advance()
        await store.hset(LEASES, "x" * 32, lease(START_MS + 5))
        one = sweep_of(virtual)
        await virtual.advance(5 + 60_000)
        assert await one.once() == 0
        await virtual.advance(1)
        assert await one.once() == 1
        await virtual.aclose()

    async def test_what_nobody_can_read_goes(
        self, askonce_store: AskonceStore, store: Store
    ) -> None:
        """A look-up would stumble over it again and again."""
        later = START_MS * 2
        await fill_hash(store, LEASES, {"a": "", "b": "short", "c": lease(later)})
        await fill_hash(store, TRIES, {"a": "", "b": "A", "c": TRY.pack(b"A", 1, later)})
        assert await sweep_of(askonce_store).once() == 4
        assert await store.hkeys(LEASES) == await store.hkeys(TRIES) == [b"c"]


class TestClients:
    async def test_those_that_vanished(
        self, askonce_store: AskonceStore, store_url: str, store: Store
    ) -> None:
        async with echo_worker(store_url).running(), Client(store_url, name="gone") as client:
            await client.enqueue_many([Job(task="echo", text=str(n)) for n in range(3)])
            await until_settled(store)
        stream = names.replies("0", "gone")
        assert await sweep_of(askonce_store).once() == 0
        assert await store.exists(stream)
        async with Client(store_url, name="live"):
            assert await sweep_of(askonce_store, retain_s=-1).once() == 1
            assert not await store.exists(stream)
            assert not await store.hexists(OWED, "gone")
            assert await store.hkeys(CLIENTS) == [b"live"]

    async def test_a_debt_without_a_name(self, askonce_store: AskonceStore, store: Store) -> None:
        await store.hset(CLIENTS, "known", f"token/{START_MS * 2}")
        await fill_hash(store, OWED, {"known": 3, "nobody": 2})
        for client in ("known", "nobody", "@named"):
            await store.xadd(names.replies("0", client).decode(), {"r": "x"})
        assert await sweep_of(askonce_store).once() == 1
        assert await store.hkeys(OWED) == [b"known"]
        kept = await store.keys("reply:*")
        assert set(kept) == {names.replies("0", "known"), names.replies("0", "@named")}


class TestTags:
    async def test_the_oldest_go_beyond_the_bound_with_the_answers_before_them(
        self, askonce_store: AskonceStore, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sweep, "MOST_TAGS", 3)
        for tag in "abcde":
            await run(store, answer_scripts.invalidate("0", everything=False, tags=[tag]))
        stamp = await store.zscore(LAST, "b")
        assert await sweep_of(askonce_store).once() == 2
        assert await store.zrange(LAST, 0, -1) == [b"c", b"d", b"e"]
        assert float(await store.hget(STAMPS, "base") or 0) == stamp
        assert await sweep_of(askonce_store).once() == 0

    async def test_it_never_goes_back(self, askonce_store: AskonceStore, store: Store) -> None:
        await run(store, answer_scripts.invalidate("0", everything=False, tags=["a"]))
        await store.zadd(LAST, {"old": 5.0})
        base = await store.hget(STAMPS, "base")
        assert await sweep_of(askonce_store).once() == 1
        assert await store.hget(STAMPS, "base") == base


class TestTotals:
    @pytest.mark.parametrize("most", [3, 50])
    async def test_too_many_are_added_up(
        self,
        askonce_store: AskonceStore,
        store: Store,
        monkeypatch: pytest.MonkeyPatch,
        most: int,
    ) -> None:
        monkeypatch.setattr(sweep, "MOST_TOTALS", most)
        fields = {f"task {n}|{name}": n for n in range(200) for name in ("memory", "model")}
        fields |= {"*|jobs_settled": 7, "*|jobs_buried": 2, "odd%7Ctask|memory": 1}
        await fill_hash(store, STATS, fields)
        await sweep_all(askonce_store)
        found: dict[bytes, bytes] = await send(store, "HGETALL", STATS)
        left = {field.decode(): int(n) for field, n in found.items()}
        # What belongs to no task stays, and so do the sums; they are two each.
        assert max(4, most - 2) <= len(left) <= max(4, most)
        assert left["*|jobs_settled"] == 7
        assert left["*|jobs_buried"] == 2
        for name, expected in (("memory", sum(range(200)) + 1), ("model", sum(range(200)))):
            assert sum(n for field, n in left.items() if field.endswith(f"|{name}")) == expected
            assert left[f"{OTHERS}|{name}"] > 0

    async def test_few_are_left_alone(self, askonce_store: AskonceStore, store: Store) -> None:
        await fill_hash(store, STATS, {f"task {n}|memory": n for n in range(1000)})
        assert await sweep_all(askonce_store) == 0
