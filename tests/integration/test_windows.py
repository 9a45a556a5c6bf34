"""Rolling windows: what is counted stands in buckets of time, is summed, and goes again."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from askonce_queue import names, queue_scripts
from askonce_queue.buckets import OTHERS, SIZES, read_bucket
from askonce_queue.scripts import run, send
from askonce_queue.store import Store
from askonce_worker.observe.counters import Counters
from askonce_worker.observe.totals import read_fleet
from askonce_worker.observe.windows import WINDOWS, Timeline, WindowReader
from askonce_worker.pool.sweep import COUNT
from tests.support.leftovers import sweep_all, sweep_of
from tests.support.resolving import all_keys
from tests.support.virtual_time import VirtualTime, virtual_scripts

MINUTE, MINUTES, HOUR, DAY = WINDOWS


@pytest.fixture(autouse=True)
def scripts() -> Iterator[None]:
    yield from virtual_scripts()


@pytest.fixture
async def time(store: redis.asyncio.Redis, store_url: str) -> VirtualTime:
    time = VirtualTime(store, store_url)
    await time.advance(5)  # not where a bucket begins
    return time


async def flush(store: Store, name: str = "model", amount: int = 1, task: str = "t") -> None:
    """Count as a worker does."""
    counters = Counters()
    counters.count(task, name, amount)
    await counters.flush(store, "0")


async def timeline(store: Store, time: VirtualTime) -> Timeline:
    return await WindowReader(store).timeline(time.now_ms)


async def seen(store: Store, time: VirtualTime) -> list[int]:
    """What each window says."""
    now = await timeline(store, time)
    return [now.counts(window)["t", "model"] for window in WINDOWS]


async def bucket_keys(store: redis.asyncio.Redis) -> list[bytes]:
    return await all_keys(store, "window:*")


async def test_each_window_forgets_when_its_time_is_over(
    askonce_store: Store, time: VirtualTime
) -> None:
    for amount in (1, 10):
        await flush(askonce_store, amount=amount)
    assert await seen(askonce_store, time) == [11] * 4
    for after_s, expected in (
        *((60, [11] * 4), (20, [0, 11, 11, 11]), (240, [0, 0, 11, 11])),
        *((3_600, [0, 0, 0, 11]), (86_400, [0, 0, 0, 0])),
    ):
        await time.advance(after_s)
        assert await seen(askonce_store, time) == expected, after_s


async def test_totals_go_on_for_ever(
    askonce_store: Store, store: redis.asyncio.Redis, time: VirtualTime
) -> None:
    await flush(askonce_store)
    await time.advance(1e6)
    await flush(askonce_store)
    assert await send(store, "HGET", names.stats("0"), "t|model") == b"2"


async def test_a_window_covers_no_time_in_which_nobody_counted(
    askonce_store: Store, time: VirtualTime
) -> None:
    """A rate over the last day is no smaller because the store is an hour old."""
    assert (await timeline(askonce_store, time)).span_s(DAY) == 0
    await flush(askonce_store)
    await time.advance(700)
    await flush(askonce_store)
    now = await timeline(askonce_store, time)
    assert 700 <= now.span_s(DAY) == now.span_s(HOUR) <= 710
    assert 300 <= now.span_s(MINUTES) <= 310
    await time.advance(7200)  # the buckets of 10 s are gone, and say nothing any more
    await flush(askonce_store)
    await sweep_all(askonce_store)
    assert 7900 <= (await timeline(askonce_store, time)).span_s(DAY) <= 7900 + 300


async def test_what_happened_long_ago_is_counted_there_and_only_there(
    store: redis.asyncio.Redis, time: VirtualTime
) -> None:
    then_ms = time.now_ms
    for after_s, sizes in ((0, 3), (3_000, 2), (20_000, 1), (300_000, 0)):
        await store.flushall()
        await time.advance(after_s)
        await run(store, queue_scripts.count("0", {"t|fills": 1}, at_ms=int(then_ms)))
        keys = await bucket_keys(store)
        assert len(keys) == sizes, after_s
        for key in keys:
            bucket = read_bucket(key.removeprefix(names.window_prefix("0")))
            assert bucket is not None
            assert bucket.start_ms <= then_ms < bucket.end_ms
    assert await send(store, "HGET", names.stats("0"), "t|fills") == b"1"


async def test_what_is_to_come_is_counted_now(
    askonce_store: Store, store: redis.asyncio.Redis, time: VirtualTime
) -> None:
    """After a failover the clock may be behind what an entry says."""
    later_ms = int(time.now_ms + 1e9)
    await run(store, queue_scripts.count("0", {"t|model": 1}, at_ms=later_ms))
    assert await seen(askonce_store, time) == [1] * 4
    buckets = [read_bucket(key.split(b":", 2)[2]) for key in await bucket_keys(store)]
    assert all(bucket and bucket.start_ms <= time.now_ms for bucket in buckets)


async def test_buckets_have_no_ttl_and_are_swept(
    askonce_store: Store, store: redis.asyncio.Redis, time: VirtualTime
) -> None:
    for _ in range(100):
        await flush(askonce_store)
        await time.advance(3600)
    assert len(await bucket_keys(store)) == 300
    assert {await store.ttl(key) for key in await bucket_keys(store)} == {-1}
    assert await sweep_of(askonce_store).once() == COUNT  # no more in one go
    await sweep_all(askonce_store)
    left = {
        read_bucket(key.removeprefix(names.window_prefix("0"))) for key in await bucket_keys(store)
    }
    assert {bucket.size_s for bucket in left if bucket} == {3600, 300}
    over = [b for b in left if b and time.now_ms >= b.end_ms + _kept_ms(b.size_s)]
    assert over == []
    assert await store.zcard(names.windows("0").decode()) == len(left)
    await time.advance(1e6)
    await sweep_all(askonce_store)
    assert await bucket_keys(store) == []
    assert not await store.exists(names.windows("0"))


def _kept_ms(size_s: int) -> int:
    (kept_s,) = [size.kept_s for size in SIZES if size.seconds == size_s]
    return kept_s * 1000


async def test_a_bucket_has_so_many_fields_and_no_more(
    askonce_store: Store, store: redis.asyncio.Redis, time: VirtualTime
) -> None:
    """Sums stay right: of tasks, of tenants and of what belongs to neither."""
    fields = {f"t{n}|model": 1 for n in range(50)} | {f"@u{n}|hits": 2 for n in range(50)}
    fields |= {"*|jobs_settled": 3}
    for _ in range(2):
        await run(store, queue_scripts.count("0", fields, most_fields=20))
    counts = (await timeline(askonce_store, time)).counts(MINUTE)
    assert len(counts) <= 20 + 3
    assert (
        sum(n for (task, _), n in counts.items() if task.startswith("t") or task == OTHERS) == 100
    )
    assert sum(n for (_, name), n in counts.items() if name == "hits") == 200
    assert counts["*", "jobs_settled"] == 6
    assert counts[OTHERS, "model"] > 0
    assert counts[f"\0{OTHERS}", "hits"] > 0


async def test_many_fields_are_found_fast_and_few_take_little_room(
    askonce_store: Store, store: redis.asyncio.Redis, time: VirtualTime
) -> None:
    """In a list of 500 fields every one is looked for from the start."""
    for count, encoding in ((50, b"listpack"), (300, b"hashtable")):
        counts = {f"t{n}|model": 1 for n in range(count)}
        for _ in range(2):
            await run(store, queue_scripts.count("0", counts))
        for key in (names.stats("0"), *await bucket_keys(store)):
            assert await send(store, "OBJECT", "ENCODING", key) == encoding
    assert (await timeline(askonce_store, time)).counts(MINUTE).total() == 700
    state = await read_fleet(askonce_store, "default")
    assert list(state.tasks) == sorted(f"t{n}" for n in range(300))


steps = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 9, 10, 55, 60, 290, 301, 3000, 3600, 40_000]), st.integers(1, 9)
    ),
    min_size=1,
    max_size=12,
)


@given(steps=steps)
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
async def test_a_window_is_the_sum_of_what_happened_in_its_buckets(
    askonce_store: Store,
    store: redis.asyncio.Redis,
    store_url: str,
    steps: list[tuple[float, int]],
) -> None:
    """At least everything within its time, and nothing from more than a bucket before."""
    await store.flushall()
    time = VirtualTime(store, store_url)
    await time.advance(0)
    happened: list[tuple[float, int]] = []
    for after_s, amount in steps:
        await time.advance(after_s)
        await flush(askonce_store, amount=amount)
        happened.append((time.now_ms, amount))
    now = await timeline(askonce_store, time)
    for window in WINDOWS:
        counted = now.counts(window)["t", "model"]
        ago = [((time.now_ms - at_ms) / 1000, amount) for at_ms, amount in happened]
        least = sum(amount for s, amount in ago if s <= window.seconds)
        most = sum(amount for s, amount in ago if s <= window.seconds + window.bucket_s)
        assert least <= counted <= most, window


# --- Reading again and again -----------------------------------------------------------------


async def reads(store: redis.asyncio.Redis) -> int:
    """How many hashes were read since the last call."""
    stats: Mapping[str, Mapping[str, int]] = await store.info("commandstats")
    await store.config_resetstat()
    return stats.get("cmdstat_hgetall", {}).get("calls", 0)


@pytest.fixture
async def crowd(askonce_store: Store, time: VirtualTime) -> int:
    """Buckets of the last hours; how many."""
    for _ in range(20):
        await time.advance(600)
        await flush(askonce_store)
    return len(await WindowReader(askonce_store)._names())


async def test_buckets_that_are_over_are_not_read_each_second(
    askonce_store: Store, store: redis.asyncio.Redis, time: VirtualTime, crowd: int
) -> None:
    reader = WindowReader(askonce_store)
    await reads(store)
    await reader.timeline(time.now_ms)
    assert await reads(store) == crowd
    await time.advance(1)
    await flush(askonce_store)
    now = await reader.timeline(time.now_ms)
    assert await reads(store) <= 6  # those of now, and of the minute before
    assert now.counts(MINUTE)["t", "model"] == 2


async def test_late_news_of_the_past_arrives_all_the_same(
    askonce_store: Store, time: VirtualTime, crowd: int
) -> None:
    del crowd
    reader = WindowReader(askonce_store)
    await reader.timeline(time.now_ms)
    at_ms = int(time.now_ms - 3_000_000)
    await askonce_store.run(queue_scripts.count("0", {"t|first_reads": 1}, at_ms=at_ms))
    await time.advance(61)
    assert (await reader.timeline(time.now_ms)).counts(HOUR)["t", "first_reads"] == 1


async def test_what_is_swept_is_forgotten_by_readers(
    askonce_store: Store, time: VirtualTime, crowd: int
) -> None:
    del crowd
    reader = WindowReader(askonce_store)
    await reader.timeline(time.now_ms)
    await time.advance(1e6)
    await sweep_all(askonce_store)
    now = await reader.timeline(time.now_ms)
    assert not now.counts(DAY)
    assert reader._read == {}
