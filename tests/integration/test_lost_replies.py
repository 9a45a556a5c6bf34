"""The server did it, but the reply was lost: nobody may lose a job by it, or get two replies."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import cast

import pytest
import redis.asyncio

from askonce_queue import Client, Job, Reply, StoreUnavailable, answer_scripts, names
from askonce_queue import queue_scripts as queue
from askonce_queue.connections import RETRIES
from askonce_queue.reply import decode_replies
from askonce_queue.scripts import Script, send
from askonce_worker.pool import intake
from tests.support.proxy import Command, Fault, Proxy, named, script
from tests.support.queue_worker import (
    BULK,
    INTERACTIVE,
    EchoModel,
    backlog,
    echo_worker,
    pending,
)
from tests.support.waiting import eventually

Store = redis.asyncio.Redis
pytestmark = pytest.mark.usefixtures("store")  # every test begins with an empty store
EVERY_TRY = RETRIES + 1


@pytest.fixture
async def proxy(store_url: str) -> AsyncIterator[Proxy]:
    async with Proxy(store_url) as one:
        yield one


def jobs(amount: int) -> list[Job]:
    return [Job(task="echo", text=f"text {n}", id=f"j{n}") for n in range(amount)]


def add_fault(proxy: Proxy, kind: str, bound: Script, times: int = 1) -> Fault:
    add = proxy.drop_reply if kind == "drop" else proxy.cut_reply
    return add(script(bound), times=times)


async def named_replies(store: Store, amount: int, timeout_s: float = 10.0) -> list[Reply]:
    """All replies in the stream `sink`, once there are `amount` and the backlog is empty."""

    async def all_of() -> list[Reply]:
        entries = cast(
            "list[tuple[bytes, list[bytes]]]",
            await send(store, "XRANGE", names.replies("0", "@sink"), "-", "+"),
        )
        found = [reply for _, fields in entries for reply in decode_replies(fields[3])[0]]
        enough = len(found) >= amount and await backlog(store) == 0
        return found if enough else []

    return await eventually(all_of, timeout_s)


async def owes(store: Store, name: str, amount: int) -> None:
    async def as_said() -> bool:
        return int(await store.hget(names.owed("0").decode(), name) or 0) == amount

    await eventually(as_said)


@pytest.mark.parametrize("kind", ["drop", "cut"])
class TestOnce:
    """One reply is lost, or cut in its frame."""

    async def test_enqueue(self, proxy: Proxy, store_url: str, store: Store, kind: str) -> None:
        fault = add_fault(proxy, kind, queue._ENQUEUE)
        async with Client(proxy.url, name="c") as client:
            asking = [asyncio.create_task(client.ask(job)) for job in jobs(1)]
            await eventually(lambda: fault.seen == 2)
            assert await backlog(store) == 1
            async with echo_worker(store_url).running():
                (reply,) = await asyncio.gather(*asking)
                assert reply.id == "j0"
                await owes(store, "c", 0)
            assert client._ledger.duplicates == 0

    async def test_enqueue_of_a_job_that_is_settled_before_it_is_sent_again(
        self, proxy: Proxy, store_url: str, store: Store, kind: str
    ) -> None:
        """The second try makes a new job, and its reply is nobody's."""
        model = EchoModel()
        fault = add_fault(proxy, kind, queue._ENQUEUE)
        async with echo_worker(store_url, model).running():
            async with Client(proxy.url, name="c") as client:
                found = [reply.id async for reply in client.ask_many(jobs(50))]
                assert sorted(found) == sorted(f"j{n}" for n in range(50))
                await owes(store, "c", 0)
            assert fault.struck == 1
            assert len(model.asked) == 50

    async def test_read_of_jobs(
        self, proxy: Proxy, store_url: str, store: Store, kind: str
    ) -> None:
        model = EchoModel()
        add = proxy.drop_reply if kind == "drop" else proxy.cut_reply
        fault = add(named(b"XREADGROUP"))
        async with echo_worker(proxy.url, model).running(), Client(store_url) as client:
            await client.enqueue_many(jobs(50), reply_to="sink")
            # At once: not when they are old enough to be found as strays.
            found = await named_replies(store, 50, timeout_s=3)
            assert Counter(reply.id for reply in found) == Counter(f"j{n}" for n in range(50))
            assert sorted(model.asked) == sorted(f"text {n}" for n in range(50))
            assert fault.struck == 1

    async def test_read_of_replies(
        self, proxy: Proxy, store_url: str, store: Store, kind: str
    ) -> None:
        add = proxy.drop_reply if kind == "drop" else proxy.cut_reply
        fault = add(named(b"XREAD"))
        async with echo_worker(store_url).running(), Client(proxy.url, name="c") as client:
            found = [reply.id async for reply in client.ask_many(jobs(50))]
            assert sorted(found) == sorted(f"j{n}" for n in range(50))
            assert fault.struck == 1
            await owes(store, "c", 0)

    async def test_look_up(self, proxy: Proxy, store_url: str, store: Store, kind: str) -> None:
        model = EchoModel()
        fault = add_fault(proxy, kind, answer_scripts._LOOK_UP)
        worker = echo_worker(proxy.url, model)
        async with worker.running(), Client(store_url) as client:
            await client.ask(jobs(1)[0])
            assert (fault.struck, fault.seen) == (1, 2)
            assert model.asked == ["text 0"]
            assert worker.counters.total("calls_fill") == 1
            assert not await store.exists(names.leases("0"))

    async def test_fill(self, proxy: Proxy, store_url: str, store: Store, kind: str) -> None:
        model = EchoModel()
        fault = add_fault(proxy, kind, answer_scripts._FILL)
        async with Client(store_url) as client:
            async with echo_worker(proxy.url, model).running():
                await client.enqueue_many(jobs(20), reply_to="sink")
                found = await named_replies(store, 20)
                assert Counter(reply.id for reply in found) == Counter(f"j{n}" for n in range(20))
                assert fault.struck == 1
                assert not await store.exists(names.leases("0"))
            async with echo_worker(store_url, model).running():
                replies = [reply async for reply in client.ask_many(jobs(20))]
                assert {reply.source for reply in replies} == {"store"}
            assert len(model.asked) == 20

    async def test_settle(self, proxy: Proxy, store_url: str, store: Store, kind: str) -> None:
        fault = add_fault(proxy, kind, queue._SETTLE)
        worker = echo_worker(proxy.url)
        async with worker.running(), Client(store_url, name="c") as client:
            await client.enqueue_many(jobs(50), reply_to="sink")
            await eventually(lambda: fault.struck and len(worker._held) == 0)  # sent twice
            found = await named_replies(store, 50)
            assert Counter(reply.id for reply in found) == Counter(f"j{n}" for n in range(50))
            assert not await store.exists(INTERACTIVE.ids)
            assert await pending(store) == {}

    async def test_bury(self, proxy: Proxy, store_url: str, store: Store, kind: str) -> None:
        fault = add_fault(proxy, kind, queue._BURY)
        async with echo_worker(proxy.url).running(), Client(store_url) as client:
            await client.enqueue(Job(task="nope", text="a", id="bad"), reply_to="sink")
            await eventually(lambda: fault.seen == 2)
            (reply,) = await named_replies(store, 1)
            assert reply.id == "bad"
            assert await store.xlen(names.dead("0", "default")) == 1

    async def test_hand_over(self, proxy: Proxy, store_url: str, store: Store, kind: str) -> None:
        fault = add_fault(proxy, kind, queue._HAND_OVER)
        async with Client(proxy.url, name="c") as client:
            await client.enqueue(Job(task="echo", text="later", id="later"), lane="bulk")
            async with echo_worker(store_url).running():
                await client.ask(jobs(1)[0])
                await eventually(lambda: fault.seen == 2)
                await anext(client.replies())
                await owes(store, "c", 1)  # `later` was not asked past

    async def test_names(self, proxy: Proxy, store: Store, kind: str) -> None:
        taken = add_fault(proxy, kind, queue._CLAIM_NAME)
        given_back = add_fault(proxy, kind, queue._RELEASE_NAME)
        async with Client(proxy.url, name="c"):
            pass
        assert (taken.struck, given_back.struck) == (1, 1)
        assert not await store.exists(names.clients("0"))

    async def test_drain(self, proxy: Proxy, store_url: str, store: Store, kind: str) -> None:
        model = EchoModel()
        model.open.clear()
        faults = [add_fault(proxy, kind, one) for one in (queue._GIVE_BACK, queue._LEAVE)]
        async with Client(store_url) as client:
            await client.enqueue_many(jobs(20), reply_to="sink")
            async with echo_worker(proxy.url, model, drain_s=0.01).running():
                await eventually(lambda: len(model.asked) == 20)
            assert [fault.struck for fault in faults] == [1, 1]
            assert await pending(store) == {"returned": 20}
            assert not await store.exists(names.beats("0", "default"))


class TestEveryTry:
    """The command and all its retries lose their replies: the store looks dead, but is not."""

    async def test_enqueue(self, proxy: Proxy, store_url: str, store: Store) -> None:
        proxy.drop_reply(script(queue._ENQUEUE), times=EVERY_TRY)
        async with Client(proxy.url, name="c") as client:
            with pytest.raises(StoreUnavailable):
                await client.enqueue_many(jobs(3))
            assert await client.enqueue_many(jobs(3)) == ["j0", "j1", "j2"]
            assert await backlog(store) == 3
            replies = client.replies()
            async with echo_worker(store_url).running():
                assert sorted([(await anext(replies)).id for _ in range(3)]) == ["j0", "j1", "j2"]
            assert client.outstanding == 0

    async def test_look_up_leaves_no_lease_beyond_its_time(
        self, proxy: Proxy, store_url: str, store: Store
    ) -> None:
        model = EchoModel()
        fault = proxy.drop_reply(script(answer_scripts._LOOK_UP), times=EVERY_TRY)
        worker = echo_worker(proxy.url, model, lease_ttl_s=0.8, lease_renew_s=0.2)
        async with worker.running(), Client(store_url) as client:
            began = asyncio.get_running_loop().time()
            await client.ask(jobs(1)[0], timeout_s=10)
            assert asyncio.get_running_loop().time() - began < 5
            assert fault.struck == EVERY_TRY
            assert model.asked == ["text 0"]
            assert not await store.exists(names.leases("0"))

    async def test_fill(self, proxy: Proxy, store_url: str) -> None:
        """The answer was written; this worker does not know, and replies all the same."""
        model = EchoModel()
        proxy.drop_reply(script(answer_scripts._FILL), times=EVERY_TRY)
        async with Client(store_url) as client:
            async with echo_worker(proxy.url, model).running():
                assert (await client.ask(jobs(1)[0])).source == "model"
            async with echo_worker(store_url, model).running():
                assert (await client.ask(jobs(1)[0])).source == "store"
            assert model.asked == ["text 0"]

    async def test_settle(self, proxy: Proxy, store_url: str, store: Store) -> None:
        fault = proxy.drop_reply(script(queue._SETTLE), times=2 * EVERY_TRY)
        worker = echo_worker(proxy.url)
        async with worker.running(), Client(store_url) as client:
            await client.enqueue_many(jobs(5), reply_to="sink")
            await eventually(lambda: fault.struck == 2 * EVERY_TRY)
            await eventually(lambda: len(worker._held) == 0)
            assert len(await named_replies(store, 5)) == 5

    async def test_hand_over(self, proxy: Proxy, store_url: str, store: Store) -> None:
        fault = proxy.drop_reply(script(queue._HAND_OVER), times=EVERY_TRY)
        async with echo_worker(store_url).running(), Client(proxy.url, name="c") as client:
            await client.ask(jobs(1)[0])
            await eventually(lambda: fault.seen > EVERY_TRY)
            await owes(store, "c", 0)

    async def test_claim(
        self, proxy: Proxy, store_url: str, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Deliveries came to this worker without its knowledge: it takes them up as strays."""
        monkeypatch.setattr(intake, "STRAY_CHECK_S", 0.2)
        monkeypatch.setattr(intake, "STRAY_IDLE_MS", 200)

        def of_interactive(command: Command) -> bool:
            return script(queue._CLAIM)(command) and INTERACTIVE.stream in command

        fault = proxy.drop_reply(of_interactive)
        async with Client(store_url) as client:
            await client.enqueue_many(jobs(5), reply_to="sink")
            await deliver_to_the_dead(store)
            worker = echo_worker(proxy.url)
            async with worker.running():
                assert len(await named_replies(store, 5)) == 5
            assert fault.struck == 1
            assert worker.counters.total("deliveries_reclaimed") == 0

    @pytest.mark.parametrize("times", [1, EVERY_TRY])
    async def test_count_solo_condemns_nobody(
        self, proxy: Proxy, store_url: str, store: Store, times: int
    ) -> None:
        fault = proxy.drop_reply(script(queue._COUNT_SOLO), times=times)
        async with Client(store_url) as client:
            await client.enqueue_many(jobs(3), reply_to="sink")
            await deliver_to_the_dead(store, times=3)
            async with echo_worker(proxy.url, poison_limit=1).running():
                await eventually(lambda: fault.struck == times)
                found = await named_replies(store, 3)
            assert [reply.error for reply in found] == [None] * 3

    async def test_claim_of_the_next_lane(
        self, proxy: Proxy, store_url: str, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What was taken of the first lane is not forgotten."""
        monkeypatch.setattr(intake, "STRAY_CHECK_S", 0.2)
        monkeypatch.setattr(intake, "STRAY_IDLE_MS", 200)

        def of_bulk(command: Command) -> bool:
            return script(queue._CLAIM)(command) and BULK.stream in command

        async with Client(store_url) as client:
            await client.enqueue(Job(task="echo", text="b", id="b"), lane="bulk", reply_to="sink")
            await deliver_to_the_dead(store, BULK)
            fault = proxy.drop_reply(of_bulk, times=EVERY_TRY)
            await client.enqueue_many(jobs(5), reply_to="sink")
            await deliver_to_the_dead(store)
            async with echo_worker(proxy.url).running():
                await eventually(lambda: fault.struck == EVERY_TRY)
                assert len(await named_replies(store, 6)) == 6


async def deliver_to_the_dead(store: Store, lane: queue.Lane = INTERACTIVE, times: int = 1) -> None:
    """Let a worker that is dead have fetched all jobs of a lane, `times` times."""
    stream = lane.stream
    await send(store, "XGROUP", "CREATE", stream, names.GROUP, "0")
    for _ in range(times):
        await send(store, "XREADGROUP", "GROUP", names.GROUP, "dead", "STREAMS", stream, ">")
        ids = await send(store, "XPENDING", stream, names.GROUP, "-", "+", 1000)
        await send(
            store,
            *("XCLAIM", stream, names.GROUP, "dead", 0, *[row[0] for row in ids]),
            *("RETRYCOUNT", times),
        )


async def test_a_reply_that_is_late_changes_nothing(proxy: Proxy, store_url: str) -> None:
    fault = proxy.delay_reply(script(queue._SETTLE))
    worker = echo_worker(proxy.url)
    async with worker.running(), Client(store_url) as client:
        first = await client.ask(jobs(1)[0])
        await eventually(lambda: fault.struck)
        assert first.id == "j0"
        assert len(worker._held) == 1
        later = asyncio.create_task(client.ask(jobs(2)[1]))
        await eventually(lambda: len(worker._held) == 2)
        fault.released.set()
        assert (await later).id == "j1"
        await eventually(lambda: len(worker._held) == 0)


@pytest.mark.parametrize("seed", [1, 2])
async def test_one_reply_in_thirty_is_lost_everywhere(
    proxy: Proxy, store: Store, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "STRAY_CHECK_S", 0.2)
    monkeypatch.setattr(intake, "STRAY_IDLE_MS", 200)
    rng = random.Random(seed)
    fault = proxy.drop_reply(lambda _: rng.random() < 1 / 30, times=1 << 30)
    async with (
        Client(proxy.url, name="c") as client,
        echo_worker(proxy.url, batch=20).running(),
        echo_worker(proxy.url, batch=20).running(),
    ):
        found = [reply async for reply in client.ask_many(jobs(400), window=40)]
        lost, fault._times = fault.struck, 0
        assert lost >= 3
        assert Counter(reply.id for reply in found) == Counter(f"j{n}" for n in range(400))
        assert all(reply.answer is not None for reply in found)
        await owes(store, "c", 0)
