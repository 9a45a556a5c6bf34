"""Whatever is left in a real store is found, by its kind; a store that is clean is called so."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from askonce_loadtest.chaos.leftovers import Leftovers
from askonce_loadtest.chaos.malformed import Malformed
from askonce_loadtest.chaos.plan import Plan
from askonce_loadtest.chaos.store import SingleStore
from askonce_queue import Client, Job, names
from askonce_queue.shards import shard_tags
from askonce_queue.store_config import StoreConfig

TAG = shard_tags(2)[0]
KEY = b"k" * 32
FAR_MS = 4e12
LONG_AGO_MS = 1e12


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SingleStore]:
    one = SingleStore(tmp_path / "store", Plan())
    try:
        await one.start()
        yield one
    finally:
        await one.close()


async def kinds(store: SingleStore) -> list[str]:
    return [violation.kind for violation in await Leftovers(store).account()]


def lease(deadline_ms: float) -> bytes:
    return struct.pack("<16sddB", b"t" * 16, deadline_ms, 1.0, 1)


def tried(until_ms: float) -> bytes:
    return struct.pack("<cBd", b"A", 1, until_ms)


async def test_answers_stamps_and_counters_may_stay(store: SingleStore) -> None:
    answer = names.answer_prefix(TAG) + KEY
    await store.ask(answer, "SET", answer, "x", "EX", 100)
    await store.ask(names.META, "HSET", names.META, "shards", 2)
    for key in (names.stamps(TAG), names.stats(TAG)):
        await store.ask(key, "HSET", key, "field", 1)
    await store.ask(names.dead(TAG, "default"), "XADD", names.dead(TAG, "default"), "*", "a", "b")
    assert await kinds(store) == []


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        (names.ids(TAG, "default"), "records"),
        (names.owed(TAG), "records"),
        (names.clients(TAG), "records"),
        (names.beats(TAG, "default"), "consumers"),
        (b"someone:else", "keys"),
    ],
)
async def test_a_record_that_is_left_is_found(store: SingleStore, key: bytes, kind: str) -> None:
    await store.ask(key, "HSET", key, "field", "1")
    assert await kinds(store) == [kind]


async def test_replies_that_nobody_will_read_and_ttls_of_others_are_found(
    store: SingleStore,
) -> None:
    replies, stats = names.replies(TAG, "gone"), names.stats(TAG)
    await store.ask(replies, "XADD", replies, "*", "r", "x")
    await store.ask(stats, "HSET", stats, "field", 1)
    await store.ask(stats, "EXPIRE", stats, 100)
    assert sorted(await kinds(store)) == ["keys", "records"]


async def test_live_leases_are_leaked_and_dead_ones_are_swept(store: SingleStore) -> None:
    leases = names.leases(TAG)
    await store.ask(leases, "HSET", leases, KEY, lease(LONG_AGO_MS))
    assert await kinds(store) == []
    assert await store.ask(leases, "EXISTS", leases) == 0
    await store.ask(leases, "HSET", leases, KEY, lease(FAR_MS))
    assert await kinds(store) == ["leases"]


async def test_what_failed_is_not_remembered_for_ever(store: SingleStore) -> None:
    tries = names.tries(TAG)
    await store.ask(tries, "HSET", tries, KEY, tried(LONG_AGO_MS))
    assert await kinds(store) == []
    await store.ask(tries, "HSET", tries, KEY, tried(FAR_MS))
    assert await kinds(store) == ["records"]


async def test_consumers_and_what_is_pending_to_them_are_found(store: SingleStore) -> None:
    stream = names.jobs(TAG, "default", "bulk")
    await store.ask(stream, "XGROUP", "CREATE", stream, names.GROUP, "0", "MKSTREAM")
    await store.ask(stream, "XGROUP", "CREATECONSUMER", stream, names.GROUP, names.RETURNED)
    assert await kinds(store) == []
    await store.ask(stream, "XADD", stream, "*", "p", "x")
    words = ("XREADGROUP", "GROUP", names.GROUP, names.RETURNED, "STREAMS", stream, ">")
    await store.ask(stream, *words)
    assert sorted(await kinds(store)) == ["consumers", "records"]
    assert "1 jobs in" in await Leftovers(store).work()


async def test_connections_of_others_are_found_and_their_jobs_are_work(store: SingleStore) -> None:
    async with Client(StoreConfig(**store.table()), name="p") as client:
        await client.enqueue(Job(task="question", text="anything"))
        leftovers = Leftovers(store)
        assert "jobs in" in await leftovers.work()
        found = {violation.kind for violation in await leftovers.account()}
    assert found == {"connections", "records"}


async def test_a_malformed_entry_without_a_dead_letter_is_found(store: SingleStore) -> None:
    malformed = Malformed(store, 1)
    await malformed.add()
    found = await malformed.account()
    silent = sum(malformed.added.values())
    assert len(found) == len(malformed.added) + silent
    dead, replies = names.dead(TAG, "default"), names.replies(TAG, "@chaos-malformed")
    for name, has_address in malformed.added.items():
        await store.ask(dead, "XADD", dead, "*", "code", "undecodable", "chaos", name)
        if has_address:
            line = b'{"id":"%s","error":{}}\n' % name
            await store.ask(replies, "XADD", replies, "*", "r", line)
    assert await malformed.account() == []
    assert await store.ask(replies, "EXISTS", replies) == 0
