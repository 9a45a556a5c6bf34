"""The client against a real worker: every job is handed exactly one reply."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import cast

import pytest
import redis.asyncio

from askonce_queue import (
    Client,
    ClientNameInUse,
    IdConflict,
    InvalidJob,
    Job,
    Limits,
    QueueFull,
    Reply,
    ReplyTimeout,
    StoreUnavailable,
    names,
)
from askonce_queue.embedded import EmbeddedStore
from askonce_queue.reply import Answer, decode_replies
from askonce_queue.scripts import send
from askonce_queue.shards import shard_tags
from askonce_queue.sync import Client as SyncClient
from tests.support.embedded_server import server_pid
from tests.support.queue_worker import EchoModel, backlog, echo_worker
from tests.support.waiting import eventually

Store = redis.asyncio.Redis
pytestmark = pytest.mark.usefixtures("store")  # every test begins with an empty store


def job(text: str, job_id: str | None = None) -> Job:
    return Job(task="echo", text=text, id=job_id)


def jobs(amount: int, prefix: str = "j") -> list[Job]:
    return [job(f"text {n}", f"{prefix}{n}") for n in range(amount)]


def label(reply: Reply) -> str | None:
    assert reply.error is None
    assert reply.answer is not None
    return reply.answer.label


async def take(replies: AsyncIterator[Reply], amount: int, timeout_s: float = 5.0) -> list[Reply]:
    """The next `amount` replies, or those that came in time."""
    found: list[Reply] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while len(found) < amount:
                found.append(await anext(replies))
    return found


async def owed(store: Store, name: str) -> int:
    return int(await store.hget(names.owed("0").decode(), name) or 0)


async def until_nothing_is_owed(store: Store, name: str) -> None:
    async def nothing() -> bool:
        return await owed(store, name) == 0

    await eventually(nothing)
    assert await store.xlen(names.replies("0", name)) == 0


class TestAsk:
    async def test_an_answer(self, store_url: str) -> None:
        async with echo_worker(store_url).running(), Client(store_url) as client:
            reply = await client.ask(job("hi"))
            assert (label(reply), reply.source) == ("HI", "model")
            again = await client.ask(job("hi"))
            assert (label(again), again.source) == ("HI", "memory")
            assert again.id != reply.id
            assert client.outstanding == 0

    async def test_an_error_is_a_reply(self, store_url: str) -> None:
        async with echo_worker(store_url).running(), Client(store_url) as client:
            reply = await client.ask(Job(task="nope", text="hi"))
            assert reply.answer is None
            assert reply.error is not None
            assert reply.error.code == "unknown_task"
            assert "known tasks: echo" in reply.error.message

    async def test_many_at_once(self, store_url: str) -> None:
        model = EchoModel()
        async with echo_worker(store_url, model).running(), Client(store_url) as client:
            asks = [client.ask(job(f"t{n % 10}")) for n in range(300)]
            replies = await asyncio.gather(*asks)
            assert [label(reply) for reply in replies] == [f"T{n % 10}" for n in range(300)]
            assert len({reply.id for reply in replies}) == 300
            assert sorted(model.asked) == [f"t{n}" for n in range(10)]

    async def test_a_late_reply_is_not_handed_to_anybody(
        self, store_url: str, store: Store
    ) -> None:
        async with Client(store_url, name="c") as client:
            with pytest.raises(ReplyTimeout, match="no reply to job 1 within"):
                await client.ask(job("hi", "1"), timeout_s=0.05)
            assert client.outstanding == 0
            assert await owed(store, "c") == await backlog(store) == 1
            async with echo_worker(store_url).running():
                await until_nothing_is_owed(store, "c")
                assert label(await client.ask(job("hi", "1"))) == "HI"

    async def test_the_same_id_again_after_a_timeout_is_the_same_job(self, store_url: str) -> None:
        async with Client(store_url) as client:
            with pytest.raises(ReplyTimeout):
                await client.ask(job("hi", "1"), timeout_s=0.01)
            asking = asyncio.create_task(client.ask(job("hi", "1")))
            async with echo_worker(store_url).running():
                assert label(await asking) == "HI"

    async def test_two_who_ask_with_one_id(self, store_url: str) -> None:
        async with Client(store_url) as client:
            first = asyncio.create_task(client.ask(job("hi", "1")))
            await eventually(lambda: client.outstanding)
            with pytest.raises(IdConflict):
                await client.ask(job("hi", "1"))
            async with echo_worker(store_url).running():
                assert label(await first) == "HI"

    async def test_invalid_jobs_are_refused_at_once(self, store_url: str) -> None:
        async with Client(store_url) as client:
            for bad in (Job(task="echo"), job("\ud800"), job("x", "")):
                with pytest.raises(InvalidJob):
                    await client.ask(bad)
            assert client.outstanding == 0

    async def test_cancelling_one_who_asks_disturbs_nobody(
        self, store_url: str, store: Store
    ) -> None:
        model = EchoModel()
        model.open.clear()
        async with echo_worker(store_url, model).running(), Client(store_url, name="c") as client:
            asks = [asyncio.create_task(client.ask(job("same"))) for _ in range(3)]
            await eventually(lambda: model.asked)
            asks[0].cancel()
            model.open.set()
            assert [label(await ask) for ask in asks[1:]] == ["SAME", "SAME"]
            await until_nothing_is_owed(store, "c")
            with pytest.raises(asyncio.CancelledError):
                await asks[0]

    async def test_cancelled_as_the_reply_arrives(self, store_url: str, store: Store) -> None:
        async with Client(store_url, name="c") as client:
            asking = asyncio.create_task(client.ask(job("hi")))
            receive = client._ledger.receive

            def receive_and_cancel(tag: str, entry_id: bytes, lines: bytes) -> None:
                receive(tag, entry_id, lines)
                asking.cancel()

            client._ledger.receive = receive_and_cancel  # type: ignore[method-assign]
            async with echo_worker(store_url).running():
                await asyncio.wait([asking])
                async with asyncio.timeout(2):
                    await until_nothing_is_owed(store, "c")

    async def test_errors_leave_the_block_as_they_are(self, store_url: str) -> None:
        with pytest.raises(InvalidJob):
            async with Client(store_url) as client:
                await client.ask(Job(task="echo"))

    async def test_another_task_may_close_it(self, store_url: str) -> None:
        """As pytest's fixtures and the start and stop hooks of web servers do."""
        client = Client(store_url)
        await asyncio.create_task(client.__aenter__())
        try:
            await client.__aexit__(None, None, None)
        finally:
            for task in asyncio.all_tasks() - {cast("asyncio.Task[None]", asyncio.current_task())}:
                task.cancel()


class TestAskMany:
    async def test_as_they_arrive(self, store_url: str, store: Store) -> None:
        async with echo_worker(store_url).running(), Client(store_url, name="c") as client:
            found = [reply async for reply in client.ask_many(jobs(1234))]
            assert Counter(reply.id for reply in found) == Counter(f"j{n}" for n in range(1234))
            assert {reply.id: label(reply) for reply in found}["j7"] == "TEXT 7"
            await until_nothing_is_owed(store, "c")

    async def test_in_order(self, store_url: str) -> None:
        async with echo_worker(store_url).running(), Client(store_url) as client:
            asked = [job(f"text {n % 100}", str(n)) for n in range(1234)]
            found = [reply async for reply in client.ask_many(asked, ordered=True, window=300)]
            assert [reply.id for reply in found] == [str(n) for n in range(1234)]
            assert label(found[777]) == "TEXT 77"

    async def test_several_at_once(self, store_url: str) -> None:
        async def all_of(prefix: str, *, ordered: bool) -> list[str]:
            asked = client.ask_many(jobs(300, prefix), ordered=ordered)
            return [reply.id async for reply in asked]

        async with echo_worker(store_url).running(), Client(store_url) as client:
            a, b = await asyncio.gather(all_of("a", ordered=True), all_of("b", ordered=False))
            assert a == [f"a{n}" for n in range(300)]
            assert sorted(b) == sorted(f"b{n}" for n in range(300))

    async def test_no_jobs(self, store_url: str) -> None:
        async with Client(store_url) as client:
            assert [reply async for reply in client.ask_many([])] == []

    @pytest.mark.parametrize("limits", [Limits(max_backlog=7), Limits(max_unread=7)])
    async def test_it_waits_where_the_queue_is_full(
        self, store_url: str, store: Store, limits: Limits
    ) -> None:
        worker = echo_worker(store_url)
        async with worker.running(), Client(store_url, name="c", limits=limits) as client:
            found = [reply.id async for reply in client.ask_many(jobs(30), ordered=True)]
            assert found == [f"j{n}" for n in range(30)]
            await until_nothing_is_owed(store, "c")

    async def test_the_source_is_read_as_needed_and_abandoning_settles_all(
        self, store_url: str, store: Store
    ) -> None:
        read: list[int] = []

        def endless() -> Iterator[Job]:
            for n in count():
                read.append(n)
                yield job(f"text {n}")

        async with echo_worker(store_url).running(), Client(store_url, name="c") as client:
            asking = client.ask_many(endless(), window=50)
            for _ in range(3):
                await anext(asking)
            await cast("AsyncGenerator[Reply]", asking).aclose()
            assert len(read) <= 150
            assert client.outstanding == 0
            await until_nothing_is_owed(store, "c")

    async def test_a_conflict_is_raised(self, store_url: str) -> None:
        async with Client(store_url) as client:
            await client.enqueue(job("hi", "1"))
            with pytest.raises(IdConflict):
                await anext(client.ask_many([job("hi", "1")]))

    async def test_a_conflict_costs_nobody_else_the_reply(self, store_url: str) -> None:
        async with Client(store_url) as client:
            asking = asyncio.create_task(client.ask(job("hi", "1"), timeout_s=3))
            await eventually(lambda: client.outstanding)
            with pytest.raises(IdConflict):
                await anext(client.ask_many([job("hi", "1")]))
            async with echo_worker(store_url).running():
                assert label(await asking) == "HI"


class TestReplies:
    async def test_what_was_enqueued_comes(self, store_url: str) -> None:
        async with echo_worker(store_url).running(), Client(store_url, name="c") as client:
            ids = await client.enqueue_many(jobs(20))
            ids.append(await client.enqueue(job("one more"), lane="bulk"))
            found = await take(client.replies(), 21)
            assert sorted(reply.id for reply in found) == sorted(ids)
            assert client.outstanding == 0

    async def test_asking_and_replies_do_not_mix(self, store_url: str) -> None:
        async with echo_worker(store_url).running(), Client(store_url) as client:
            await client.enqueue_many(jobs(5))
            assert label(await client.ask(job("mine"))) == "MINE"
            found = await take(client.replies(), 5)
            assert sorted(reply.id for reply in found) == [f"j{n}" for n in range(5)]

    async def test_one_reply_for_a_job_enqueued_thrice(self, store_url: str) -> None:
        async with Client(store_url, name="c") as client:
            for _ in range(3):
                await client.enqueue_many(jobs(5))
            async with echo_worker(store_url).running():
                found = await take(client.replies(), 6, timeout_s=1)
            assert sorted(reply.id for reply in found) == [f"j{n}" for n in range(5)]

    async def test_a_conflict_does_not_cost_the_first_its_reply(self, store_url: str) -> None:
        async with Client(store_url) as client:
            await client.enqueue(job("first", "1"))
            with pytest.raises(IdConflict):
                await client.enqueue(job("second", "1"))
            async with echo_worker(store_url).running():
                assert [label(one) for one in await take(client.replies(), 1, 2)] == ["FIRST"]

    async def test_two_readers_share_the_replies(self, store_url: str) -> None:
        async with echo_worker(store_url).running(), Client(store_url) as client:
            reading = [asyncio.create_task(take(client.replies(), 1, 2)) for _ in range(2)]
            await asyncio.sleep(0)
            for text in ("one", "two"):
                await client.enqueue(job(text))
            found = [
                label(reply) for replies in await asyncio.gather(*reading) for reply in replies
            ]
            assert sorted(map(str, found)) == ["ONE", "TWO"]

    async def test_a_reply_that_cannot_be_read_harms_only_itself(
        self, store_url: str, store: Store
    ) -> None:
        """A newer worker may send an error code that this client does not know."""
        async with Client(store_url, name="c") as client:
            strange = b'{"id":"x","error":{"code":"brand_new","message":"m"}}\n'
            await store.xadd(names.replies("0", "c"), {"n": 1, "r": strange})
            async with echo_worker(store_url).running():
                assert label(await client.ask(job("hi"), timeout_s=3)) == "HI"


class TestNamedStreams:
    async def test_anybody_can_read_them(self, store_url: str, store: Store) -> None:
        async with echo_worker(store_url).running(), Client(store_url, name="c") as client:
            ids = await client.enqueue_many(
                [*jobs(20), Job(task="nope", text="x", id="bad")], reply_to="sink"
            )
            stream = names.replies("0", "@sink")
            replies: list[Reply] = []

            async def all_there() -> bool:
                entries = cast("list[list[object]]", await send(store, "XRANGE", stream, "-", "+"
                ))  # fmt: skip
                replies.clear()
                for _, fields in entries:
                    name_n, amount, name_r, lines = cast("list[bytes]", fields)
                    assert (name_n, name_r) == (b"n", b"r")
                    found, _ = decode_replies(lines)
                    assert len(found) == int(amount)
                    replies.extend(found)
                return len(replies) == 21

            await eventually(all_there)
            assert sorted(reply.id for reply in replies) == sorted(ids)
            by_id = {reply.id: reply for reply in replies}
            assert by_id["j3"].answer == Answer(label="TEXT 3")
            assert by_id["bad"].error is not None
            assert client.outstanding == 0
            assert await owed(store, "c") == 0

    async def test_they_stay_when_the_client_leaves(self, store_url: str, store: Store) -> None:
        async with Client(store_url, name="c") as client:
            await client.enqueue_many(jobs(3), reply_to="sink")
        async with echo_worker(store_url).running():

            async def answered() -> bool:
                return await backlog(store) == 0

            await eventually(answered)
        ((_, fields),) = await send(store, "XRANGE", names.replies("0", "@sink"), "-", "+")
        assert len(decode_replies(fields[3])[0]) == 3


class TestNames:
    async def test_one_live_client_a_name(self, store_url: str) -> None:
        async with Client(store_url, name="c"):
            with pytest.raises(ClientNameInUse):
                async with Client(store_url, name="c"):
                    pytest.fail("entered")
        async with Client(store_url, name="c"):
            pass

    async def test_without_a_name_each_gets_its_own(self, store_url: str) -> None:
        async with Client(store_url) as a, Client(store_url) as b:
            assert a.name != b.name

    async def test_nothing_is_left_of_a_client_that_is_owed_nothing(
        self, store_url: str, store: Store
    ) -> None:
        async with echo_worker(store_url).running(), Client(store_url, name="c") as client:
            await client.ask(job("hi"))
        for key in (names.clients("0"), names.owed("0"), names.replies("0", "c")):
            assert not await store.exists(key)

    async def test_a_client_that_lost_its_name_says_so(self, store_url: str, store: Store) -> None:
        async with Client(store_url, name="c") as client:
            await store.hset(names.clients("0").decode(), "c", "another/99999999999999")
            with pytest.raises(ClientNameInUse):
                await client.ask(job("hi"))
            assert client.outstanding == 0


PRODUCER = """
import asyncio, sys
from askonce_queue import Client, Job
async def main():
    async with Client(sys.argv[1], name="c") as client:
        await client.enqueue_many(
            [Job(task="echo", text=f"text {n}", id=f"j{n}") for n in range(int(sys.argv[2]))]
        )
        print("enqueued", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


async def killed_producer(store: Store, store_url: str, amount: int) -> None:
    """Let a process enqueue as client "c" and kill it; let its hold on the name run out."""
    process = subprocess.Popen(  # noqa: ASYNC220 -- forking is quick, and it is a test
        [sys.executable, "-c", PRODUCER, store_url, str(amount)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    with process.stdout as stdout:
        assert await asyncio.to_thread(stdout.readline) == b"enqueued\n"
        process.kill()
        process.wait()
    with pytest.raises(ClientNameInUse):
        async with Client(store_url, name="c"):
            pytest.fail("entered")
    await store.hset(names.clients("0").decode(), "c", "gone/1")


async def until_answered(store: Store) -> None:
    async def answered() -> bool:
        return await backlog(store) == 0

    await eventually(answered)


class TestResume:
    async def test_unread_replies_come_first_and_once(self, store_url: str, store: Store) -> None:
        await killed_producer(store, store_url, 700)
        async with echo_worker(store_url).running():
            await until_answered(store)
            async with Client(store_url, name="c") as client:
                found = await take(client.replies(), 701, timeout_s=0.5)
                assert sorted(reply.id for reply in found) == sorted(f"j{n}" for n in range(700))

    async def test_asking_again_takes_what_is_there_and_asks_for_the_rest(
        self, store_url: str, store: Store
    ) -> None:
        model = EchoModel()
        await killed_producer(store, store_url, 700)
        async with echo_worker(store_url, model).running():
            await until_answered(store)
            async with Client(store_url, name="c") as client:
                again = client.ask_many(jobs(1000), ordered=True)
                found = [reply async for reply in again]
                assert [reply.id for reply in found] == [f"j{n}" for n in range(1000)]
                assert len(model.asked) == len(set(model.asked)) == 1000
                await until_nothing_is_owed(store, "c")
        assert not await store.exists(names.clients("0"))

    async def test_asking_again_for_what_is_outstanding(self, store_url: str, store: Store) -> None:
        await killed_producer(store, store_url, 700)
        async with Client(store_url, name="c") as client:
            asking = asyncio.create_task(take(client.ask_many(jobs(700), ordered=True), 700))
            await eventually(lambda: client.outstanding == 700)
            async with echo_worker(store_url).running():
                assert [reply.id for reply in await asking] == [f"j{n}" for n in range(700)]
                await until_nothing_is_owed(store, "c")

    async def test_replies_that_come_later_are_handed_too(
        self, store_url: str, store: Store
    ) -> None:
        await killed_producer(store, store_url, 20)
        async with Client(store_url, name="c") as client, echo_worker(store_url).running():
            found = await take(client.replies(), 20, timeout_s=2)
            assert sorted(reply.id for reply in found) == sorted(f"j{n}" for n in range(20))

    async def test_what_was_not_handed_over_comes_again(self, store_url: str, store: Store) -> None:
        async with echo_worker(store_url).running():
            async with Client(store_url, name="c") as client:
                await client.enqueue_many(jobs(3))
                await until_answered(store)
            async with Client(store_url, name="c") as client:
                assert len(await take(client.replies(), 4, timeout_s=0.3)) == 3
                await until_nothing_is_owed(store, "c")

    async def test_what_is_owed_bounds_the_next_client_too(
        self, store_url: str, store: Store
    ) -> None:
        await killed_producer(store, store_url, 5)
        async with Client(store_url, name="c", limits=Limits(max_unread=5)) as client:
            with pytest.raises(QueueFull) as caught:
                await client.enqueue(job("more", "more"))
            assert caught.value.job_ids == ("more",)


class TestStoreRestart:
    async def test_one_who_waits_gets_the_reply_after_it(self, state_folder: Path) -> None:
        async with EmbeddedStore(state_folder) as embedded, Client(embedded.url) as client:
            asking = asyncio.create_task(client.ask(job("hi")))
            many = asyncio.create_task(take(client.ask_many(jobs(50)), 50, timeout_s=20))
            await eventually(lambda: client.outstanding == 51)
            os.kill(server_pid(embedded.url), signal.SIGKILL)
            await asyncio.to_thread(embedded.revive)
            async with echo_worker(embedded.url).running():
                assert label(await asking) == "HI"
                assert len({reply.id for reply in await many}) == 50

    async def test_without_a_store(self, tmp_path: Path) -> None:
        with pytest.raises(StoreUnavailable):
            async with Client(f"unix://{tmp_path}/nothing"):
                pytest.fail("entered")


class TestSync:
    """The synchronous twin, in a thread beside the worker's loop."""

    async def test_ask(self, store_url: str, store: Store) -> None:
        def produce() -> None:
            with SyncClient(store_url, name="s") as client:
                first = client.ask(job("hi"), timeout_s=5)
                again = client.ask(job("hi"), timeout_s=5)
                assert (label(first), first.source) == ("HI", "model")
                assert (label(again), again.source) == ("HI", "memory")
                error = client.ask(Job(task="nope", text="hi"), timeout_s=5).error
                assert error is not None
                assert error.code == "unknown_task"

        async with echo_worker(store_url).running():
            await asyncio.to_thread(produce)
        assert not await store.exists(names.clients("0"))

    async def test_ask_many(self, store_url: str, store: Store) -> None:
        def produce() -> list[Reply]:
            with SyncClient(store_url, name="s") as client:
                return list(client.ask_many(jobs(1200), timeout_s=5))

        async with echo_worker(store_url).running():
            found = await asyncio.to_thread(produce)
        assert sorted(reply.id for reply in found) == sorted(f"j{n}" for n in range(1200))
        assert await owed(store, "s") == 0

    async def test_abandoning(self, store_url: str, store: Store) -> None:
        def produce() -> None:
            with SyncClient(store_url, name="s") as client:
                for _ in client.ask_many(jobs(100), timeout_s=5):
                    break
                assert len(list(client.ask_many(jobs(100, "k"), timeout_s=5))) == 100
                assert list(client.replies(timeout_s=0.2)) == []

        async with echo_worker(store_url).running():
            await asyncio.to_thread(produce)
        assert await owed(store, "s") == 0

    async def test_enqueue_and_replies(self, store_url: str, store: Store) -> None:
        def produce() -> None:
            with SyncClient(store_url, name="s") as client:
                ids = client.enqueue_many(jobs(30))
                ids += client.enqueue_many(jobs(30))
                ids.append(client.enqueue(job("one more"), lane="bulk"))
                found = [reply.id for reply in client.replies(timeout_s=0.5)]
                assert sorted(found) == sorted(set(ids))

        async with echo_worker(store_url).running():
            await asyncio.to_thread(produce)
        assert await owed(store, "s") == 0

    async def test_timeouts(self, store_url: str, store: Store) -> None:
        with SyncClient(store_url, name="s") as client:
            with pytest.raises(ReplyTimeout):
                client.ask(job("hi", "1"), timeout_s=0.05)
            with pytest.raises(ReplyTimeout):
                list(client.ask_many([job("more")], timeout_s=0.05))
        assert (await backlog(store), await owed(store, "s")) == (2, 2)

    async def test_a_name_is_held_by_one(self, store_url: str) -> None:
        with SyncClient(store_url, name="s"):
            with pytest.raises(ClientNameInUse), SyncClient(store_url, name="s"):
                pytest.fail("entered")
            with pytest.raises(ClientNameInUse):
                async with Client(store_url, name="s"):
                    pytest.fail("entered")

    async def test_resuming(self, store_url: str, store: Store) -> None:
        model = EchoModel()

        def resume() -> None:
            with SyncClient(store_url, name="c") as client:
                found = [reply.id for reply in client.ask_many(jobs(60), timeout_s=5)]
                assert sorted(found) == sorted(f"j{n}" for n in range(60))

        def read_the_rest() -> None:
            with SyncClient(store_url, name="c") as client:
                found = [reply.id for reply in client.replies(timeout_s=0.2)]
                assert sorted(found) == sorted(f"j{n}" for n in range(40))

        async with echo_worker(store_url, model).running():
            for read in (resume, read_the_rest):
                await killed_producer(store, store_url, 40)
                await until_answered(store)
                await asyncio.to_thread(read)
        assert len(model.asked) == 60
        assert await owed(store, "c") == 0

    async def test_resuming_before_the_replies_are_there(
        self, store_url: str, store: Store
    ) -> None:
        await killed_producer(store, store_url, 20)

        def produce() -> int:
            with SyncClient(store_url, name="c") as client:
                return len(list(client.replies(timeout_s=1)))

        async with echo_worker(store_url).running():
            assert await asyncio.to_thread(produce) == 20


class TestSeveralShards:
    """The name is taken on every shard, and those may become free at different times."""

    @pytest.fixture
    async def held_on_one(self, store: Store) -> str:
        """A shard on which another client has the name `c`."""
        tag = shard_tags(4)[2]
        await store.hset(names.clients(tag).decode(), "c", "other/99999999999999")
        return tag

    async def test_who_cannot_open_keeps_nothing(
        self, store: Store, store_url: str, held_on_one: str
    ) -> None:
        with pytest.raises(ClientNameInUse):
            await Client(store_url, name="c", shards=4).__aenter__()
        await store.delete(names.clients(held_on_one).decode())
        async with Client(store_url, name="c", shards=4) as client:
            assert client.name == "c"

    async def test_nor_without_asyncio(
        self, store: Store, store_url: str, held_on_one: str
    ) -> None:
        def open_it() -> str:
            with SyncClient(store_url, name="c", shards=4) as client:
                return client.name

        with pytest.raises(ClientNameInUse):
            await asyncio.to_thread(open_it)
        await store.delete(names.clients(held_on_one).decode())
        assert await asyncio.to_thread(open_it) == "c"
