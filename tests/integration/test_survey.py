"""Counting what is stored, and purging what old versions have left: exact, or honestly unknown."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest
import redis.asyncio

from askonce_queue import names
from askonce_queue.store import Store
from askonce_worker.backend import Backend
from askonce_worker.cache.invalidation import invalidate
from askonce_worker.cache.key import KeyMaker, task_digest
from askonce_worker.cache.key_prefix import Ambiguous, find_key
from askonce_worker.cache.survey import Limits
from askonce_worker.cache.versions import purge_old_versions
from askonce_worker.models.protocol import Prompt
from askonce_worker.tasks import Task
from tests.support.resolving import StepModel, Waiter, all_keys, make_task, resolver_on

MANY = 1_500
SHARDS = 3


@asynccontextmanager
async def counted_on(url: str, shards: int = SHARDS) -> AsyncGenerator[Store]:
    store = Store(url, shards=shards)
    try:
        yield store
    finally:
        await store.aclose()


@pytest.fixture
async def counting(store: redis.asyncio.Redis, store_url: str) -> AsyncIterator[Store]:
    """A store with many answers on three shards: every third has a tag `third`, all one of 10."""
    del store
    async with resolver_on(store_url, shards=SHARDS) as resolver:
        task = make_task(StepModel(), slots=MANY)
        waiters = [
            Waiter(task, f"{n}", tags=[f"user:{n % 10}", *(["third"] if n % 3 == 0 else [])])
            for n in range(MANY)
        ]
        resolver.resolve(waiters)
        for waiter in waiters:
            await waiter.outcome()
    async with counted_on(store_url) as counting:
        yield counting


async def test_counts_are_exact(counting: Store) -> None:
    for tags, globs, expected in (
        (["third"], [], 500),
        (["task:t"], [], MANY),
        ([], ["user:*"], MANY),
        ([], ["user:3"], 150),
        (["third"], ["user:3"], 600),
        (["nothing"], ["user:??", "t"], 0),
    ):
        done = await invalidate(counting, tags, globs=globs, dry_run=True)
        assert (done.count, done.tally and done.tally.seen) == (expected, MANY)
    done = await invalidate(counting, everything=True, dry_run=True)
    assert done.count == MANY


async def test_what_is_taken_is_counted_once(counting: Store) -> None:
    taken = [
        (await invalidate(counting, tags, globs=globs, count=Limits())).count
        for tags, globs in ((["third"], []), (["third"], []), ([], ["user:3"]), ([], ["user:3"]))
    ]
    assert taken == [500, 0, 100, 0]
    everything = [
        (await invalidate(counting, everything=True, count=Limits())).count for _ in range(2)
    ]
    assert everything == [900, 0]


async def test_progress_and_limits(counting: Store) -> None:
    walked: list[int] = []
    done = await invalidate(counting, ["third"], count=Limits(answers=200), progress=walked.append)
    assert done.complete
    assert done.count is None
    assert done.tally is not None
    assert 200 <= done.tally.seen < MANY
    assert "the limit of 200 answers was reached" in done.tally.unfinished
    assert len(walked) < 5
    done = await invalidate(counting, ["third"], dry_run=True, count=Limits(seconds=0.0))
    assert done.tally is not None
    assert "the limit of 0 s was reached" in done.tally.unfinished


async def test_keys_are_counted_without_a_walk(counting: Store) -> None:
    task = make_task(StepModel())
    keys = [task.key_maker.text_key(text) for text in ("0", "1", "not there")]
    done = await invalidate(counting, keys=keys, dry_run=True)
    assert done.tally is not None
    assert (done.count, done.tally.seen) == (2, 3)
    assert (await invalidate(counting, keys=keys, count=Limits())).count == 2
    done = await invalidate(counting, keys=keys[:1], count=Limits())
    assert (done.count, len(done.stamps)) == (0, 1)  # only its shard is asked


async def test_a_key_by_its_first_digits(counting: Store) -> None:
    key = make_task(StepModel()).key_maker.text_key("7")
    for digits in (8, 9, 16, 63, 64):
        assert await find_key(counting, key.hex()[:digits].upper()) == key
    assert await find_key(counting, "0" * 15) is None
    twin = names.answer_prefix(counting.tags[int.from_bytes(key[:4], "big") % SHARDS]) + key[:-1]
    await counting.send(twin, "SET", twin + bytes([key[-1] ^ 1]), "x", "PX", 60_000)
    with pytest.raises(Ambiguous):
        await find_key(counting, key.hex()[:40])


async def test_a_store_that_cannot_be_asked_is_unknown() -> None:
    async with counted_on("redis://127.0.0.1:1/0", 1) as store:
        done = await invalidate(store, ["a"], count=Limits())
        assert (done.complete, done.count) == (False, None)
        would = await invalidate(store, ["a"], dry_run=True)
        assert would.count is None
        assert would.tally is not None
        assert "the store failed" in would.tally.unfinished


# --- old versions ----------------------------------------------------------------------------


def version_of(prompt: str, name: str = "t") -> Task:
    """A task under a prompt."""
    identity = task_digest(
        model_identity={"kind": "test"}, prompt=Prompt(system=prompt), normalize=()
    )
    return Task(
        name,
        backend=Backend("m", StepModel(), 1000, 60.0),
        prompt=Prompt(),
        key_maker=KeyMaker(identity, shared=False),
    )


async def fill(url: str, *tasks: Task, count: int = 10) -> None:
    async with resolver_on(url) as resolver:
        waiters = [Waiter(task, f"{n}") for task in tasks for n in range(count)]
        resolver.resolve(waiters)
        for waiter in waiters:
            await waiter.outcome()


async def test_what_old_versions_left_is_deleted(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    old, new, other = version_of("old"), version_of("new"), version_of("o", "other")
    assert old.version != new.version
    assert len(f"\n{old.version}") <= 16
    await fill(store_url, old, new, other)
    versions = {"t": new.version}
    async with counted_on(store_url, 1) as counting:
        would = await purge_old_versions(counting, versions, dry_run=True)
        assert (would.answers, would.seen, would.exact) == (10, 30, True)
        assert len(await all_keys(store, "a:*")) == 30
        assert (await purge_old_versions(counting, versions)).answers == 10
        assert (await purge_old_versions(counting, versions)).answers == 0
    left = set(await all_keys(store, "a:*"))
    assert names.answer_prefix("0") + old.key_maker.text_key("1") not in left
    for task in (new, other):
        assert {
            names.answer_prefix("0") + task.key_maker.text_key(f"{n}") for n in range(10)
        } <= left


async def test_answers_that_a_task_shares_with_a_current_one_stay(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    """Both asked the same; one has moved on, the other still serves what is there."""
    shared, twin, moved = version_of("p"), version_of("p", "twin"), version_of("q")
    await fill(store_url, shared, twin)
    async with counted_on(store_url, 1) as counting:
        kept = await purge_old_versions(
            counting, {"t": moved.version}, current=[moved.version, twin.version]
        )
        assert kept.answers == 0
        gone = await purge_old_versions(counting, {"t": None, "twin": moved.version})
        assert gone.answers == 10
    assert not await all_keys(store, "a:*")


async def test_entries_without_a_version_stay(store: redis.asyncio.Redis, store_url: str) -> None:
    task = version_of("p")
    await fill(store_url, task, count=1)
    key = names.answer_prefix("0") + task.key_maker.text_key("0")
    entry = await store.get(key)
    assert isinstance(entry, bytes)
    plain = entry.replace(task.version.encode(), b"x:00000000")
    await store.set(key, plain, px=60_000)
    async with counted_on(store_url, 1) as counting:
        assert (await purge_old_versions(counting, {"t": None})).answers == 0
