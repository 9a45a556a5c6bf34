"""`AnswerCache` and `@cached`: equal calls run once, anywhere; everyone gets the value, typed."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import msgspec
import pytest
import redis.asyncio

from askonce_queue import StoreUnavailable, answer_scripts, names
from askonce_queue.errors import AskonceError, ConfigError, InvalidJob
from askonce_queue.scripts import run
from askonce_worker import AnswerCache, CallFailed, cached
from tests.support.lines import LineProcess
from tests.support.resolving import LIMIT_S, all_keys, lease_count
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture
async def cache(store_url: str) -> AsyncIterator[AnswerCache]:
    """An open cache, in a task of its own: what enters a task group must leave it too."""
    opened, done = asyncio.Event(), asyncio.Event()
    cache = AnswerCache(store_url)

    async def serve() -> None:
        async with cache:
            opened.set()
            await done.wait()

    task = asyncio.create_task(serve())
    await eventually(lambda: opened.is_set() or task.done())
    yield cache
    done.set()
    await task


@dataclasses.dataclass
class Verdict:
    label: str
    score: float
    on: dt.date


class Nested(msgspec.Struct):
    verdicts: list[Verdict]
    by_name: dict[str, float]


class Calls:
    """A function to be cached: counts its calls, and waits while its gate is closed."""

    def __init__(self, value: object = 1, *, closed: bool = False) -> None:
        self.value = value
        self.count = 0
        self.gate = asyncio.Event()
        if not closed:
            self.gate.set()

    async def __call__(self) -> Any:
        self.count += 1
        await self.gate.wait()
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value


async def soon(coroutine: Any) -> Any:
    """Its result; fails where it never comes."""
    with anyio.fail_after(LIMIT_S):
        return await coroutine


# --- get_or_call -----------------------------------------------------------------------------


async def test_equal_calls_run_once(cache: AnswerCache, store_url: str) -> None:
    calls = Calls({"a": [1, 2.5, None, "é"]}, closed=True)
    waiting = [asyncio.create_task(cache.get_or_call("f", {"x": 1}, calls)) for _ in range(100)]
    await eventually(lambda: calls.count)
    calls.gate.set()
    results = await soon(asyncio.gather(*waiting))
    assert calls.count == 1
    assert [result.source for result in results] == ["model", *["coalesced"] * 99]
    assert {json.dumps(result.value) for result in results} == {json.dumps(calls.value)}
    again = await cache.get_or_call("f", {"x": 1}, calls)
    assert (again.source, again.value) == ("memory", calls.value)
    assert again.age_s > 0
    async with AnswerCache(store_url) as other:
        from_store = await other.get_or_call("f", {"x": 1}, calls)
        assert (from_store.source, from_store.value) == ("store", calls.value)
    assert calls.count == 1
    assert cache.counters.total("model_calls") == 1


@pytest.mark.parametrize(
    "other",
    [
        {"name": "g"},
        {"version": "2"},
        {"tenant": "acme"},
        {"key": {"x": 2}},
        {"key": {"x": "1"}},
        {"key": [1]},
        {"key": {"x": 1, "stream": True}},  # not out of the key: these are arguments
        {"key": None},
    ],
)
async def test_what_tells_calls_apart(cache: AnswerCache, other: dict[str, Any]) -> None:
    calls = Calls()
    first: dict[str, Any] = {"name": "f", "key": {"x": 1}, "call": calls}
    for kwargs in (first, first | other, first, first | other):
        assert (await cache.get_or_call(**kwargs)).value == 1
    assert calls.count == 2


async def test_what_does_not_tell_calls_apart(cache: AnswerCache) -> None:
    calls = Calls()
    for extra in ({}, {"tags": ["t"]}, {"ttl_s": 5.0}, {"remember_failure_s": 9.0}):
        kwargs: dict[str, Any] = extra
        await cache.get_or_call("f", {"a": 1, "b": 2}, calls, **kwargs)
    await cache.get_or_call("f", {"b": 2.0, "a": 1}, calls)
    assert calls.count == 1


@pytest.mark.parametrize(
    ("value", "returns"),
    [
        (Verdict("spam", 0.5, dt.date(2026, 11, 21)), Verdict),
        (Nested([Verdict("a", 1.0, dt.date(2026, 1, 2))], {"b": 2.0}), Nested),
        ((1, "b"), tuple[int, str]),
        ({1: "one"}, dict[int, str]),
        (b"bytes", bytes),
        (None, None),
        ("text", str),
        ([], list[int]),
    ],
)
async def test_values_have_their_type_wherever_they_come_from(
    cache: AnswerCache, store_url: str, value: object, returns: Any
) -> None:
    calls = Calls(value)
    kwargs: dict[str, Any] = {"name": "f", "key": 1, "call": calls, "returns": returns}
    async with AnswerCache(store_url) as other:
        results = [await one.get_or_call(**kwargs) for one in (cache, cache, other)]
    assert [result.source for result in results] == ["model", "memory", "store"]
    assert [result.value for result in results] == [value] * 3
    assert calls.count == 1


async def test_one_caller_cannot_change_what_others_get(cache: AnswerCache) -> None:
    calls = Calls([1])
    for _ in range(3):
        result = await cache.get_or_call("f", 1, calls, returns=list[int])
        assert result.value == [1]
        result.value.append(2)


async def test_one_caller_cannot_change_what_others_get_untyped(cache: AnswerCache) -> None:
    calls = Calls([1])
    for _ in range(3):
        result = await cache.get_or_call("f", 1, calls)
        assert result.value == [1]
        result.value.append(2)


async def test_a_value_of_another_type_than_promised(cache: AnswerCache) -> None:
    calls = Calls("text")
    for _ in range(2):
        with pytest.raises(TypeError, match="give the function a new version"):
            await cache.get_or_call("f", 1, calls, returns=int)
    assert calls.count == 1
    assert (await cache.get_or_call("f", 1, calls)).value == "text"


@pytest.mark.parametrize(
    "key", [object(), float("nan"), {"a": {1, 2}}, "\ud800", 2**70, [[object()]], {"a": b"bytes"}]
)
async def test_keys_that_cannot_be_used(cache: AnswerCache, key: object) -> None:
    calls = Calls()
    with pytest.raises(InvalidJob):
        await cache.get_or_call("f", key, calls)
    assert calls.count == 0
    assert (await cache.get_or_call("f", "a good one", calls)).value == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"tags": ["two\nlines"]},
        {"tags": ["x"] * 17},
        {"tags": ["x" * 201]},
        {"tags": [""]},
        {"tenant": "two\nlines"},
    ],
)
async def test_tags_and_tenants_that_cannot_be_used(
    cache: AnswerCache, bad: dict[str, Any]
) -> None:
    with pytest.raises(InvalidJob):
        await cache.get_or_call("f", 1, Calls(), **bad)


async def test_names_that_cannot_be_used(cache: AnswerCache) -> None:
    with pytest.raises(InvalidJob):
        await cache.get_or_call("f\ntask:g", 1, Calls())


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, 0.0001, float("nan")])
async def test_ttls_that_cannot_be_used(cache: AnswerCache, ttl_s: float) -> None:
    with pytest.raises(ValueError, match="ttl_s"):
        await cache.get_or_call("f", 1, Calls(), ttl_s=ttl_s)


async def test_a_ttl_ends(cache: AnswerCache, store: redis.asyncio.Redis) -> None:
    calls = Calls()
    await cache.get_or_call("f", 1, calls, ttl_s=0.05)

    async def asked_again() -> bool:
        result = await cache.get_or_call("f", 1, calls, ttl_s=0.05)
        return result.source == "model"

    await eventually(asked_again)
    assert await store.dbsize()


async def test_tags_invalidate(cache: AnswerCache, store: redis.asyncio.Redis) -> None:
    calls = Calls()
    for tag, expected in (("mine", 2), ("task:f", 3), ("other", 3)):
        await cache.get_or_call("f", 1, calls, tags=["mine"])
        await run(store, answer_scripts.invalidate("0", everything=False, tags=[tag]))
        await cache._resolver.stamps.read(0)
        await cache.get_or_call("f", 1, calls)
        assert calls.count == expected


async def test_only_so_many_calls_at_once(store_url: str) -> None:
    running = most = 0

    async def call() -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return 1

    async with AnswerCache(store_url, max_calls=3) as cache:
        await soon(asyncio.gather(*[cache.get_or_call("f", n, call) for n in range(30)]))
    assert most == 3


# --- failures --------------------------------------------------------------------------------


async def test_an_exception_reaches_everyone_who_waits_and_is_not_kept(
    cache: AnswerCache, store: redis.asyncio.Redis
) -> None:
    error = ZeroDivisionError("a bug")
    calls = Calls(error, closed=True)
    waiting = [
        asyncio.create_task(cache.get_or_call("f", 1, calls, remember_failure_s=0.05))
        for _ in range(10)
    ]
    await eventually(lambda: calls.count)
    calls.gate.set()
    results = await soon(asyncio.gather(*waiting, return_exceptions=True))
    assert results == [error] * 10
    assert calls.count == 1
    assert not await all_keys(store, "a:*")
    calls.value = "better"

    async def better() -> bool:
        try:
            return bool((await cache.get_or_call("f", 1, calls)).value == "better")
        except CallFailed as failure:
            assert "ZeroDivisionError: a bug" in str(failure)  # noqa: PT017
            return False

    await eventually(better)
    assert calls.count == 2


async def test_other_processes_hear_of_a_failure(cache: AnswerCache, store_url: str) -> None:
    calls = Calls(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await cache.get_or_call("f", 1, calls, remember_failure_s=60)
    async with AnswerCache(store_url) as other:
        for one in (other, cache):
            with pytest.raises(CallFailed, match="ValueError: no"):
                await one.get_or_call("f", 1, calls)
    assert calls.count == 1


async def test_a_failure_that_is_not_remembered(cache: AnswerCache) -> None:
    calls = Calls(ValueError("no"))
    for count in (1, 2, 3):
        with pytest.raises(ValueError, match="no"):
            await cache.get_or_call("f", 1, calls, remember_failure_s=0)
        assert calls.count == count


@pytest.mark.parametrize("value", [object(), {"a": object()}, Verdict, {(1, object()): 2}])
async def test_values_that_are_not_json(cache: AnswerCache, value: object) -> None:
    with pytest.raises(TypeError):
        await cache.get_or_call("f", 1, Calls(value))
    assert (await cache.get_or_call("f", 2, Calls())).value == 1


@pytest.mark.parametrize("value", [2**70, "\ud800", {(1, 2): 3}])
async def test_values_that_the_store_cannot_hold(cache: AnswerCache, value: object) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        await cache.get_or_call("f", 1, Calls(value))
    assert (await cache.get_or_call("f", 2, Calls())).value == 1


async def test_a_call_that_gives_up_is_a_failure(cache: AnswerCache) -> None:
    """It was not its caller who was cancelled."""
    with pytest.raises(AskonceError):
        await soon(cache.get_or_call("f", 1, Calls(asyncio.CancelledError())))
    assert (await cache.get_or_call("f", 2, Calls())).value == 1


async def test_an_error_of_the_block_comes_out_as_it_is(store_url: str) -> None:
    with pytest.raises(ZeroDivisionError):
        async with AnswerCache(store_url):
            raise ZeroDivisionError


# --- cancellation ----------------------------------------------------------------------------


@pytest.mark.parametrize("who", [0, 1, 4])
async def test_cancelling_one_caller_cancels_nobody_else(cache: AnswerCache, who: int) -> None:
    calls = Calls(closed=True)
    waiting = [asyncio.create_task(cache.get_or_call("f", 1, calls)) for _ in range(5)]
    await eventually(lambda: calls.count)
    waiting[who].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting.pop(who)
    calls.gate.set()
    results = await soon(asyncio.gather(*waiting))
    assert [result.value for result in results] == [1] * 4
    assert calls.count == 1


async def test_when_all_callers_leave_the_call_finishes_and_is_kept(
    cache: AnswerCache, store_url: str, store: redis.asyncio.Redis
) -> None:
    calls = Calls(closed=True)
    waiting = [asyncio.create_task(cache.get_or_call("f", 1, calls)) for _ in range(5)]
    await eventually(lambda: calls.count)
    for task in waiting:
        task.cancel()
    assert len(await asyncio.gather(*waiting, return_exceptions=True)) == 5
    calls.gate.set()
    await eventually(lambda: cache.counters.total("flights_filled"))
    async with AnswerCache(store_url) as other:
        assert (await other.get_or_call("f", 1, calls)).source == "store"
    assert calls.count == 1
    assert await lease_count(store) == 0


async def test_a_caller_with_a_time_limit(cache: AnswerCache) -> None:
    calls = Calls(closed=True)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await cache.get_or_call("f", 1, calls)
    calls.gate.set()
    assert (await soon(cache.get_or_call("f", 1, calls))).value == 1
    assert calls.count == 1


async def test_closing_tells_those_who_still_wait(
    store_url: str, store: redis.asyncio.Redis
) -> None:
    calls = Calls(closed=True)
    async with AnswerCache(store_url) as cache:
        waiting = asyncio.create_task(cache.get_or_call("f", 1, calls))
        await eventually(lambda: calls.count)
    with pytest.raises(CallFailed, match="closed"):
        await waiting
    assert await lease_count(store) == 0


@pytest.mark.parametrize("opened", [True, False])
async def test_a_cache_that_is_not_open(store_url: str, *, opened: bool) -> None:
    cache = AnswerCache(store_url)
    if opened:
        async with cache:
            pass
    with pytest.raises(AskonceError, match="open"):
        await asyncio.wait_for(cache.get_or_call("f", 1, Calls()), 0.2)


async def test_a_cache_whose_resolver_has_failed(store_url: str) -> None:
    """Whatever the fault was: nobody waits for ever, then or later."""
    cache = AnswerCache(store_url)
    with contextlib.suppress(asyncio.CancelledError):
        async with cache:
            calls = Calls(closed=True)
            waiting = asyncio.create_task(cache.get_or_call("f", 1, calls))
            await eventually(lambda: calls.count)
            assert cache._host._task is not None
            cache._host._task.cancel()
            with pytest.raises(CallFailed):
                await soon(waiting)
            with pytest.raises(AskonceError):
                await asyncio.wait_for(cache.get_or_call("f", 2, Calls()), 0.5)


# --- opening ---------------------------------------------------------------------------------


async def test_without_a_store() -> None:
    with pytest.raises(StoreUnavailable):
        async with AnswerCache("unix:///nowhere.sock"):
            pytest.fail("it opened")


async def test_with_another_number_of_shards(store_url: str) -> None:
    async with AnswerCache(store_url):
        with pytest.raises(ConfigError, match="shards"):
            async with AnswerCache(store_url, shards=2):
                pytest.fail("it opened")


async def test_over_several_shards(store_url: str) -> None:
    calls = Calls()
    async with AnswerCache(store_url, shards=4) as cache:
        for _ in range(2):
            await soon(asyncio.gather(*[cache.get_or_call("f", n, calls) for n in range(50)]))
        assert calls.count == 50


# --- @cached ---------------------------------------------------------------------------------


async def test_a_cached_function(cache: AnswerCache) -> None:
    count = 0

    @cached(name="verdict", version="1", cache=cache)
    async def verdict(text: str, *, strict: bool = False, **more: int) -> Verdict:
        """What it says."""
        nonlocal count
        count += 1
        return Verdict(text, len(more) + strict, dt.date(2026, 11, 21))

    first = await verdict("spam")
    assert first == Verdict("spam", 0, dt.date(2026, 11, 21))
    assert await verdict(text="spam", strict=False) == first  # however it is called
    assert count == 1
    assert (await verdict("spam", strict=True)).score == 1
    assert (await verdict("spam", a=1)).score == 1
    assert count == 3
    assert verdict.__doc__ == "What it says."
    with pytest.raises(TypeError):
        await verdict()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    with pytest.raises(InvalidJob):
        await verdict(object())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def test_another_version_is_another_function(cache: AnswerCache) -> None:
    count = 0

    async def plain(x: int) -> int:
        nonlocal count
        count += 1
        return x + count

    old = cached(name="f", version="1", cache=cache)(plain)
    new = cached(name="f", version="2", cache=cache)(plain)
    assert [await old(1), await new(1), await old(1), await new(1)] == [2, 3, 2, 3]


async def test_a_cached_function_finds_the_open_cache(store_url: str) -> None:
    @cached(name="f")
    async def double(x: int) -> int:
        return 2 * x

    with pytest.raises(AskonceError, match="0 AnswerCaches are open"):
        await double(1)
    async with AnswerCache(store_url):
        assert await double(1) == 2
        async with AnswerCache(store_url):
            with pytest.raises(AskonceError, match="2 AnswerCaches are open"):
                await double(1)
        assert await double(1) == 2


async def test_the_exceptions_of_a_cached_function_are_its_own(cache: AnswerCache) -> None:
    @cached(name="f", cache=cache)
    async def fail(x: int) -> int:
        raise KeyError(x)

    results = await asyncio.gather(*[fail(1) for _ in range(5)], return_exceptions=True)
    assert [type(result) for result in results] == [KeyError] * 5


# --- several processes -----------------------------------------------------------------------


def request(key: object, result: object, *, callers: int = 20, hold: bool = False) -> str:
    return json.dumps({"key": key, "callers": callers, "hold": hold, "result": result})


def test_two_processes_call_once(store_url: str) -> None:
    with (
        LineProcess("library_process.py", store_url, "10") as first,
        LineProcess("library_process.py", store_url, "10") as second,
    ):
        for process in (first, second):
            process.expect("ready")
        first.write(request("x", "first", hold=True))
        first.expect("called")
        second.write(request("x", "second"))
        first.write("go on")
        reports = [json.loads(first.read()), json.loads(second.read())]
    assert [report["calls"] for report in reports] == [1, 0]
    assert {value for report in reports for value in report["values"]} == {"first"}
    assert reports[0]["sources"] == ["model", *["coalesced"] * 19]
    assert set(reports[1]["sources"]) <= {"coalesced", "store"}


async def test_a_killed_process_is_replaced(cache: AnswerCache, store_url: str) -> None:
    with LineProcess("library_process.py", store_url, "0.5") as process:
        process.expect("ready")
        process.write(request("x", "from the dead", hold=True))
        process.expect("called")
        process.kill()
    result = await soon(cache.get_or_call("f", "x", Calls("alive")))
    assert result.value == "alive"


async def test_answers_have_a_ttl_and_nothing_else_has(
    cache: AnswerCache, store: redis.asyncio.Redis
) -> None:
    await cache.get_or_call("f", 1, Calls(), ttl_s=100)
    keys = {key: int(await store.ttl(key)) for key in await all_keys(store)}
    assert {key for key, ttl in keys.items() if ttl != -1} == {
        key for key in keys if key.startswith(names.answer_prefix("0"))
    }
