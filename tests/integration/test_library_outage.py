"""`AnswerCache` while its store is away: it calls without it, or says so, and mends by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Literal

import pytest

from askonce_loadtest.servers.node import Node
from askonce_queue import StoreUnavailable
from askonce_queue.store_config import StoreConfig
from askonce_worker import AnswerCache
from askonce_worker.library import Result
from tests.support.waiting import eventually

AWAY = pytest.mark.parametrize("away", [Node.kill, Node.pause], ids=["killed", "paused"])


@pytest.fixture(scope="module")
def session_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    one = Node(tmp_path_factory.mktemp("node"))
    try:
        asyncio.run(one.start())
        yield one
    finally:
        one.close()


@pytest.fixture
async def node(session_node: Node) -> AsyncIterator[Node]:
    yield session_node
    await back(session_node)
    await session_node.command("FLUSHALL")


async def back(node: Node) -> None:
    if node.running:
        node.resume()
    else:
        await node.start()


def cache_on(
    node: Node, without_store: Literal["call", "raise"] = "call", **options: Any
) -> AnswerCache:
    config = StoreConfig(url=node.url, timeout_s=0.5, wait_timeout_s=0.2)
    return AnswerCache(config, without_store=without_store, **options)


class Calls:
    """A slow function that counts its calls; each gives another value."""

    def __init__(self, *, closed: bool = False) -> None:
        self.count = 0
        self.gate = asyncio.Event()
        if not closed:
            self.gate.set()

    async def __call__(self) -> int:
        self.count += 1
        number = self.count
        await self.gate.wait()
        return number


async def timed(asking: Any) -> tuple[Result[Any], float]:
    began = time.monotonic()
    return await asking, time.monotonic() - began


@AWAY
async def test_equal_calls_run_once_here_and_nothing_is_kept(
    node: Node, away: Callable[[Node], None]
) -> None:
    async with cache_on(node) as cache:
        calls = Calls(closed=True)
        away(node)
        asking = [asyncio.create_task(cache.get_or_call("f", "k", calls)) for _ in range(50)]
        await eventually(lambda: calls.count)
        calls.gate.set()
        results = await asyncio.gather(*asking)
        assert {result.value for result in results} == {1}
        assert sorted({result.source for result in results}) == ["coalesced", "model"]
        assert cache.counters.total("without_store") == 1
        again = await cache.get_or_call("f", "k", calls)
        assert (again.value, again.source) == (2, "model")
        await back(node)

        async def is_kept() -> bool:
            await cache.get_or_call("f", "k", calls)
            return (await cache.get_or_call("f", "k", calls)).source == "memory"

        await eventually(is_kept)
        async with cache_on(node) as other:
            assert (await other.get_or_call("f", "k", Calls())).source == "store"


@AWAY
async def test_nobody_waits_long(node: Node, away: Callable[[Node], None]) -> None:
    """The first finds out, which takes a time-out and the second chance; later ones know."""
    async with cache_on(node) as cache:
        away(node)
        calls = Calls()
        _, first_s = await timed(cache.get_or_call("f", "first", calls))
        assert first_s < 3.0
        took: list[float] = []
        for number in range(20):
            result, seconds = await timed(cache.get_or_call("f", number, calls))
            assert result.source == "model"
            took.append(seconds)
        assert sorted(took)[len(took) // 2] < 0.4
        assert max(took) < 3.5


@AWAY
async def test_a_call_under_way_is_answered_although_it_cannot_be_kept(
    node: Node, away: Callable[[Node], None]
) -> None:
    async with cache_on(node) as cache:
        calls = Calls(closed=True)
        asking = asyncio.create_task(timed(cache.get_or_call("f", "k", calls)))
        await eventually(lambda: calls.count)
        away(node)
        calls.gate.set()
        began = time.monotonic()
        result, _ = await asking
        assert result.value == 1
        assert time.monotonic() - began < 4.0


@AWAY
async def test_who_wants_to_know_is_told(node: Node, away: Callable[[Node], None]) -> None:
    cache_ttl_s = 10.0
    async with cache_on(node, "raise", lease_ttl_s=cache_ttl_s) as cache:
        calls = Calls()
        known = await cache.get_or_call("f", "known", calls)
        assert known.source == "model"
        away(node)
        asking = [cache.get_or_call("f", "k", calls) for _ in range(20)]
        told = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(one) for one in told] == [StoreUnavailable] * 20
        assert calls.count == 1
        await back(node)

        async def works() -> bool:
            try:
                await cache.get_or_call("f", "k", calls)
            except StoreUnavailable:
                return False
            return True

        # What the server was asked before it hung, it does when it wakes: such leases are nobody's.
        await eventually(works, timeout_s=cache_ttl_s / 2)
        assert calls.count == 2
        # What was in memory is served again.
        assert (await cache.get_or_call("f", "known", calls)).source in ("memory", "store")


async def test_what_is_in_memory_is_served_for_the_bound_and_no_longer(node: Node) -> None:
    """Nobody can know whether it was invalidated since."""
    async with cache_on(node, stamp_bound_s=0.4) as cache:
        calls = Calls()
        await cache.get_or_call("f", "k", calls)
        assert (await cache.get_or_call("f", "k", calls)).source == "memory"
        node.kill()

        async def is_unsure() -> bool:
            return (await cache.get_or_call("f", "k", calls)).source == "model"

        await eventually(is_unsure)
        assert calls.count == 2


async def test_a_cache_that_is_closed_during_an_outage(node: Node) -> None:
    async with cache_on(node) as cache:
        calls = Calls(closed=True)
        asking = asyncio.create_task(cache.get_or_call("f", "k", calls))
        await eventually(lambda: calls.count)
        node.pause()
        began = time.monotonic()
    assert time.monotonic() - began < 8.0
    with pytest.raises(Exception, match="closed"):
        await asking
