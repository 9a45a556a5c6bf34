"""Dead letters: found by what they are about, newest first over all shards, and dropped."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis.asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from askonce_queue import Client, Job, names
from askonce_queue.connections import connect_sync
from askonce_queue.shards import shard_tags
from askonce_queue.store import Store
from askonce_worker.dead_letters import (
    DeadLetter,
    DeadLetters,
    LetterId,
    Wanted,
    search,
)
from tests.support.dead_letters import BURIED_MS, Grave, envelope
from tests.support.queue_worker import echo_worker
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("store")  # every test begins with an empty store
THREE = shard_tags(3)


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
        ids = [grave.bury(at_ms=BURIED_MS + n // 2, tag=THREE[n * n % 7 % 3]) for n in range(500)]
        assert await sharded.total() == 500
        there = await found(sharded)
        assert sorted(there) == sorted(ids)
        times = [one.partition(":")[2].partition("-")[0] for one in there]
        assert times == sorted(times, reverse=True)

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


async def test_drop(sharded: DeadLetters, grave: Grave) -> None:
    ids = [LetterId.parse(grave.bury(tag=tag)) for tag in THREE for _ in range(2)]
    some = [one for one in ids[::2] if one]
    assert await sharded.drop(some) == 3
    assert await sharded.drop(some) == 0
    assert await found(sharded) == [str(one) for one in sorted(ids[1::2], key=str)]
    assert await sharded.drop([]) == 0
