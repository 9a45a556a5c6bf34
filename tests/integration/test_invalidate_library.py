"""`AnswerCache.invalidate`: all ways to name what is taken, the count, and what is under way."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from askonce_queue.errors import AskonceError
from askonce_worker import AnswerCache
from askonce_worker.cache.survey import Limits
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("store")


class Numbers:
    """A function that returns how often it was called."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self) -> int:
        self.count += 1
        return self.count


async def value(cache: AnswerCache, key: object, number: Numbers, **options: Any) -> int:
    result = await cache.get_or_call("numbers", key, number, **options)
    assert isinstance(result.value, int)
    return result.value


@pytest.mark.parametrize(
    "what",
    [
        {"names": ["numbers"]},
        {"names": ["num*"]},
        {"tags": ["red"]},
        {"sources": ["faq"]},
        {"sources": ["law"]},
        {"patterns": ["r?d"]},
        {"everything": True},
        {"keys": "its own"},
    ],
    ids=str,
)
async def test_what_is_invalidated_is_called_again(store_url: str, what: dict[str, Any]) -> None:
    depends_on = {"faq": ["law"]}
    number = Numbers()
    async with (
        AnswerCache(store_url, depends_on=depends_on) as cache,
        AnswerCache(store_url, memory_bytes=0) as other,
    ):
        assert await value(cache, "x", number, tags=["red"], sources=["faq"]) == 1
        await value(cache, "y", Numbers(), tags=["blue"])
        if "keys" in what:
            what = {"keys": [cache.key_of("numbers", "x")]}
        would = await cache.invalidate(**what, dry_run=True)
        taken = 2 if "everything" in what or "names" in what else 1
        assert (would.count, would.complete, would.stamps) == (taken, True, {})
        assert await value(cache, "x", number) == 1
        done = await cache.invalidate(**what, count=True)
        assert (done.count, done.complete, set(done.stamps)) == (taken, True, {"0"})
        # At once in this process, and in the store.
        assert await value(other, "x", number) == 2
        assert await value(cache, "x", number) == 2
        again = await cache.invalidate(**what, count=True)
        assert again.count == (1 if taken == 2 or "keys" in what else 0)  # it has no tags now


async def test_a_value_knows_what_its_sources_depended_on(store_url: str) -> None:
    """Whoever invalidates need not; and who has learnt of it since finds what was built before."""
    number = Numbers()
    async with (
        AnswerCache(store_url, depends_on={"faq": ["law"]}) as knows,
        AnswerCache(store_url, memory_bytes=0) as other,
    ):
        await value(knows, "x", number, sources=["faq"])
        assert (await other.invalidate(sources=["law"], count=True)).count == 1
        assert await value(other, "x", number, sources=["faq"]) == 2
        assert (await other.invalidate(sources=["law"], count=True)).count == 0
        assert (await knows.invalidate(sources=["law"], count=True)).count == 1
        assert await value(other, "x", number) == 3


async def test_what_is_not_named_stays(store_url: str) -> None:
    number = Numbers()
    async with AnswerCache(store_url) as cache:
        await value(cache, "x", number, tags=["red"], sources=["faq"])
        done = await cache.invalidate(
            keys=[cache.key_of("numbers", "other"), cache.key_of("numbers", "x", version="2")],
            names=["number", "?"],
            tags=["faq"],
            sources=["red"],
            patterns=["re", "*x"],
            count=True,
        )
        assert (done.complete, done.count) == (True, 0)
        assert await value(cache, "x", number) == 1


async def test_invalidate_then_a_slow_flight_lands(store_url: str) -> None:
    """And A leads with tag u1, B joins with tag u2, u2 is invalidated: gone, for B too."""
    number, go = Numbers(), asyncio.Event()

    async def slow() -> int:
        await go.wait()
        return await number()

    async with AnswerCache(store_url) as cache:
        ways: list[dict[str, Any]] = [
            {"tags": ["u2"]},
            {"patterns": ["u*"]},
            {"names": ["numbers"]},
        ]
        for what in ways:
            go.clear()
            before = number.count
            first = asyncio.create_task(cache.get_or_call("numbers", "x", slow, tags=["u1"]))
            await eventually(lambda: len(cache._resolver.flights) == 1)
            second = asyncio.create_task(cache.get_or_call("numbers", "x", slow, tags=["u2"]))
            await eventually(lambda: any(len(f.asks) == 2 for f in cache._resolver.flights))
            assert (await cache.invalidate(**what)).complete
            go.set()
            assert (await first).value == (await second).value == before + 1
            for tags in (["u2"], ["u1"], []):
                assert await value(cache, "x", number, tags=tags) == before + 2
            await cache.invalidate(everything=True)


async def test_it_reaches_other_caches_within_the_bound(store_url: str) -> None:
    bound_s = 0.4
    number = Numbers()
    async with (
        AnswerCache(store_url) as cache,
        AnswerCache(store_url, stamp_bound_s=bound_s) as other,
    ):
        await value(other, "x", number, tags=["red"])
        assert (await cache.invalidate(patterns=["re*"])).complete
        since = last_old = time.monotonic()
        for _ in range(1000):
            asked_at = time.monotonic()
            if await value(other, "x", number) == 2:
                break
            last_old = asked_at
            await asyncio.sleep(0.005)
        assert last_old - since <= bound_s


async def test_a_count_that_ends_early_is_unknown(store_url: str) -> None:
    async with AnswerCache(store_url) as cache:
        for key in range(700):
            await value(cache, key, Numbers())
        done = await cache.invalidate(everything=True, dry_run=True, limits=Limits(answers=10))
        assert done.tally is not None
        assert done.count is None
        assert "the limit of 10 answers was reached" in done.tally.unfinished
        assert 0 < done.tally.answers < 700


@pytest.mark.parametrize(
    "what",
    [
        {},
        {"everything": True, "tags": ["a"]},
        {"keys": ["abc"]},
        {"keys": ["ab"]},
        {"patterns": ["*" * 9]},
        {"patterns": [""]},
        {"tags": [f"{number}" for number in range(501)]},
    ],
    ids=lambda what: str(what)[:30],
)
async def test_what_cannot_be_invalidated(store_url: str, what: dict[str, Any]) -> None:
    async with AnswerCache(store_url) as cache:
        with pytest.raises(ValueError, match=r"."):
            await cache.invalidate(**what)
    with pytest.raises(AskonceError, match="not open"):
        await cache.invalidate(everything=True)
