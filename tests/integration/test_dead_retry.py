"""Retrying dead letters: each job is queued once, and what cannot be queued stays a letter."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from askonce_queue import Client, Job, names, queue_scripts
from askonce_queue.connections import connect_sync
from askonce_queue.reply import Reply, decode_replies
from askonce_queue.store import Store
from askonce_worker.dead_letters import (
    BATCH,
    DeadLetter,
    DeadLetters,
    Retry,
    Wanted,
)
from tests.support.dead_letters import Grave, envelope
from tests.support.proxy import Proxy, script
from tests.support.queue_worker import BULK, echo_worker
from tests.support.small_server import small_server
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("store")  # every test begins with an empty store
BOUNDS: dict[str, Any] = {"max_backlog": 1000, "max_unread": 1000}


@pytest.fixture
def grave(store_url: str) -> Iterator[Grave]:
    client = connect_sync(store_url, role="commands")
    yield Grave(client)
    client.close()


@pytest.fixture
async def letters(askonce_store: Store) -> DeadLetters:
    return DeadLetters(askonce_store, "default")


async def only(letters: DeadLetters) -> DeadLetter:
    (letter,) = [letter async for letter in letters.search(Wanted())]
    return letter


async def retry(letters: DeadLetters, **options: Any) -> list[Retry]:
    every = [letter async for letter in letters.search(Wanted())]
    return await letters.retry(every, **(BOUNDS | options))


class TestRetry:
    async def test_the_job_is_answered_to_a_named_stream(
        self, letters: DeadLetters, grave: Grave, store_url: str
    ) -> None:
        grave.bury(envelope(n="acme", g="x\ny"))
        (done,) = await retry(letters, reply_to="fixed")
        assert (done.refusal, done.gone) == ("", False)
        assert done.stream == names.replies("0", "@fixed")
        assert grave.left() == []
        (queued,) = grave.queued()
        assert queued == {
            k: v.encode() for k, v in envelope(n="acme", g="x\ny", r="@fixed").items()
        }
        async with echo_worker(store_url).running():
            (reply,) = await eventually(lambda: replies(grave, "@fixed"))
        assert reply.id == "j1"
        assert reply.answer is not None
        assert reply.answer.label == "HELLO"
        assert grave.client.hgetall(BULK.ids.decode()) == {}

    @pytest.mark.parametrize(
        ("was", "given", "expected"),
        [
            ("", None, "@retried"),
            ("@nightly", None, "@nightly"),
            ("@nightly", "fixed", "@fixed"),
        ],
    )
    async def test_where_the_reply_goes(
        self, letters: DeadLetters, grave: Grave, was: str, given: str | None, expected: str
    ) -> None:
        grave.bury(envelope(r=was) if was else envelope())
        await retry(letters, reply_to=given)
        assert grave.queued()[0]["r"] == expected.encode()
        ((_, fields),) = grave.send("XRANGE", BULK.stream, "-", "+")
        assert fields.count(b"r") == 1

    async def test_into_another_lane(self, letters: DeadLetters, grave: Grave) -> None:
        grave.bury(lane="bulk")
        grave.bury(envelope("j2"), lane="interactive")
        await retry(letters)
        assert len(grave.queued("bulk")) == len(grave.queued("interactive")) == 1
        grave.bury(envelope("j3"), lane="bulk")
        grave.bury(envelope("j4"), lane="express")
        results = await retry(letters)
        assert [done.refusal for done in results] == [
            "lane 'express' is not known: name another one",
            "",
        ]
        (done,) = await retry(letters, lane="interactive")
        assert done.refusal == ""
        assert len(grave.queued("interactive")) == 2

    async def test_what_was_deferred_goes_to_its_lane(
        self, letters: DeadLetters, grave: Grave
    ) -> None:
        grave.bury(lane=BULK.deferred.lane)
        (done,) = await retry(letters)
        assert done.refusal == ""
        assert len(grave.queued("bulk")) == 1

    @pytest.mark.parametrize("action", ["drop", "cut"])
    async def test_a_lost_reply_enqueues_nothing_twice(
        self, grave: Grave, store_url: str, action: str
    ) -> None:
        grave.bury()
        retry_dead = queue_scripts.retry_dead(
            BULK, b"1-1", record="", address="", max_backlog=1, max_unread=1
        ).script
        async with Proxy(store_url) as proxy:
            lose = proxy.drop_reply if action == "drop" else proxy.cut_reply
            fault = lose(script(retry_dead))
            client = Store(proxy.url)
            (done,) = await retry(DeadLetters(client, "default"))
            await client.aclose()
        assert fault.struck == 1
        assert (done.refusal, done.gone) == ("", False)
        assert len(grave.queued()) == 1
        assert grave.left() == []

    async def test_repeated_after_its_job_was_answered_it_is_gone(
        self, letters: DeadLetters, grave: Grave, store_url: str
    ) -> None:
        grave.bury()
        letter = await only(letters)
        await letters.retry([letter], **BOUNDS)
        async with echo_worker(store_url).running():
            await eventually(lambda: replies(grave, "@retried"))
        (done,) = await letters.retry([letter], **BOUNDS)
        assert done.gone
        assert grave.queued() == []

    async def test_two_people_at_once(self, letters: DeadLetters, grave: Grave) -> None:
        for n in range(BATCH):
            grave.bury(envelope(f"j{n}"))
        every = [letter async for letter in letters.search(Wanted())]
        first, second = await asyncio.gather(
            letters.retry(every, **BOUNDS), letters.retry(every, **BOUNDS)
        )
        assert not any(done.refusal for done in (*first, *second))
        assert sorted(job["i"] for job in grave.queued()) == sorted(
            f"j{n}".encode() for n in range(BATCH)
        )

    async def test_another_job_of_its_id_comes_first(
        self, letters: DeadLetters, grave: Grave, store_url: str
    ) -> None:
        """A client would take the reply of one for that of the other."""
        grave.bury(envelope(c="c"))
        async with Client(store_url, name="c") as client:
            await client.enqueue(Job(task="echo", text="other", id="j1"), reply_to="sink")
            (done,) = await retry(letters)
            assert done.refusal == "another job with its id is not answered yet"
            assert len(grave.left()) == 1
            async with echo_worker(store_url).running():
                await eventually(lambda: replies(grave, "@sink"))
            (done,) = await retry(letters)
            assert done.refusal == ""

    async def test_a_dropped_one_is_gone_though_another_job_of_its_id_is_queued(
        self, letters: DeadLetters, grave: Grave, store_url: str
    ) -> None:
        grave.bury(envelope(c="c"))
        letter = await only(letters)
        await letters.drop([letter.id])
        async with Client(store_url, name="c") as client:
            await client.enqueue(Job(task="echo", text="hello", id="j1"), reply_to="sink")
            (done,) = await letters.retry([letter], **BOUNDS)
        assert done.gone

    async def test_a_record_without_a_job_is_no_job(
        self, letters: DeadLetters, grave: Grave
    ) -> None:
        for record in ("bulk/1-1", "nonsense", "bulk/nonsense"):
            grave.bury()
            grave.send("HSET", BULK.ids, "client/j1", record)
            (done,) = await retry(letters)
            assert done.refusal == ""
            grave.send("DEL", BULK.ids, BULK.stream)

    async def test_bounds(self, letters: DeadLetters, grave: Grave) -> None:
        for n in range(4):
            grave.bury(envelope(f"j{n}"))
        results = await retry(letters, max_backlog=3)
        assert [done.refusal for done in results] == [
            "",
            "",
            "",
            "the backlog is at its bound (max_backlog)",
        ]
        assert len(grave.left()) == 1
        grave.send("XADD", names.replies("0", "@retried"), "*", "r", "x")
        (done,) = await retry(letters, max_unread=1)
        assert done.refusal == "the reply stream is at its bound (max_unread): read it first"
        assert len(grave.left()) == 1

    async def test_no_memory(self, tmp_path: Path) -> None:
        async with small_server(tmp_path / "small", "noeviction") as server:
            client = connect_sync(server.url, role="commands")
            grave = Grave(client)
            grave.bury()
            await server.fill_up()
            store = Store(server.url)
            (done,) = await retry(DeadLetters(store, "default"))
            assert done.refusal == "the store is out of memory"
            assert len(grave.left()) == 1
            assert grave.queued() == []
            await store.aclose()
            client.close()

    async def test_no_store(self, letters: DeadLetters, grave: Grave) -> None:
        grave.bury()
        every = [await only(letters)]
        nowhere = Store("redis://127.0.0.1:1/0")
        (done,) = await DeadLetters(nowhere, "default").retry(every, **BOUNDS)
        assert done.refusal.startswith("the store failed: ")
        await nowhere.aclose()
        assert len(grave.left()) == 1

    @pytest.mark.parametrize(
        ("fields", "reason"),
        [
            ({"v": "1", "c": "c", "i": "j"}, "the envelope has no payload"),
            ({"v": "1", "p": "{}"}, "the envelope has no job id or no client"),
            ({"v": "9", "c": "c", "i": "j", "p": "{}"}, "envelope version b'9' is not known here"),
            (
                envelope(r="somebody else"),
                "the envelope is not valid: 'somebody else' is not the address of a reply stream",
            ),
            ({"v": "1", "c": b"\xff", "i": "j", "p": "{}"}, "the envelope is not valid"),
        ],
    )
    async def test_what_cannot_be_retried_stays(
        self, letters: DeadLetters, grave: Grave, fields: dict[str, Any], reason: str
    ) -> None:
        grave.bury(fields)
        (done,) = await retry(letters)
        assert done.refusal.startswith(reason)
        assert len(grave.left()) == 1
        assert grave.queued() == []

    async def test_what_no_worker_wrote_stays(self, letters: DeadLetters, grave: Grave) -> None:
        grave.write(["code", "poison", "v", "1", "c", "c", "i", "j", "p", "{}"])
        (done,) = await retry(letters)
        assert done.refusal == "it is not a dead letter of a worker"
        assert len(grave.left()) == 1

    async def test_a_dry_run_changes_nothing(self, letters: DeadLetters, grave: Grave) -> None:
        grave.bury()
        grave.bury({"v": "1"})
        bad, good = await retry(letters, dry_run=True)
        assert (bool(bad.refusal), good.refusal) == (True, "")
        assert len(grave.left()) == 2
        assert grave.queued() == []


async def replies(grave: Grave, address: str) -> list[Reply]:
    entries = grave.send("XRANGE", names.replies("0", address), "-", "+")
    return [reply for _, fields in entries for reply in decode_replies(fields[3])[0]]


STEPS = st.lists(
    st.tuples(st.sampled_from(["retry", "again", "drop", "settle", "enqueue"]), st.integers(0, 3)),
    max_size=25,
)


def test_a_job_is_queued_once_whatever_is_done_to_its_letter(grave: Grave, store_url: str) -> None:
    """Retried by many people, re-sent, dropped, answered, enqueued anew, in any order."""

    async def play(steps: list[tuple[str, int]]) -> None:
        store = Store(store_url)
        letters = DeadLetters(store, "default")
        every = sorted(
            [letter async for letter in letters.search(Wanted())],
            key=lambda letter: letter.envelope.job_id,
        )
        kept, queued = {0, 1, 2, 3}, dict[int, str]()
        for step, n in steps:
            letter = every[n]
            if step in ("retry", "again"):
                (done,) = await letters.retry([letter], **BOUNDS)
                if n in kept and n not in queued:
                    assert done.refusal == ""
                    kept.discard(n)
                    queued[n] = "@retried"
                elif n in kept:
                    assert done.refusal == "another job with its id is not answered yet"
                else:
                    assert done.gone == (queued.get(n) != "@retried")
            elif step == "drop":
                assert await letters.drop([letter.id]) == (n in kept)
                kept.discard(n)
            elif step == "settle":
                settle(grave, f"j{n}")
                queued.pop(n, None)
            else:
                verdict = await enqueue(store, n)
                assert verdict == (b"a" if n not in queued else b"s" if queued[n] == "" else b"c")
                queued.setdefault(n, "")
            assert {one[-1:] for one in job_ids(grave)} == {str(n) for n in queued}
            assert len(job_ids(grave)) == len(queued)
            assert len(grave.left()) == len(kept)
        await store.aclose()

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(steps=STEPS)
    def check(steps: list[tuple[str, int]]) -> None:
        grave.client.flushall()
        grave.send("XGROUP", "CREATE", BULK.stream, names.GROUP, "0", "MKSTREAM")
        for n in range(4):
            grave.bury(envelope(f"j{n}"))
        runner.run(play(steps))

    with asyncio.Runner() as runner:
        check()


async def enqueue(store: Store, n: int) -> bytes:
    await store.run(queue_scripts.claim_name("0", "client", "token", 60_000))
    fields = envelope(f"j{n}")
    call = queue_scripts.enqueue(
        BULK,
        client="client",
        token="token",  # noqa: S106 -- of a client, no secret
        reply_to="",
        max_backlog=1000,
        max_unread=1000,
        max_memory_share=1.0,
        stride=2,
        jobs=[fields["i"], fields["p"]],
    )
    verdict: bytes = await store.run(call)
    return verdict


def job_ids(grave: Grave) -> list[str]:
    return [job["i"].decode() for job in grave.queued()]


def settle(grave: Grave, job_id: str) -> None:
    """Answer a job, as a worker does."""
    for entry, flat in grave.send("XRANGE", BULK.stream, "-", "+"):
        if job_id.encode() in flat:
            grave.send("XDEL", BULK.stream, entry)
            grave.send("HDEL", BULK.ids, f"client/{job_id}")
