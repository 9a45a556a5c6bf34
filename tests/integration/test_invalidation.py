"""Invalidation, end to end: what was built before it is never served after it, to anyone."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import redis.asyncio
from redis.exceptions import ConnectionError as RedisConnectionError

from askonce_queue import answer_scripts, names
from askonce_queue.answer_scripts import GLOB_MARK, KEY_MARK
from askonce_queue.connections import connect
from askonce_queue.embedded import EmbeddedStore
from askonce_queue.scripts import run_many
from askonce_queue.shards import shard_tags
from askonce_worker.cache import stamps
from askonce_worker.resolver import Resolver
from tests.support.resolving import (
    ShiftedClock,
    StepModel,
    Waiter,
    ask,
    assert_at_rest,
    make_task,
    resolver_on,
    resolvers_on,
    step_until,
)
from tests.support.waiting import eventually

OTHER_TOKEN = b"someone else's !"


async def invalidate(
    store: redis.asyncio.Redis, *tags: str | bytes, everything: bool = False, shards: int = 1
) -> None:
    """On every shard, as the command does it; keys and globs as the script takes them."""
    calls = [
        answer_scripts.invalidate(tag, everything=everything, tags=tags)
        for tag in shard_tags(shards)
    ]
    for result in await run_many(store, calls):
        assert float(result) > 0


async def seen(resolver: Resolver) -> None:
    """Let a resolver see what was invalidated."""
    for shard in range(resolver._shards):
        await resolver.stamps.read(shard)


@asynccontextmanager
async def answered_by(store_url: str, task_label: str) -> AsyncGenerator[None]:
    """A process without memory of anything is told this label, and not by the model."""
    async with resolver_on(store_url) as fresh:
        outcome = await ask(fresh, make_task(StepModel("wrong")), "x")
        assert (outcome.label, outcome.source) == (task_label, "store")
        yield


def is_asked(model: StepModel) -> bool:
    return model.in_flight == 1


# --- what is invalidated ---------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("what", ["tag", "task", "keys", "glob", "glob of tasks", "everything"])
async def test_what_is_invalidated_is_asked_again(
    store: redis.asyncio.Redis, store_url: str, what: str, shards: int
) -> None:
    model = StepModel()
    task = make_task(model)
    texts = [f"text {number}" for number in range(12)]
    async with resolver_on(store_url, shards=shards) as resolver:
        for text in texts:
            await ask(resolver, task, text, tags=["red"])
        model.label = "b"
        ways: dict[str, list[str | bytes]] = {
            "tag": ["red"],
            "task": [task.tag],
            "keys": [KEY_MARK + task.key_maker.text_key(text) for text in texts],
            "glob": [GLOB_MARK + b"r*"],
            "glob of tasks": [GLOB_MARK + b"task:*"],
            "everything": [],
        }
        tags = ways[what]
        await invalidate(store, *tags, everything=what == "everything", shards=shards)
        await seen(resolver)
        for text in texts:
            outcome = await ask(resolver, task, text)
            assert (outcome.label, outcome.source) == ("b", "model")
            assert (await ask(resolver, task, text)).source == "memory"
        assert set(model.calls.values()) == {2}


async def test_what_is_not_invalidated_stays(store: redis.asyncio.Redis, store_url: str) -> None:
    model = StepModel()
    task, other = make_task(model), make_task(model, "other")
    async with resolvers_on(store_url, 2) as (first, second):
        await ask(first, task, "red", tags=["red"])
        await ask(first, task, "blue", tags=["blues"])
        key = other.key_maker.text_key("unknown")
        await invalidate(
            store, "red", "unknown", other.tag, KEY_MARK + key, GLOB_MARK + b"*e", GLOB_MARK + b"?"
        )
        await seen(first)
        assert (await ask(first, task, "blue")).source == "memory"
        assert (await ask(second, task, "blue")).source == "store"
        assert (await ask(second, task, "red")).source == "model"


async def test_the_askers_tags_count_too(store: redis.asyncio.Redis, store_url: str) -> None:
    """The entry has no tag of its own that was invalidated; who asks has one."""
    model = StepModel()
    task = make_task(model)
    async with resolvers_on(store_url, 2) as (first, second):
        await ask(first, task, "x")
        await invalidate(store, "mine")
        await seen(first)
        assert (await ask(first, task, "x", tags=["yours"])).source == "memory"
        assert (await ask(second, task, "x", tags=["yours"])).source == "store"
        model.label = "b"
        assert (await ask(first, task, "x", tags=["mine"])).label == "b"
        await seen(second)
        # What was built after the invalidation is good for everyone.
        assert (await ask(second, task, "x", tags=["mine"])).label == "b"
        assert model.total == 2


async def test_an_answer_carries_the_tags_of_all_who_waited(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    """A leads with one tag, B joins with another: either one takes the answer away.

    So does its key, and so does a glob that matches either.
    """
    key = make_task(StepModel()).key_maker.text_key("x")
    for invalidated in ("of A", "of B", KEY_MARK + key, GLOB_MARK + b"*A", GLOB_MARK + b"of B*"):
        model = StepModel(closed=True)
        task = make_task(model)
        async with resolvers_on(store_url, 2) as (first, second):
            await invalidate(store, everything=True)
            leader = Waiter(task, "x", tags=["of A"])
            first.resolve([leader])
            await eventually(partial(is_asked, model))
            joiner = Waiter(task, "x", tags=["of B"])
            first.resolve([joiner])
            model.open()
            assert (await leader.outcome()).source == "model"
            assert (await joiner.outcome()).source == "coalesced"
            await invalidate(store, invalidated)
            await seen(first)
            model.label = "b"
            for resolver in (first, second):
                for tags in (["of A"], ["of B"], []):
                    assert (await ask(resolver, task, "x", tags=tags)).label == "b"
            assert model.total == 2


async def test_who_asks_with_new_tags_while_the_answer_is_written_waits_for_nobody(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    model = StepModel(closed=True)
    task = make_task(model)
    async with resolvers_on(store_url, 2) as (first, second):
        leader = Waiter(task, "x")
        first.resolve([leader])
        await eventually(partial(is_asked, model))
        model.open()
        await step_until(lambda: bool(first._fills._finished[0]))
        await step_until(lambda: not first._fills._finished[0])
        assert len(first.flights) == 1  # the fill is under way
        joiner = Waiter(task, "x", tags=["late"])
        first.resolve([joiner])
        await leader.outcome()
        outcome = await joiner.outcome()
        assert (outcome.label, outcome.source) == ("a", "store")
        await invalidate(store, "late")
        model.label = "b"
        assert (await ask(second, task, "x", tags=["late"])).label == "b"


async def test_many_tags(store: redis.asyncio.Redis, store_url: str) -> None:
    model = StepModel()
    task = make_task(model)
    tags = [f"tag {number} {'é' * 150}" for number in range(16)]
    async with resolver_on(store_url) as resolver:
        await ask(resolver, task, "x", tags=tags)
        await invalidate(store, *[f"other {number}" for number in range(3000)])
        await seen(resolver)
        assert (await ask(resolver, task, "x", tags=tags)).source == "memory"
        await invalidate(store, tags[15])
        await seen(resolver)
        assert (await ask(resolver, task, "x")).source == "model"


async def test_more_tags_than_a_worker_remembers(
    store: redis.asyncio.Redis, store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then memory is dropped, and the store knows better."""
    monkeypatch.setattr(stamps, "MOST_TAGS", 100)
    model = StepModel()
    task = make_task(model)
    async with resolver_on(store_url) as resolver:
        await ask(resolver, task, "x", tags=["mine"])
        for burst in (60, 60, 150):
            await invalidate(store, *[f"{burst}, {number}" for number in range(burst)])
            await seen(resolver)
            assert (await ask(resolver, task, "x")).source in {"memory", "store"}
        assert (await ask(resolver, task, "y")).source == "model"
        assert (await ask(resolver, task, "y")).source == "memory"
        await invalidate(store, "mine", *[f"last, {number}" for number in range(150)])
        await seen(resolver)
        assert (await ask(resolver, task, "x")).source == "model"


@pytest.mark.parametrize(
    ("askers", "tag"),
    [
        (350, "user {}"),
        (8000, "user {}"),
        (800, "user {} " + "é" * 150),
        (350, "user {} " + "é" * 150),
    ],
)
async def test_an_answer_with_the_tags_of_very_many_askers(
    store: redis.asyncio.Redis, store_url: str, tag: str, askers: int
) -> None:
    """Either it is not kept, or it can be read and every one of the tags counts."""
    model = StepModel(closed=True)
    task = make_task(model)
    async with resolvers_on(store_url, 2) as (first, second):
        waiters = [Waiter(task, "x", tags=[tag.format(number)]) for number in range(askers)]
        first.resolve(waiters)
        await eventually(lambda: model.in_flight == 1)
        model.open()
        for waiter in waiters:
            assert (await waiter.outcome()).label == "a"
        data = await store.get(names.answer_prefix("0") + waiters[0].key)
        if data is not None:
            assert (await ask(second, task, "x")).source == "store"
        await invalidate(store, tag.format(askers - 1))
        model.label = "b"
        async with resolver_on(store_url) as fresh:
            assert (await ask(fresh, task, "x")).label == "b"
        await assert_at_rest(store, first, task)


# --- flights ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "what",
    ["tag of the leader", "tag of a joiner", "task", "key", "glob of a joiner", "everything"],
)
async def test_a_flight_under_way_is_fenced(
    store: redis.asyncio.Redis, store_url: str, what: str
) -> None:
    model = StepModel("old", closed=True)
    task = make_task(model)
    async with resolvers_on(store_url, 2) as (first, second):
        waiters = [Waiter(task, "x", tags=["a"]), Waiter(task, "x", tags=["b"])]
        first.resolve(waiters)
        await eventually(lambda: model.in_flight == 1)
        tags: dict[str, list[str | bytes]] = {
            "tag of the leader": ["a"],
            "tag of a joiner": ["b"],
            "task": [task.tag],
            "key": [KEY_MARK + waiters[0].key],
            "glob of a joiner": [GLOB_MARK + b"b*"],
        }
        await invalidate(store, *tags.get(what, []), everything=what == "everything")
        model.open()
        for waiter in waiters:  # they asked before
            assert (await waiter.outcome()).label == "old"
        assert first.counters.total("flights_invalidated") == 1
        assert await store.get(names.answer_prefix("0") + waiters[0].key) is None
        model.label = "new"
        for resolver in (second, first):
            assert (await ask(resolver, task, "x")).label == "new"
        assert model.total == 2
        await assert_at_rest(store, first, task)
        await assert_at_rest(store, second, task)


async def test_who_asks_after_an_invalidation_does_not_join_an_older_flight(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    model = StepModel("old", closed=True)
    task = make_task(model)
    async with resolvers_on(store_url, 2) as (first, second):
        before = Waiter(task, "x")
        first.resolve([before])
        await eventually(lambda: model.in_flight == 1)
        await invalidate(store, "mine")
        await seen(first)
        model.label = "new"
        mine = [Waiter(task, "x", tags=["mine"]) for _ in range(3)]
        untagged = Waiter(task, "x")
        first.resolve([mine[0]])
        await eventually(lambda: model.in_flight == 2)
        first.resolve([mine[1], untagged])
        second.resolve([mine[2]])
        model.open()
        assert (await before.outcome()).label == "old"
        for waiter in mine:
            assert (await waiter.outcome()).label == "new"
        assert (await untagged.outcome()).label == "new"  # the newer flight is the one to join
        assert first.counters.total("flights_fenced") == 1
        assert model.total == 2
        async with answered_by(store_url, "new"):
            pass


async def test_a_waiter_in_another_process_does_not_wait_for_an_older_flight(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    old, new = StepModel("old", closed=True), StepModel("new")
    async with resolvers_on(store_url, 2) as (first, second):
        leader = Waiter(make_task(old), "x")
        first.resolve([leader])
        await eventually(lambda: old.in_flight == 1)
        waiter = Waiter(make_task(new), "x")
        second.resolve([waiter])
        await eventually(lambda: any(flight.busy_token for flight in second.flights))
        assert new.total == 0
        await invalidate(store, make_task(new).tag)
        # It asked before, but to wait would be for nothing: that answer will not be kept.
        assert (await waiter.outcome()).label == "new"
        old.open()
        assert (await leader.outcome()).label == "old"
        async with answered_by(store_url, "new"):
            pass


async def test_who_joins_while_the_store_is_asked_gets_nothing_invalid(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    model = StepModel("old")
    task = make_task(model)
    async with resolvers_on(store_url, 2) as (first, second):
        await ask(first, task, "x")
        await invalidate(store, "mine")
        await seen(second)
        model.label = "new"
        second.resolve([Waiter(task, "x")])
        await step_until(lambda: not second._room._queues[0].due_now)
        assert len(second.flights) == 1  # the look-up is under way
        mine = Waiter(task, "x", tags=["mine"])
        second.resolve([mine])
        assert (await mine.outcome()).label == "new"


async def test_who_asks_after_an_invalidation_does_not_join_a_flight_that_lost_its_lease(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    model = StepModel("old", closed=True)
    task = make_task(model)
    async with resolver_on(store_url, lease_renew_s=0.02) as resolver:
        before = Waiter(task, "x")
        resolver.resolve([before])
        await eventually(lambda: model.in_flight == 1)
        await store.delete(names.leases("0").decode())
        await eventually(lambda: resolver.counters.total("leases_lost") == 1)
        await invalidate(store, "mine")
        await seen(resolver)
        model.label = "new"
        mine = Waiter(task, "x", tags=["mine"])
        resolver.resolve([mine])
        for _ in range(20):
            await asyncio.sleep(0)
        model.open()
        assert (await before.outcome()).label == "old"
        assert (await mine.outcome()).label == "new"


async def test_nobody_joins_a_flight_while_invalidations_are_not_seen(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    """As for memory: who has not looked for longer than the bound does not know what is valid."""
    clock = ShiftedClock()
    model = StepModel("old", closed=True)
    task = make_task(model)
    async with resolver_on(store_url, clock=clock, stamp_bound_s=5) as resolver:
        before = Waiter(task, "x")
        resolver.resolve([before])
        await eventually(lambda: model.in_flight == 1)
        await invalidate(store, task.tag)
        clock.shift_s = 6  # and this worker has not looked since
        model.label = "new"
        after = Waiter(task, "x")
        resolver.resolve([after])
        for _ in range(20):
            await asyncio.sleep(0)
        model.open()
        assert (await before.outcome()).label == "old"
        assert (await after.outcome()).label == "new"


# --- how far and how fast --------------------------------------------------------------------


async def test_it_reaches_the_memory_of_every_process_in_time(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    bound_s = 0.5
    model = StepModel("old")
    task = make_task(model)
    async with resolvers_on(store_url, 4, stamp_bound_s=bound_s) as resolvers:
        for resolver in resolvers:
            await ask(resolver, task, "x", tags=["red"])
            assert (await ask(resolver, task, "x")).source == "memory"
        model.label = "new"
        await invalidate(store, "red")
        since = time.monotonic()
        last_old = dict.fromkeys(resolvers, since)

        async def all_new() -> bool:
            done = True
            for resolver in resolvers:
                asked_at = time.monotonic()
                waiter = Waiter(task, "x")
                resolver.resolve([waiter])
                if (await waiter.outcome()).label == "old":
                    last_old[resolver] = asked_at
                    done = False
            return done

        await eventually(all_new)
        late_s = max(last_old.values()) - since
        assert late_s <= bound_s
        assert model.total == 2


async def test_the_loss_of_all_answers_reaches_memory(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    """A store that was emptied has forgotten what was invalidated: nothing old may be served."""
    model = StepModel("old")
    task = make_task(model)
    async with resolver_on(store_url, shards=2) as resolver:
        texts = [f"text {number}" for number in range(8)]
        for text in texts:
            await ask(resolver, task, text)
        model.label = "new"
        await store.flushall()
        await seen(resolver)
        for text in texts:
            assert (await ask(resolver, task, text)).label == "new"
            assert (await ask(resolver, task, text)).source == "memory"


async def test_the_loss_of_all_answers_under_a_flight(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    """Lease and stamps are gone, and other leases were granted since: the flight is fenced."""
    model = StepModel("old", closed=True)
    task = make_task(model)
    async with resolvers_on(store_url, 2) as (first, second):
        leader = Waiter(task, "x")
        first.resolve([leader])
        await eventually(lambda: model.in_flight == 1)
        await store.flushall()
        new = StepModel("new")
        assert (await ask(second, make_task(new), "x")).label == "new"
        model.open()
        assert (await leader.outcome()).label == "old"
        assert first.counters.total("flights_filled") == 0
        async with answered_by(store_url, "new"):
            pass


@pytest.mark.parametrize("how", ["tag", "key", "glob"])
async def test_it_survives_a_restart_of_everything(state_folder: Path, how: str) -> None:
    model = StepModel("old")
    task = make_task(model)
    async with EmbeddedStore(state_folder, maxmemory="64mb") as embedded:
        client = connect(embedded.url, role="commands")
        async with resolver_on(embedded.url) as resolver:
            for text in ("red", "kept"):
                await ask(resolver, task, text, tags=[text])
        key = KEY_MARK + task.key_maker.text_key("red")
        ways: dict[str, str | bytes] = {"tag": "red", "key": key, "glob": GLOB_MARK + b"re?"}
        await invalidate(client, ways[how])
        await client.aclose()
    # The last one out stopped the server; the next one starts it on its log.
    async with (
        EmbeddedStore(state_folder, maxmemory="64mb") as embedded,
        resolver_on(embedded.url) as resolver,
    ):
        model.label = "new"
        outcome = await ask(resolver, task, "kept")
        assert (outcome.label, outcome.source) == ("old", "store")
        assert (await ask(resolver, task, "red")).label == "new"


@pytest.mark.parametrize("how", ["tag", "key", "glob"])
async def test_a_restart_under_a_flight(state_folder: Path, how: str) -> None:
    """Its lease and its stamp are in the log: the flight fills, unless it was invalidated."""
    model = StepModel("old", closed=True)
    task = make_task(model)
    embedded = EmbeddedStore(state_folder, maxmemory="64mb")
    async with embedded, resolver_on(embedded.url, lease_ttl_s=30) as resolver:
        client = connect(embedded.url, role="commands")
        waiters = [Waiter(task, text, tags=[text]) for text in ("red", "kept")]
        resolver.resolve(waiters)
        await eventually(lambda: model.in_flight == 2)
        key = KEY_MARK + waiters[0].key
        ways: dict[str, str | bytes] = {"tag": "red", "key": key, "glob": GLOB_MARK + b"re?"}
        await invalidate(client, ways[how])
        with suppress(RedisConnectionError):
            await client.execute_command("SHUTDOWN")
        await client.connection_pool.disconnect()
        await asyncio.to_thread(embedded.revive)
        model.open()
        for waiter in waiters:
            assert (await waiter.outcome()).label == "old"
        assert resolver.counters.total("flights_filled") == 1
        assert resolver.counters.total("flights_invalidated") == 1
        async with resolver_on(embedded.url) as fresh:
            model.label = "new"
            assert (await ask(fresh, task, "kept")).source == "store"
            assert (await ask(fresh, task, "red")).label == "new"
        await client.aclose()
