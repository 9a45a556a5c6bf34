"""The sweep as a whole: bounded rounds, faults that stop nothing, and nothing alive that goes."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import pytest
import redis
import redis.asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from askonce_queue import names
from askonce_queue.connections import connect_sync
from askonce_queue.store import Store as AskonceStore
from askonce_worker.pool import sweep
from askonce_worker.pool.sweep import COUNT, RECORD_GRACE_MS, Sweep
from tests.support.leftovers import (
    BEATS,
    CLIENTS,
    EACH,
    LANES,
    LEASE_TTL_S,
    LEASES,
    OWED,
    RETAIN_S,
    SOLO,
    STAMPS,
    STATS,
    TRIES,
    TRY,
    calls,
    consumers,
    fill_hash,
    lease,
    leave_behind,
    sweep_all,
    sweep_of,
)
from tests.support.queue_worker import INTERACTIVE
from tests.support.virtual_scripts import START_MS
from tests.support.virtual_store import VirtualStore
from tests.support.waiting import eventually

Store = redis.asyncio.Redis
pytestmark = pytest.mark.usefixtures("store")  # every test begins with an empty store


async def test_what_cannot_be_swept_stops_nothing_else(
    askonce_store: AskonceStore, store: Store
) -> None:
    await leave_behind(store, 20)
    for key in (LEASES, SOLO, BEATS):
        await store.delete(key.decode())
        await store.set(key.decode(), "not a hash")
    lanes = [lane._replace(tag="7") for lane in LANES]
    await store.hset(names.leases("7"), "x", lease(1))
    both = Sweep(askonce_store, [*LANES, *lanes], every_s=9.0, client_retain_s=1.0, lease_ttl_s=1.0)
    # Of ten kinds, three are not hashes, two are only found by their heartbeats, one is below its
    # bound; then there is the other shard.
    assert await both.once() == 5 * 20 + 1
    assert not await store.exists(names.leases("7"))


async def test_without_a_store_it_goes_on() -> None:
    nowhere = AskonceStore("redis://127.0.0.1:1/0")
    assert await sweep_of(nowhere).once() == 0
    await nowhere.aclose()


@pytest.mark.parametrize("cursor", [1, 12345, 2**63, 2**64 - 1])
async def test_a_cursor_of_another_server_is_harmless(
    askonce_store: AskonceStore, store: Store, cursor: int
) -> None:
    await leave_behind(store, 2000)
    live = {f"live {n}": lease(START_MS * 2) for n in range(500)}
    await fill_hash(store, LEASES, live)
    one = sweep_of(askonce_store)
    cursors = one._shards[0]._cursors
    for kind in ("leases", "tries", "ids", "solo", "clients", "owed", "totals", "beats"):
        cursors[kind] = cursor
    for _ in range(30):
        await one.once()
    assert await store.hlen(LEASES) == 500
    for key in (TRIES, INTERACTIVE.ids, SOLO, CLIENTS, OWED, BEATS):
        assert not await store.exists(key)


async def test_a_cursor_that_is_none_begins_again(
    askonce_store: AskonceStore, store: Store
) -> None:
    await leave_behind(store, 20)
    one = sweep_of(askonce_store)
    cursors = one._shards[0]._cursors
    for kind in ("leases", "beats"):
        cursors[kind] = -(2**70)
    await one.once()
    await one.once()
    assert not await store.exists(LEASES)
    assert not await store.exists(BEATS)


# --- nothing that lives --------------------------------------------------------------------------

MS = st.integers(-200_000, 200_000) | st.sampled_from([-60_001, -60_000, -59_999, -1, 0, 1])
"""A deadline or a birth, from now."""


class Place(NamedTuple):
    """An id record or a solo try: when its job was enqueued, and whether that is still there."""

    lane: str
    born_ms: int
    there: bool


class World(NamedTuple):
    """What stands in a shard, by times from now. `consumers`: end of the heartbeat, holds a job."""

    leases: list[int]
    tries: list[int]
    places: list[Place]
    clients: list[int]
    debtors: set[int]
    consumers: list[tuple[int | None, bool]]
    cursors: list[int]


PLACES = st.builds(Place, st.sampled_from([lane.lane for lane in LANES]), MS, st.booleans())
WORLDS = st.builds(
    World,
    st.lists(MS, max_size=8),
    st.lists(MS, max_size=8),
    st.lists(PLACES, max_size=8).map(lambda places: sorted(places, key=lambda one: one.born_ms)),
    st.lists(MS, max_size=8),
    st.sets(st.integers(0, 9), max_size=8),
    st.lists(st.tuples(st.none() | MS, st.booleans()), max_size=8),
    st.lists(st.integers(0, 2**64 - 1), min_size=12, max_size=12),
)


class Shard:
    """A shard in which a world is set up, and what is left of it."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client

    def send(self, *words: Any) -> Any:
        return cast("Any", self.client.execute_command(*words))

    def set_up(self, world: World) -> None:
        for lane in LANES:
            self.send("XGROUP", "CREATE", lane.stream, names.GROUP, "0", "MKSTREAM")
        for n, at in enumerate(world.leases):
            self.send("HSET", LEASES, f"lease {n}", lease(START_MS + at))
        for n, at in enumerate(world.tries):
            self.send("HSET", TRIES, f"try {n}", TRY.pack(b"A", 1, START_MS + at))
        for n, place in enumerate(world.places):
            entry = f"{START_MS + place.born_ms}-{n}"
            if place.there:
                self.send("XADD", names.jobs("0", "default", place.lane), entry, "p", "{}")
            self.send("HSET", INTERACTIVE.ids, f"c/{n}", f"{place.lane}/{entry}")
            self.send("HSET", SOLO, f"{place.lane}/{entry}", "1/x")
        for n, at in enumerate(world.clients):
            self.send("HSET", CLIENTS, f"{n}", f"token/{START_MS + at}")
            self.send("XADD", names.replies("0", f"{n}"), "*", "r", "x")
        for n in world.debtors:
            self.send("HSET", OWED, f"{n}", 3)
        for n, (beat, holds) in enumerate(world.consumers):
            self._consumer(f"w{n}", beat, holds=holds)

    def _consumer(self, name: str, beat: int | None, *, holds: bool) -> None:
        if beat is not None:
            self.send("HSET", BEATS, name, START_MS + beat)
        self.send("XGROUP", "CREATECONSUMER", INTERACTIVE.stream, names.GROUP, name)
        if holds:
            entry = self.send("XADD", INTERACTIVE.stream, "*", "held", name)
            self.send("XGROUP", "CREATECONSUMER", INTERACTIVE.stream, names.GROUP, name)
            self.send(
                *("XCLAIM", INTERACTIVE.stream, names.GROUP, name, 0, entry, "FORCE", "JUSTID")
            )

    def left(self) -> dict[str, set[str]]:
        def fields(key: bytes) -> set[str]:
            return {field.decode() for field in self.send("HKEYS", key)}

        rows = self.send("XINFO", "CONSUMERS", INTERACTIVE.stream, names.GROUP)
        replies = self.send("KEYS", "reply:*")
        return {
            "leases": fields(LEASES),
            "tries": fields(TRIES),
            "ids": fields(INTERACTIVE.ids),
            "solo": fields(SOLO),
            "clients": fields(CLIENTS),
            "replies": {key.rpartition(b":")[2].decode() for key in replies},
            "owed": fields(OWED),
            "beats": fields(BEATS),
            "consumers": {row[1].decode() for row in rows},
        }


def living(world: World) -> dict[str, set[str]]:
    """What must be left of a world."""
    grace_ms, retain_ms = 6 * LEASE_TTL_S * 1000, RETAIN_S * 1000
    clients = {f"{n}" for n, at in enumerate(world.clients) if at + retain_ms >= 0}
    places = {
        n: place
        for n, place in enumerate(world.places)
        if place.there or place.born_ms + RECORD_GRACE_MS >= 0
    }
    alive = {
        f"w{n}"
        for n, (beat, holds) in enumerate(world.consumers)
        if holds or (beat is not None and beat >= 0)
    }
    return {
        "leases": {f"lease {n}" for n, at in enumerate(world.leases) if at + grace_ms >= 0},
        "tries": {f"try {n}" for n, at in enumerate(world.tries) if at >= 0},
        "ids": {f"c/{n}" for n in places},
        "solo": {f"{p.lane}/{START_MS + p.born_ms}-{n}" for n, p in places.items()},
        "clients": clients,
        "replies": clients,
        "owed": {f"{n}" for n in world.debtors} & clients,
        "beats": {name for name in alive if world.consumers[int(name[1:])][0] is not None},
        "consumers": alive,
    }


@pytest.fixture
def shard(store_url: str) -> Iterator[Shard]:
    client = connect_sync(store_url, role="commands")
    yield Shard(client)
    client.flushall()
    client.close()


def test_nothing_that_lives_goes_and_nothing_dead_stays(shard: Shard, store_url: str) -> None:
    async def swept(world: World) -> None:
        store = VirtualStore(store_url)
        await store.advance()
        one = sweep_of(store)
        one._shards[0]._cursors.update(
            zip(one._shards[0]._pages(), world.cursors, strict=True), beats=world.cursors[0]
        )
        for _ in range(4):
            await one.once()
        await store.aclose()

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(world=WORLDS)
    def check(world: World) -> None:
        shard.client.flushall()
        shard.set_up(world)
        runner.run(swept(world))
        assert shard.left() == living(world)

    with asyncio.Runner() as runner:
        check()


# --- bounds --------------------------------------------------------------------------------------

KINDS = 10
PAGE = COUNT * 3 // 2
"""HSCAN gives a few more than it was asked for, most in a table that shrinks."""
MOST_CALLS = 20 * PAGE
"""Commands in one round, those in scripts included. A consumer takes the most, 8."""


async def test_50_000_leftovers_take_many_rounds_of_bounded_work(
    askonce_store: AskonceStore, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "MOST_TOTALS", 10)
    await leave_behind(store)
    one = sweep_of(askonce_store)
    removed = rounds = most_calls = most_removed = 0
    while removed < KINDS * EACH - sweep.MOST_TOTALS:
        await store.config_resetstat()
        now = await one.once()
        assert now > 0
        most_removed = max(most_removed, now)
        most_calls = max(most_calls, await calls(store))
        removed += now
        rounds += 1
    assert rounds >= EACH / PAGE
    assert most_removed <= KINDS * PAGE
    assert most_calls <= MOST_CALLS
    assert await sweep_all(askonce_store) == 0
    kept = {lane.stream for lane in LANES} | {STAMPS, STATS}
    assert set(cast("list[bytes]", await store.keys("*"))) == kept
    assert await consumers(store) == set()


async def test_a_list_of_consumers_is_worked_off_before_it_is_asked_for_again(
    askonce_store: AskonceStore, store: Store
) -> None:
    """The server has no pages for it, and takes 175 ms for 50,000."""
    await leave_behind(store, 5 * COUNT)
    await store.delete(BEATS.decode())
    one = sweep_of(askonce_store)
    await store.config_resetstat()
    rounds = 0
    while await consumers(store):
        await one.once()
        rounds += 1
    listed = await calls(store, "xinfo|consumers") - rounds - 1
    assert rounds == 10
    assert listed == len(LANES)


async def test_much_to_remove_is_removed_soon(askonce_store: AskonceStore, store: Store) -> None:
    await leave_behind(store, 15 * COUNT)
    one = sweep_of(askonce_store, every_s=2.0)
    sweeping = asyncio.create_task(one.run())
    try:
        # At the usual pace, 15 rounds take 15 s at the least.
        await eventually(lambda: _is_gone(store, LEASES), timeout_s=14)
    finally:
        sweeping.cancel()
        await asyncio.wait([sweeping])


async def _is_gone(store: Store, key: bytes) -> bool:
    return not await store.exists(key)
