"""Dead letters: found whatever stands in them, retried once, dropped; on the real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from askonce_queue import Client, Job, names, queue_scripts
from askonce_queue.connections import connect_sync
from askonce_queue.queue_scripts import LANES, Lane
from askonce_queue.reply import Reply, decode_replies
from askonce_queue.shards import shard_tags
from askonce_queue.store import Store
from askonce_worker.cli import dead_shown
from askonce_worker.dead_letters import (
    BATCH,
    DeadLetter,
    DeadLetters,
    LetterId,
    Retry,
    Wanted,
    search,
)
from askonce_worker.dead_letters.letter import read_letter
from tests.support.dead_letters import BURIED_MS, Grave, envelope
from tests.support.proxy import Proxy, script
from tests.support.queue_worker import BULK, echo_worker
from tests.support.small_server import small_server
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("store")  # every test begins with an empty store
THREE = shard_tags(3)
BOUNDS: dict[str, Any] = {"max_backlog": 1000, "max_unread": 1000}


@pytest.fixture
def grave(store_url: str) -> Iterator[Grave]:
    client = connect_sync(store_url, role="commands")
    yield Grave(client)
    client.close()


@pytest.fixture
async def letters(askonce_store: Store) -> DeadLetters:
    return DeadLetters(askonce_store, "default")


@pytest.fixture
async def sharded(store: redis.asyncio.Redis, store_url: str) -> AsyncIterator[DeadLetters]:
    del store  # it looks for open connections last
    client = Store(store_url, shards=3)
    yield DeadLetters(client, "default")
    await client.aclose()


async def found(letters: DeadLetters, **wanted: Any) -> list[str]:
    return [str(letter.id) async for letter in letters.search(Wanted(**wanted))]


async def only(letters: DeadLetters) -> DeadLetter:
    (letter,) = [letter async for letter in letters.search(Wanted())]
    return letter


async def retry(letters: DeadLetters, **options: Any) -> list[Retry]:
    every = [letter async for letter in letters.search(Wanted())]
    return await letters.retry(every, **(BOUNDS | options))


class TestSearch:
    async def test_what_a_worker_buried(self, letters: DeadLetters, store_url: str) -> None:
        job = Job(task="gone", text="a", id="j1", tenant="acme", tags=("x", "y"))
        async with Client(store_url, name="c") as client:
            await client.enqueue(job, lane="bulk", reply_to="sink")
        async with echo_worker(store_url).running():
            await eventually(letters.total)
        letter = await only(letters)
        assert (letter.code, letter.lane, letter.task) == ("unknown_task", "bulk", "gone")
        assert letter.message.startswith("no task 'gone' here")
        assert letter.envelope.job_id == "j1"
        assert letter.envelope.tags == ("x", "y")
        assert letter.reply_to == "sink"
        assert letter.obstacle == ""
        assert json.loads(letter.payload) == {"task": "gone", "text": "a"}
        assert await letters.get([letter.id]) == [letter]

    async def test_newest_first_over_all_shards_and_pages(
        self, sharded: DeadLetters, grave: Grave
    ) -> None:
        ids = [grave.bury(at_ms=BURIED_MS + n * 7 % 500, tag=THREE[n % 3]) for n in range(500)]
        assert await sharded.total() == 500
        newest = sorted(ids, key=lambda one: -int(one.partition(":")[2].partition("-")[0]))
        times = [one.partition(":")[2].partition("-")[0] for one in await found(sharded)]
        assert times == [one.partition(":")[2].partition("-")[0] for one in newest]
        assert sorted(await found(sharded)) == sorted(ids)

    async def test_large_letters_come_a_few_at_once(
        self, letters: DeadLetters, grave: Grave, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(search, "PAGE_BYTES", 10_000)
        ids = [grave.bury(envelope(text="x" * 4000)) for _ in range(30)]
        grave.send("CONFIG", "RESETSTAT")
        assert await found(letters) == ids[::-1]
        reads = grave.client.info("commandstats")["cmdstat_xrevrange"]["calls"]
        assert 10 <= reads <= 13  # 10 letters at first, then two at once

    async def test_a_second_look_finds_nothing_newer(
        self, sharded: DeadLetters, grave: Grave
    ) -> None:
        """What is dropped is what was counted."""
        ids = [grave.bury(tag=THREE[0]), grave.bury(tag=THREE[1])]
        looking = sharded.search(Wanted())
        assert sorted([str(letter.id) async for letter in looking]) == sorted(ids)
        grave.bury(tag=THREE[0], at_ms=BURIED_MS + 1)
        grave.bury(tag=THREE[2])
        assert sorted([str(letter.id) async for letter in looking]) == sorted(ids)
        assert looking.looked_at == 2

    async def test_a_shard_that_fails_hides_no_other(
        self, sharded: DeadLetters, grave: Grave
    ) -> None:
        grave.send("SET", names.dead(THREE[1], "default"), "no stream")
        ids = [grave.bury(tag=THREE[0]), grave.bury(tag=THREE[2])]
        looking = sharded.search(Wanted())
        assert sorted([str(letter.id) async for letter in looking]) == sorted(ids)
        assert set(looking.failures) == {THREE[1]}
        assert await sharded.total() == 2

    async def test_ids(self, letters: DeadLetters, grave: Grave) -> None:
        one = LetterId.parse(grave.bury())
        assert one is not None
        assert LetterId.parse(str(one)) == one
        missing, elsewhere = LetterId("0", 1, 1), LetterId("77", 1, 1)
        there = await letters.get([missing, one, elsewhere, one])
        assert [letter and letter.id for letter in there] == [None, one, None, one]
        limit = 2**64
        for text in ("", "0", "0:1", "1-1", "0:-1-1", f"0:{limit}-0", "0:1-" + "9" * 5000, "x:1-1"):
            assert LetterId.parse(text) is None
        assert await letters.get([LetterId("0", limit - 1, limit - 1)]) == [None]


def test_filters_find_what_reading_everything_finds(grave: Grave, store_url: str) -> None:
    few = st.sampled_from(["", "a", "b"])
    times = st.integers(BURIED_MS, BURIED_MS + 5)
    buried = st.lists(st.tuples(times, few, few, few, few, st.sampled_from(THREE)), max_size=20)
    wanted = st.builds(
        Wanted,
        code=st.none() | few,
        task=st.none() | few,
        tenant=st.none() | few,
        client=st.none() | few,
        since_ms=st.none() | times,
        until_ms=st.none() | times,
    )

    async def search_for(chosen: Wanted) -> list[str]:
        store = Store(store_url, shards=3)
        try:
            return await found(DeadLetters(store, "default"), **chosen._asdict())
        finally:
            await store.aclose()

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(buried=buried, chosen=wanted)
    def check(buried: list[tuple[int, str, str, str, str, str]], chosen: Wanted) -> None:
        grave.client.flushall()
        expected: list[str] = []
        for at_ms, code, task, tenant, client, tag in sorted(buried):
            fields = envelope(c=client, n=tenant, p=json.dumps({"task": task}))
            letter = grave.bury(fields, at_ms=at_ms, code=code, tag=tag)
            if (
                chosen.code in (None, code)
                and chosen.task in (None, task)
                and chosen.tenant in (None, tenant)
                and chosen.client in (None, client)
                and (chosen.since_ms is None or at_ms >= chosen.since_ms)
                and (chosen.until_ms is None or at_ms <= chosen.until_ms)
            ):
                expected.append(letter)
        assert sorted(runner.run(search_for(chosen))) == sorted(expected)

    with asyncio.Runner() as runner:
        check()


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
            ("somebody", None, "@retried"),
            ("@no such\nname", None, "@retried"),
        ],
    )
    async def test_where_the_reply_goes(
        self, letters: DeadLetters, grave: Grave, was: str, given: str | None, expected: str
    ) -> None:
        grave.bury(envelope(r=was) if was else envelope())
        await retry(letters, reply_to=given)
        assert grave.queued()[0]["r"] == expected.encode()

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


async def test_drop(sharded: DeadLetters, grave: Grave) -> None:
    ids = [LetterId.parse(grave.bury(tag=tag)) for tag in THREE for _ in range(2)]
    some = [one for one in ids[::2] if one]
    assert await sharded.drop(some) == 3
    assert await sharded.drop(some) == 0
    assert await found(sharded) == [str(one) for one in sorted(ids[1::2], key=str)]
    assert await sharded.drop([]) == 0


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


# --- whatever stands in a letter -----------------------------------------------------------------

NAMES = st.sampled_from([b"v", b"c", b"i", b"p", b"r", b"n", b"g", b"d"]) | st.binary(max_size=3)
VALUES = (
    st.binary(max_size=40)
    | st.text(max_size=20).map(lambda text: text.encode(errors="surrogatepass"))
    | st.recursive(
        st.none() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=5,
    ).map(lambda value: json.dumps(value).encode())
    | st.sampled_from([b"1", b"@name", b"[" * 5000, b'{"task":' * 3000, b"9" * 5000, b"-9" * 99])
)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=8)
HEADS = st.tuples(VALUES, VALUES, VALUES, VALUES) | st.none()
SEQUENCE = st.integers(0, 2**64 - 1)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(fields=FIELDS, head=HEADS, ms=SEQUENCE, now_ms=st.integers(0, 2**43))
def test_nothing_in_a_letter_can_break_a_view_of_it(
    fields: list[tuple[bytes, bytes]],
    head: tuple[bytes, bytes, bytes, bytes] | None,
    ms: int,
    now_ms: int,
) -> None:
    words = [word for pair in fields for word in pair]
    if head:
        names_of = (b"code", b"message", b"stream", b"entry")
        words = [w for pair in zip(names_of, head, strict=True) for w in pair] + words
    letter = read_letter("0", f"{ms}-0".encode(), words)
    shown = dead_shown.as_json(letter, now_ms)
    assert shown.isprintable()
    told = json.loads(shown)
    assert told["id"] == str(letter.id)
    given = [kind for kind in ("payload", "payload_text", "payload_hex") if kind in told]
    assert len(given) == bool(letter.payload)
    assert dead_shown.as_line(letter, now_ms).replace("\t", "").isprintable()
    assert dead_shown.as_line(letter, now_ms).count("\t") == 5
    for name, value in dead_shown.as_page(letter, now_ms):
        assert f"{name}{value}".replace("\n", "").isprintable()
    dead_shown.as_table([letter], now_ms)
    assert not letter.obstacle or letter.obstacle
    assert Lane("0", "default", letter.lane).lane == letter.lane
    assert letter.lane not in LANES or letter.entry is not None
