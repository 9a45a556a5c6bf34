"""Answers that nobody reads: first reads, wherever they happen, against the fills of their time."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import redis.asyncio
from redis.exceptions import RedisError

from askonce_queue import names
from askonce_queue.scripts import send
from askonce_queue.store import Store
from askonce_worker.observe import first_reads
from askonce_worker.observe.figures import NeverRead
from askonce_worker.observe.first_reads import MOST_NOTED, FirstRead, FirstReads
from askonce_worker.observe.totals import FleetReader, Terms
from askonce_worker.resolver import Resolver
from tests.support.resolving import StepModel, all_keys, ask, make_task
from tests.support.virtual_time import VirtualTime, virtual_scripts

LIFE_S = 600.0


@pytest.fixture(autouse=True)
def scripts() -> Iterator[None]:
    yield from virtual_scripts()


@pytest.fixture
async def time(store: redis.asyncio.Redis, store_url: str) -> VirtualTime:
    time = VirtualTime(store, store_url)
    await time.advance(5)
    return time


async def tell(store: Store, *resolvers: Resolver) -> None:
    """What a worker does every second."""
    for resolver in resolvers:
        await resolver.counters.first_reads.tell(store, 0)
        await resolver.counters.flush(store, "0")


async def never_read(store: Store, time: VirtualTime, window: str = "5m") -> NeverRead:
    reader = FleetReader(store, "default", Terms(lives_s={"t": LIFE_S}))
    found = (await reader.windows(time.now_ms))[window].total.never_read
    assert found is not None
    return found


async def test_a_read_from_memory_counts_as_one_from_the_store(
    askonce_store: Store, time: VirtualTime
) -> None:
    """Of four answers one is read in the process that asked, one in another, one in both."""
    task = make_task(StepModel(), ttl_s=LIFE_S, memory_ttl_s=LIFE_S)
    async with time.resolver() as first, time.resolver() as second:
        for text in "abcd":
            await ask(first, task, text)
        await time.advance(100)
        for _ in range(3):
            for text in "ab":
                assert (await ask(first, task, text)).source == "memory"
            for text, sources in (("b", ("store", "memory")), ("c", ("store", "memory"))):
                assert (await ask(second, task, text)).source in sources
        # What the store has marked it need not be told.
        assert len(first.counters.first_reads._noted[0]) == 2
        assert 0 not in second.counters.first_reads._noted
        await tell(askonce_store, first, second)
        await tell(askonce_store, first, second)
        for resolver in (first, second):
            assert resolver.counters.total("fills") == (4 if resolver is first else 0)
        told = sum(r.counters.total("first_reads") for r in (first, second))
        assert told == 3
        young = await never_read(askonce_store, time)
        assert (young.fills, young.rate, young.not_read_yet) == (0, None, 1)
        await time.advance(LIFE_S + 220)  # all of their bucket is over
        old = await never_read(askonce_store, time)
        assert (old.fills, old.never_read, old.rate, old.not_read_yet) == (4, 1, 0.25, 0)
        await time.advance(400)  # the window has moved on
        assert (await never_read(askonce_store, time)).fills == 0


async def test_the_mark_of_a_read_touches_no_ttl(
    askonce_store: Store, store: redis.asyncio.Redis, time: VirtualTime
) -> None:
    task = make_task(StepModel(), ttl_s=LIFE_S)
    async with time.resolver() as resolver:
        for _ in range(2):
            await ask(resolver, task, "x")
        (key,) = await all_keys(store, "a:*")
        before = await send(store, "PEXPIRETIME", key)
        assert await send(store, "GETRANGE", key, 1, 1) == b"\0"
        await tell(askonce_store, resolver)
        assert await send(store, "GETRANGE", key, 1, 1) == b"\1"
        assert await send(store, "PEXPIRETIME", key) == before


async def test_an_answer_that_took_the_place_of_another_is_not_marked_for_it(
    askonce_store: Store, store: redis.asyncio.Redis, time: VirtualTime
) -> None:
    task = make_task(StepModel(), ttl_s=LIFE_S)
    async with time.resolver() as resolver, time.resolver() as other:
        for _ in range(2):
            await ask(resolver, task, "x")
        await store.delete(*await all_keys(store, "a:*"))
        await time.advance(1)
        await ask(other, task, "x")
        await tell(askonce_store, resolver, other)
        assert resolver.counters.total("first_reads") == 0
        assert other.counters.total("first_reads") == 0


async def test_a_task_whose_answers_live_too_long_has_no_rate(
    askonce_store: Store, time: VirtualTime
) -> None:
    lives = {"t": 30 * 86_400.0}
    found = await FleetReader(askonce_store, "default", Terms(lives_s=lives)).windows(time.now_ms)
    for window in found.values():
        assert window.total.never_read == NeverRead(
            fills=None, never_read=None, rate=None, not_read_yet=0
        )


async def test_answers_of_a_day_have_a_rate_over_a_day(
    askonce_store: Store, time: VirtualTime
) -> None:
    task = make_task(StepModel(), ttl_s=86_400, memory_ttl_s=300)
    async with time.resolver() as resolver:
        for text in "ab":
            await ask(resolver, task, text)
        await time.advance(80_000)
        await ask(resolver, task, "a")  # late: from the store, long after its fill
        await tell(askonce_store, resolver)
        reader = FleetReader(askonce_store, "default", Terms(lives_s={"t": 86_400.0}))
        await time.advance(12_000)
        windows = await reader.windows(time.now_ms)
        day, minute = windows["24h"].total.never_read, windows["1m"].total.never_read
        assert day is not None and minute is not None  # noqa: PT018 -- for the type checker
        assert (day.fills, day.never_read, day.rate) == (2, 1, 0.5)
        assert minute.fills is None  # whatever was filled so long ago is known by the hour


# --- What waits to be told -------------------------------------------------------------------


def read_of(number: int) -> FirstRead:
    return FirstRead("t", number.to_bytes(32, "big"), 1_000.0, 1.0)


async def test_reads_that_cannot_be_told_are_told_later(
    askonce_store: Store, time: VirtualTime
) -> None:
    task = make_task(StepModel(), ttl_s=LIFE_S)
    async with time.resolver() as resolver:
        for _ in range(2):
            await ask(resolver, task, "x")
        nowhere = Store("redis://127.0.0.1:1/0")
        with pytest.raises(RedisError):
            await resolver.counters.first_reads.tell(nowhere, 0)
        await nowhere.aclose()
        await tell(askonce_store, resolver)
        assert resolver.counters.total("first_reads") == 1


def test_there_is_room_for_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then an answer stays unread here, and its next read is told."""
    monkeypatch.setattr(first_reads, "MOST_NOTED", 3)
    assert MOST_NOTED > 3
    noted = FirstReads(lambda _: None)
    assert [noted.note(0, read_of(n)) for n in range(4)] == [True] * 3 + [False]
    assert noted.note(1, read_of(5))


async def test_many_reads_are_told_in_few_commands(
    askonce_store: Store, store: redis.asyncio.Redis, time: VirtualTime
) -> None:
    del time
    counted: Counter[str] = Counter()
    noted = FirstReads(lambda read: counted.update([read.task]))
    for number in range(1200):
        noted.note(0, read_of(number))
    await store.config_resetstat()
    await noted.tell(askonce_store, 0)
    stats = await store.info("commandstats")
    scripts = sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))
    assert scripts <= 4
    assert not counted  # none of them is there
    assert not await store.exists(names.stats("0"))
