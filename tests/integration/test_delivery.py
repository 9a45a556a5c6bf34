"""Deliveries through all that can befall a worker: each job is replied, exactly once.

What spans processes runs in processes (`Fleet`). Replies go to a named stream, where nothing takes
a second one out.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import redis.asyncio

from askonce_queue import Client, Job, Reply, names, queue_scripts
from askonce_queue.connections import connect
from askonce_queue.embedded import EmbeddedStore
from askonce_queue.queue_scripts import Lane
from askonce_queue.reply import decode_replies
from askonce_queue.scripts import run, send
from askonce_worker.pool import intake
from askonce_worker.pool.reclaim import Reclaim
from tests.support.embedded_server import server_pid
from tests.support.queue_worker import (
    BULK,
    INTERACTIVE,
    EchoModel,
    backlog,
    echo_worker,
    pending,
)
from tests.support.waiting import eventually
from tests.support.worker_fleet import Fleet

Store = redis.asyncio.Redis
pytestmark = pytest.mark.usefixtures("store")  # every test begins with an empty store
Entries = list[tuple[bytes, list[bytes]]]


@pytest.fixture
async def fleet(store_url: str, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with Fleet(store_url, tmp_path) as one:
        yield one


def jobs(amount: int, text: str = "text", prefix: str = "j") -> list[Job]:
    return [Job(task="echo", text=f"{text} {n}", id=f"{prefix}{n}") for n in range(amount)]


async def enqueue(url: str, some: Sequence[Job], lane: str = "interactive") -> None:
    async with Client(url) as client:
        await client.enqueue_many(some, lane=lane, reply_to="sink")


async def entries_of(store: Store, stream: bytes) -> Entries:
    return cast("Entries", await send(store, "XRANGE", stream, "-", "+"))


async def replies(store: Store) -> list[Reply]:
    """Every reply that was ever sent to the stream `sink`."""
    entries = await entries_of(store, names.replies("0", "@sink"))
    return [reply for _, fields in entries for reply in decode_replies(fields[3])[0]]


async def until_replied(store: Store, some: Sequence[Job], timeout_s: float = 15.0) -> list[Reply]:
    """Wait until the lanes are empty; every job has one reply then."""

    async def empty() -> bool:
        return await backlog(store) + await backlog(store, BULK) == 0

    await eventually(empty, timeout_s)
    found = await replies(store)
    assert Counter(reply.id for reply in found) == Counter(job.id for job in some)
    return found


async def until_pending(store: Store, wanted: dict[str, int], lane: Lane = INTERACTIVE) -> None:
    async def as_wanted() -> bool:
        return await pending(store, lane) == wanted

    await eventually(as_wanted)


async def consumers(store: Store, lane: Lane = INTERACTIVE) -> set[str]:
    rows = cast(
        "list[list[Any]]",
        await send(store, "XINFO", "CONSUMERS", lane.stream, names.GROUP),
    )
    return {row[1].decode() for row in rows}


async def dead_letters(store: Store) -> list[dict[bytes, bytes]]:
    entries = await entries_of(store, names.dead("0", "default"))
    return [dict(zip(fields[::2], fields[1::2], strict=True)) for _, fields in entries]


class TestDeath:
    async def test_kill_9_with_jobs_under_way(self, fleet: Fleet, store: Store) -> None:
        some = jobs(120, "hold")
        first = await fleet.start()
        await enqueue(fleet.url, some)
        await fleet.until_called(120)
        first.kill()
        first.wait()
        await fleet.start()
        fleet.release()
        found = await until_replied(store, some)
        assert all(reply.answer is not None for reply in found)
        assert max(Counter(text for _, text in fleet.calls()).values()) <= 2
        assert not await store.exists(INTERACTIVE.ids)
        assert await dead_letters(store) == []

    async def test_a_stopped_worker_that_wakes_replies_nothing(
        self, fleet: Fleet, store: Store
    ) -> None:
        some = jobs(30, "hold")
        first = await fleet.start()
        await enqueue(fleet.url, some)
        await fleet.until_called(30)
        first.send_signal(signal.SIGSTOP)
        await fleet.start()
        fleet.release()
        await until_replied(store, some)
        more = jobs(10, "more", "k")
        await enqueue(fleet.url, more)
        await until_replied(store, some + more)

        first.send_signal(signal.SIGCONT)
        first.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(first.wait) == 0
        await until_replied(store, some + more)
        assert Counter(text for _, text in fleet.calls()) == Counter(
            {f"hold {n}": 2 for n in range(30)} | {f"more {n}": 1 for n in range(10)}
        )

    async def test_a_slow_worker_is_not_robbed(self, fleet: Fleet, store: Store) -> None:
        some = jobs(5, "hold")
        first = await fleet.start()
        await enqueue(fleet.url, some)
        await fleet.until_called(5)
        held = await pending(store)
        second = await fleet.start()
        beats = 0
        seen: set[bytes] = set()
        while beats < 12:  # three heartbeats a TTL: four times the TTL
            now = cast("list[bytes]", await store.hvals(names.beats("0", "default")))
            beats += len(set(now) - seen) > 0
            seen |= set(now)
            assert await pending(store) == held
            await asyncio.sleep(0.05)
        fleet.release()
        await until_replied(store, some)
        assert {pid for pid, _ in fleet.calls()} == {first.pid}
        assert second.poll() is None

    async def test_one_poison_among_many(self, fleet: Fleet, store: Store) -> None:
        """One job ends every process that tries it. The others are answered; it is buried."""
        some = jobs(300)
        some.insert(150, Job(task="echo", text="die", id="poison"))
        await enqueue(fleet.url, some)
        deaths = 0
        worker = await fleet.start()
        async with asyncio.timeout(40):
            while await backlog(store):
                if worker.poll() is not None:
                    deaths += 1
                    worker = await fleet.start()
                await asyncio.sleep(0.02)
        found = {reply.id: reply for reply in await until_replied(store, some)}
        condemned = {i: one.error.code for i, one in found.items() if one.error is not None}
        assert condemned == {"poison": "poison"}
        assert [letter[b"i"] for letter in await dead_letters(store)] == [b"poison"]
        assert (await dead_letters(store))[0][b"code"] == b"poison"
        assert deaths <= 6
        assert not await store.exists(names.solo("0", "default"))

    async def test_jobs_of_both_lanes_are_reclaimed(self, store_url: str, store: Store) -> None:
        some, other = jobs(300), jobs(10, "bulk", "b")
        await enqueue(store_url, some)
        await enqueue(store_url, other, "bulk")
        for lane in (INTERACTIVE, BULK):
            await deliver_to(store, "dead", lane)
        async with echo_worker(store_url).running():
            await until_replied(store, some + other)
        assert await consumers(store) == {"dead"}  # a sweep's business


async def deliver_to(store: Store, consumer: str, lane: Lane = INTERACTIVE) -> None:
    """Let a consumer that never acts fetch everything in a lane."""
    await run(store, queue_scripts.ensure_group(lane))
    await send(store, "XREADGROUP", "GROUP", names.GROUP, consumer, "STREAMS", lane.stream, ">")


class TestDrain:
    async def test_unstarted_jobs_are_returned_and_taken_by_another(
        self, fleet: Fleet, store: Store
    ) -> None:
        some = jobs(40, "hold")
        first = await fleet.start(drain_s=0.1)
        await enqueue(fleet.url, some)
        await fleet.until_called(40)
        first.terminate()
        assert await asyncio.to_thread(first.wait) == 0
        assert await pending(store) == {"returned": 40}
        assert await consumers(store) == {"returned"}
        assert not await store.exists(names.beats("0", "default"))
        assert not await store.exists(names.leases("0"))
        await fleet.start()
        fleet.release()
        await until_replied(store, some)
        assert await pending(store) == {}

    async def test_what_is_started_may_finish(self, fleet: Fleet, store: Store) -> None:
        some = jobs(40, "hold")
        first = await fleet.start()
        await enqueue(fleet.url, some)
        await fleet.until_called(40)
        first.terminate()
        await until_pending(store, dict.fromkeys(await pending(store), 40))
        fleet.release()
        assert await asyncio.to_thread(first.wait) == 0
        await until_replied(store, some)
        assert len(fleet.calls()) == 40
        assert await consumers(store) == set()

    async def test_a_returned_job_is_no_suspect(self, store_url: str, store: Store) -> None:
        """Draining again and again condemns nobody, and costs no retry of its own."""
        model = EchoModel()
        model.open.clear()
        some = jobs(3)
        await enqueue(store_url, some)
        for count in range(1, 5):
            async with echo_worker(store_url, model, drain_s=0.01).running():
                await until_asked(model, 3 * count)
        rows = await send(store, "XPENDING", INTERACTIVE.stream, names.GROUP, "-", "+", 10)
        assert [row[3] for row in rows] == [1, 1, 1]
        model.open.set()
        async with echo_worker(store_url, model).running():
            found = await until_replied(store, some)
        assert all(reply.answer is not None for reply in found)

    async def test_a_draining_worker_takes_nothing_over(
        self, store_url: str, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It would take its own returned jobs back, and leave with them in hand."""
        rounds: list[bool] = []
        once = Reclaim.once

        async def watched(self: Reclaim) -> None:
            stopping = self._gate.stopping
            await once(self)
            rounds.append(stopping)

        monkeypatch.setattr(Reclaim, "once", watched)
        model = EchoModel()
        model.open.clear()
        some = jobs(1)
        await enqueue(store_url, some)
        async with echo_worker(store_url, model, drain_s=1.0).running():
            await eventually(lambda: model.asked and rounds)  # and sleeps before the next round
        assert await pending(store) == {"returned": 1}
        assert not any(rounds)

    async def test_the_consumer_leaves(self, store_url: str, store: Store) -> None:
        worker = echo_worker(store_url)
        async with worker.running():
            await enqueue(store_url, jobs(1))
            await until_replied(store, jobs(1))
            assert await consumers(store) == {worker.consumer}
        assert await consumers(store) == await consumers(store, BULK) == set()
        assert not await store.exists(names.beats("0", "default"))

    async def test_burst_ends_when_nothing_is_left(self, store_url: str, store: Store) -> None:
        some, other = jobs(300), jobs(10, "bulk", "b")
        await enqueue(store_url, some)
        await enqueue(store_url, other, "bulk")
        await echo_worker(store_url).run(burst=True)
        await until_replied(store, some + other)


class TestStore:
    async def test_a_restart_loses_no_accepted_job(
        self, state_folder: Path, tmp_path: Path
    ) -> None:
        under_way, waiting = jobs(30, "hold"), jobs(30, "bulk", "b")
        async with EmbeddedStore(state_folder) as embedded, Fleet(embedded.url, tmp_path) as fleet:
            store = connect(embedded.url, role="commands")
            worker = await fleet.start(batch=30, max_held=30)
            await enqueue(embedded.url, under_way)
            await fleet.until_called(30)
            await enqueue(embedded.url, waiting, "bulk")
            os.kill(server_pid(embedded.url), signal.SIGKILL)
            await asyncio.to_thread(embedded.revive)
            fleet.release()
            await until_replied(store, under_way + waiting)
            assert worker.poll() is None
            await store.aclose()

    async def test_the_group_is_made_again(self, store_url: str, store: Store) -> None:
        model = EchoModel()
        model.open.clear()
        some = jobs(10)
        async with echo_worker(store_url, model).running():
            await enqueue(store_url, some)
            await eventually(lambda: len(model.asked) == 10)
            await send(store, "XGROUP", "DESTROY", INTERACTIVE.stream, names.GROUP)
            await send(store, "XGROUP", "DESTROY", BULK.stream, names.GROUP)
            model.open.set()
            await until_replied(store, some)
            more = jobs(10, "more", "k")
            await enqueue(store_url, more, "bulk")
            await until_replied(store, some + more)
        assert len(model.asked) == 20

    async def test_the_stream_is_made_again(self, store_url: str, store: Store) -> None:
        async with echo_worker(store_url).running():
            await eventually(lambda: store.exists(BULK.stream))
            await store.delete(INTERACTIVE.stream, BULK.stream)
            some = jobs(10)
            await enqueue(store_url, some)
            await until_replied(store, some)

    async def test_scripts_are_loaded_again(self, store_url: str, store: Store) -> None:
        async with echo_worker(store_url).running(), Client(store_url) as client:
            for n in range(3):
                await store.script_flush()
                found = [reply async for reply in client.ask_many(jobs(20, f"round {n}"))]
                assert len({reply.id for reply in found}) == 20


HUGE = b'{"task":"echo","text":"' + b"x" * 300_000 + b'"}'
GARBAGE: dict[str, tuple[dict[bytes, bytes], str]] = {
    "bytes": ({b"p": bytes(range(256))}, "undecodable"),
    "not-json": ({b"p": b"{"}, "undecodable"),
    "nesting": ({b"p": b'{"task":"echo","messages":' + b"[" * 100_000}, "undecodable"),
    "wrong-type": ({b"p": b'{"task":"echo","text":["a"]}'}, "undecodable"),
    "version": ({b"v": b"99"}, "undecodable"),
    "tenant": ({b"n": b"\xff\xfe"}, "undecodable"),
    "deadline": ({b"d": b"tomorrow"}, "undecodable"),
    "no-payload": ({b"p": b""}, "undecodable"),
    "task": ({b"p": b'{"task":"nope","text":"a"}'}, "unknown_task"),
    "empty": ({b"p": b'{"task":"echo","text":""}'}, "invalid_input"),
    "no-input": ({b"p": b'{"task":"echo"}'}, "invalid_input"),
    "tags": ({b"g": b"a\n\nb"}, "invalid_input"),
    "huge": ({b"p": HUGE}, "too_large"),
    "large": ({b"p": HUGE[:100_000] + b'"}'}, "too_large"),
}


class TestBadInput:
    async def test_each_is_told_and_kept_and_its_neighbours_are_answered(
        self, store_url: str, store: Store
    ) -> None:
        """One batch of garbage and good jobs, in turn."""
        good = jobs(len(GARBAGE))
        for job, (job_id, (wrong, _)) in zip(good, GARBAGE.items(), strict=True):
            await enqueue(store_url, [job])
            plain = {b"v": b"1", b"c": b"c", b"i": job_id.encode(), b"r": b"@sink"}
            payload = {b"p": b'{"task":"echo","text":"a"}'}
            await store.xadd(INTERACTIVE.stream, cast("dict[Any, Any]", plain | payload | wrong))
        worker = echo_worker(store_url)
        async with worker.running():
            bad = [Job(task="echo", id=job_id) for job_id in GARBAGE]
            found = {reply.id: reply for reply in await until_replied(store, good + bad)}
        for job in good:
            assert found[str(job.id)].answer is not None
        codes = {i: found[i].error for i in GARBAGE}
        assert {i: error.code for i, error in codes.items() if error is not None} == {
            i: code for i, (_, code) in GARBAGE.items()
        }
        letters = {letter[b"i"].decode(): letter for letter in await dead_letters(store)}
        assert {i: letter[b"code"].decode() for i, letter in letters.items()} == {
            i: code for i, (_, code) in GARBAGE.items()
        }
        assert letters["bytes"][b"p"] == bytes(range(256))
        assert worker.counters.total("jobs_buried") == len(GARBAGE)

    @pytest.mark.parametrize(
        "fields",
        [
            {b"hello": b"world"},
            {b"v": b"1", b"c": b"\xff", b"i": b"1", b"p": b"{}"},
            {b"v": b"1", b"c": b"c", b"i": b"\xff", b"p": b"{}"},
            {b"v": b"1", b"c": b"", b"i": b"1", b"p": b'{"task":"echo","text":"a"}'},
            {b"v": b"1", b"c": b"c", b"i": b"", b"p": b'{"task":"echo","text":"a"}'},
            {b"\0": b"\0" * 1000},
            {b"f%d" % n: b"v" for n in range(3000)},
            pytest.param(
                {b"f%d" % n: b"v" for n in range(5000)},
            ),
        ],
        ids=["alien", "client", "id", "no-client", "no-id", "nul", "wide", "wider"],
    )
    async def test_entries_of_nobody_are_buried(
        self, store_url: str, store: Store, fields: dict[bytes, bytes]
    ) -> None:
        some = jobs(5)
        await enqueue(store_url, some)
        await store.xadd(INTERACTIVE.stream, cast("dict[Any, Any]", fields))
        async with echo_worker(store_url).running():
            await until_replied(store, some, timeout_s=3)
        (letter,) = await dead_letters(store)
        assert letter[b"code"] == b"undecodable"
        assert await send(store, "KEYS", "reply:*") == [names.replies("0", "@sink")]

    async def test_a_job_with_thousands_of_fields_is_answered(
        self, store_url: str, store: Store
    ) -> None:
        wide = {b"v": b"1", b"c": b"c", b"i": b"wide", b"r": b"@sink", b"p": b"{"}
        wide |= {b"f%d" % n: b"v" for n in range(5000)}
        await store.xadd(INTERACTIVE.stream, cast("dict[Any, Any]", wide))
        async with echo_worker(store_url).running():
            await until_replied(store, [Job(task="echo", id="wide")], timeout_s=3)

    async def test_dead_letters_are_bounded(self, store_url: str, store: Store) -> None:
        worker = echo_worker(store_url, max_dead=5)
        some = [Job(task="nope", text="a", id=f"j{n}") for n in range(12)]
        async with worker.running():
            await enqueue(store_url, some)
            await until_replied(store, some)
            await eventually(lambda: worker.counters.total("dead_letters_dropped") == 7)
        assert [letter[b"i"] for letter in await dead_letters(store)] == [
            b"j%d" % n for n in range(7, 12)
        ]

    async def test_a_model_that_lies_or_dies_is_not_the_workers_end(
        self, store_url: str, store: Store
    ) -> None:
        class Fickle(EchoModel):
            async def ask(self, prompt: Any, question: Any) -> Any:
                if question.text == "raise 0":
                    raise RuntimeError("boom")
                if question.text == "cancel 0":
                    raise asyncio.CancelledError
                return await super().ask(prompt, question)

        bad = jobs(1, "raise", "r") + jobs(1, "cancel", "c")
        some = jobs(20)
        async with echo_worker(store_url, Fickle(), max_attempts=2).running():
            await enqueue(store_url, some + bad)
            found = await until_replied(store, some + bad)
        codes = {reply.id: reply.error.code for reply in found if reply.error is not None}
        assert codes == {"r0": "model_failed", "c0": "model_failed"}


class TestStrays:
    async def test_deliveries_that_never_arrived_are_taken_up(
        self, store_url: str, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The server gave them to this worker, and the reply was lost on the way."""
        monkeypatch.setattr(intake, "STRAY_CHECK_S", 0.1)
        monkeypatch.setattr(intake, "STRAY_IDLE_MS", 50)
        worker = echo_worker(store_url)
        some = jobs(1200)
        async with worker.running():
            await worker._gate.pause()
            await enqueue(store_url, some)
            await deliver_to(store, worker.consumer)
            assert await pending(store) == {worker.consumer: 1200}
            worker._gate.resume()
            await until_replied(store, some)

    async def test_jobs_under_way_are_no_strays(
        self, store_url: str, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(intake, "STRAY_CHECK_S", 0.05)
        monkeypatch.setattr(intake, "STRAY_IDLE_MS", 0)
        taken: list[int] = []
        accept = intake.Intake.accept

        def counting(self: intake.Intake, lane: Lane, entries: Sequence[Any]) -> None:
            taken.append(len(entries))
            accept(self, lane, entries)

        monkeypatch.setattr(intake.Intake, "accept", counting)
        model = EchoModel()
        model.open.clear()
        worker = echo_worker(store_url, model)
        some = jobs(30)
        async with worker.running():
            await enqueue(store_url, some)
            await eventually(lambda: len(model.asked) == 30)
            due = worker._beat._clock.monotonic() + 1.2  # two reads: each looks for strays first
            await eventually(lambda: worker._beat._clock.monotonic() > due)
            model.open.set()
            await until_replied(store, some)
        assert sum(taken) == 30


class TestBackPressure:
    async def test_a_worker_holds_no_more_than_it_may(self, store_url: str, store: Store) -> None:
        model = EchoModel()
        model.open.clear()
        some = jobs(60)
        await enqueue(store_url, some)
        worker = echo_worker(store_url, model, max_held=10, batch=5)
        async with worker.running():
            await eventually(lambda: len(model.asked) == 10)
            await enqueue(store_url, jobs(1, "late", "l"))
            async with echo_worker(store_url).running() as helper:
                # The other takes what this one leaves, though this one is stuck.
                await until_pending(store, {worker.consumer: 10})
                await eventually(lambda: len(helper._held) == 0)
            assert len(worker._held) == 10
            assert len(model.asked) == 10
            model.open.set()
            await until_replied(store, some + jobs(1, "late", "l"))

    async def test_the_bound_is_for_all_lanes_together(self, store_url: str) -> None:
        model = EchoModel()
        model.open.clear()
        some, other = jobs(40), jobs(40, "bulk", "b")
        await enqueue(store_url, some)
        await enqueue(store_url, other, "bulk")
        worker = echo_worker(store_url, model, max_held=10, batch=10)
        try:
            async with worker.running():
                await eventually(lambda: len(model.asked) >= 10)
                assert len(worker._held) == 10
        finally:
            model.open.set()


async def until_asked(model: EchoModel, count: int) -> None:
    await eventually(lambda: len(model.asked) == count)


async def until_empty(store: Store) -> None:
    async def empty() -> bool:
        return await backlog(store) == 0

    await eventually(empty)


async def test_many_workers_share_the_work(store_url: str, store: Store) -> None:
    model = EchoModel()
    some = [Job(task="echo", text=f"text {n % 50}", id=f"j{n}") for n in range(1000)]
    await enqueue(store_url, some)
    async with (
        echo_worker(store_url, model, batch=20).running(),
        echo_worker(store_url, model, batch=20).running(),
        echo_worker(store_url, model, batch=20).running(),
    ):
        await until_replied(store, some)
    assert len(model.asked) == len(set(model.asked)) == 50
