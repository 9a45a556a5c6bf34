"""The types of the public API, as its users see them. Checked by mypy and basedpyright, never run.

A wrong type is a failed `assert_type`; a call that must not type-check is marked as ignored, and an
ignore that is not needed fails.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, assert_type

from askonce_queue import Answer, Client, EmbeddedStore, ErrorInfo, Job, Reply, Usage
from askonce_queue.reply import Source
from askonce_worker import AnswerCache, Result, cached


class Verdict:
    """What a user's function returns."""

    label: str


async def judge() -> Verdict:
    """A user's function."""
    return Verdict()


@cached(name="verdict", version="1")
async def verdict(text: str, *, strict: bool = False) -> Verdict:
    """A cached one."""
    del text, strict
    return Verdict()


async def values_are_of_the_type_that_was_asked_for(cache: AnswerCache) -> None:
    """`returns` decides; without it, the value is plain JSON."""
    typed = await cache.get_or_call("f", {"text": "x"}, judge, returns=Verdict)
    assert_type(typed, Result[Verdict])
    assert_type(typed.value, Verdict)
    assert_type(typed.source, Source)
    assert_type(typed.age_s, float)
    plain = await cache.get_or_call("f", 1, judge, version="2", tags=["a"], tenant="t", ttl_s=5)
    assert_type(plain, Result[Any])
    builtin = await cache.get_or_call("f", 1, number, returns=int)
    assert_type(builtin.value, int)


async def number() -> int:
    """Another one."""
    return 1


async def a_call_must_return_what_was_promised(cache: AnswerCache) -> None:
    """And be awaitable."""
    await cache.get_or_call("f", 1, judge, returns=int)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await cache.get_or_call("f", 1, lambda: 3)  # type: ignore[arg-type, return-value]  # pyright: ignore[reportArgumentType, reportCallIssue]


async def a_cached_function_keeps_its_signature() -> None:
    """Parameters and result."""
    assert_type(await verdict("x"), Verdict)
    assert_type(await verdict(text="x", strict=True), Verdict)
    await verdict()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await verdict(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await verdict("x", lax=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def only_coroutine_functions_can_be_cached() -> None:
    """A plain function has no flight to wait for."""

    def plain(x: int) -> int:
        return x

    cached(name="plain")(plain)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def the_decorator_is_typed() -> None:
    """As a function of functions."""
    assert_type(cached(name="number")(number), Callable[[], Awaitable[int]])


async def caches_and_stores_are_context_managers() -> None:
    """`async with … as` gives the thing itself."""
    async with EmbeddedStore(".askonce") as store:
        assert_type(store, EmbeddedStore)
        assert_type(store.url, str)
        async with AnswerCache(store.url, shards=4, memory_bytes=1 << 20) as cache:
            assert_type(cache, AnswerCache)
    with EmbeddedStore(".askonce") as store:
        assert_type(store, EmbeddedStore)


async def invalidation_is_typed(cache: AnswerCache) -> None:
    """What was done, and how much that took: a number, or nobody knows."""
    done = await cache.invalidate(tags=["vip"], sources=["policy"], count=True)
    assert_type(done.complete, bool)
    assert_type(done.count, int | None)
    assert_type(done.failures, dict[str, str])
    assert_type(cache.key_of("number", {"x": 1}), str)
    await cache.invalidate(["vip"])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def producers_are_typed(client: Client) -> None:
    """Jobs in, replies out."""
    reply = await client.ask(Job(task="intent", text="I lost my card", tags=("vip",)))
    assert_type(reply, Reply)
    assert_type(reply.answer, Answer | None)
    assert_type(reply.error, ErrorInfo | None)
    assert_type(reply.source, str | None)  # a newer worker may know more of them
    if reply.answer is not None:
        assert_type(reply.answer.label, str | None)
        assert_type(reply.answer.usage, Usage | None)
    async for one in client.ask_many([Job(task="intent", text="x")]):
        assert_type(one, Reply)
    Job("intent", text="x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Job(text="x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
