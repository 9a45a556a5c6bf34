"""Cancelled at every await: it ends, leaves nothing behind, and nobody else notices.

`test_cancellation.py` has the single stories; here a machine looks for those nobody thought of.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import contextvars
import itertools
import sys
import threading
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
import redis.asyncio

from askonce_queue import names, queue_scripts
from askonce_queue.reply import Answer, decode_replies
from askonce_queue.scripts import run, send
from askonce_queue.store import Store
from askonce_worker import AnswerCache
from askonce_worker.models.protocol import Prompt, Question, TransientFailure
from askonce_worker.pool import intake, worker
from askonce_worker.resolver import Resolver
from tests.support.leaks import new_threads
from tests.support.queue_worker import INTERACTIVE, EchoModel, backlog, echo_worker
from tests.support.resolving import StepModel, Waiter, ask, lease_count, make_task, resolver_on
from tests.support.stepping import EVERY_HOW, Ended, How, cancel_everywhere
from tests.support.waiting import eventually

USER = b"cancelled"
CLIENT = "client"
"""The name of a client, and its token."""
JOBS = 5
"""What each worker finds."""
every_how = pytest.mark.parametrize("how", EVERY_HOW)


@pytest.fixture
async def url(store: redis.asyncio.Redis, store_url: str) -> AsyncIterator[str]:
    """The store's URL for a user of its own, so that its connections are known."""
    await send(store, "ACL", "SETUSER", USER, "on", "nopass", "~*", "&*", "+@all")
    yield store_url.replace("unix://", f"unix://{USER.decode()}:any@")
    await send(store, "ACL", "DELUSER", USER)


class Remains:
    """What a run leaves behind: it must be nothing."""

    def __init__(self, store: redis.asyncio.Redis) -> None:
        self._store = store
        self._threads = set(threading.enumerate())

    async def check(self, ended: Ended) -> None:
        """Wait until all is as before; tell what is not."""

        async def nothing() -> bool:
            return not await self._found(ended)

        try:
            await eventually(nothing, timeout_s=3)
        except AssertionError:
            raise AssertionError(f"{ended} leaves {await self._found(ended)}") from None

    async def _found(self, ended: Ended) -> list[str]:
        clients: bytes = await send(self._store, "CLIENT", "LIST")
        leases = await lease_count(self._store)
        return [
            *[f"task {task}" for task in ended.tasks if not task.done()],
            *[f"connection {c!r}" for c in clients.splitlines() if b"user=%b " % USER in c],
            *[f"thread {name}" for name in new_threads(self._threads)],
            *([f"{leases} leases"] if leases else []),
        ]


async def steps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@every_how
async def test_the_library(store: redis.asyncio.Redis, url: str, how: How) -> None:
    remains, runs = Remains(store), itertools.count()
    caches: list[AnswerCache] = []

    async def work() -> None:
        number = next(runs)

        async def call() -> int:
            await steps(2)
            return number

        async def fail() -> int:
            await steps(1)
            raise KeyError(number)

        async with AnswerCache(url) as cache:
            caches.append(cache)
            found = await asyncio.gather(
                *[cache.get_or_call("f", [number, key], call) for key in (1, 1, 2)],
                cache.get_or_call("g", number, fail),
                return_exceptions=True,
            )
            values = [one if isinstance(one, BaseException) else one.value for one in found]
            assert values[:3] == [number] * 3
            assert isinstance(values[3], KeyError)

    async def after(ended: Ended) -> None:
        await remains.check(ended)
        for cache in caches:
            assert cache._backend.in_flight == 0, str(ended)
            assert not cache._waiting, str(ended)
        caches.clear()

    check(await cancel_everywhere(work, how, after))


@every_how
async def test_one_caller_of_three(store: redis.asyncio.Redis, url: str, how: How) -> None:
    """The flight belongs to nobody, so the others have their value, of the one call."""
    runs, calls = itertools.count(), Counter[int]()
    others: list[asyncio.Task[Any]] = []

    async with AnswerCache(url) as cache:

        async def work() -> None:
            number = next(runs)

            async def call() -> int:
                calls[number] += 1
                await steps(3)
                return number

            def caller() -> Coroutine[Any, Any, Any]:
                return cache.get_or_call("f", number, call)

            others[:] = [outside(caller())]
            mine = caller()
            others.append(outside(caller()))
            await mine

        async def after(ended: Ended) -> None:
            async with asyncio.timeout(5):
                results = await asyncio.gather(*others)
            assert results[0].value == results[1].value, str(ended)
            assert calls[results[0].value] == 1, str(ended)
            assert not cache._waiting, str(ended)

        check(await cancel_everywhere(work, how, after))
        assert cache._backend.in_flight == 0
    assert await lease_count(store) == 0


@every_how
async def test_a_resolver_beside_another(
    store: redis.asyncio.Redis, store_url: str, url: str, how: How
) -> None:
    """Hits, cold questions, those the other one is asking, failures: it loses nothing of them."""
    remains, runs = Remains(store), itertools.count()
    waiting: list[Waiter] = []

    async def behave(text: str, number: int) -> None:
        await steps(5)
        if text.startswith("again") and number == 1:
            raise TransientFailure("unavailable", "not yet")
        if text.startswith("never"):
            raise TransientFailure("unavailable", "never")

    here, there = StepModel(behave=behave), StepModel(behave=behave)
    task, other_task = make_task(here, slots=2, remember_s=0.01), make_task(there)
    async with resolver_on(store_url) as other:
        await asyncio.gather(*[ask(other, other_task, f"hit {n}") for n in range(2)])

        async def work() -> None:
            number = next(runs)
            texts = [f"{kind} {number}" for kind in ("cold", "again", "never", "both", "theirs")]
            both, theirs = (Waiter(other_task, text) for text in texts[-2:])
            waiting[:] = [theirs]
            other.resolve(waiting)
            async with own_resolver(url) as resolver:
                mine = [Waiter(task, text) for text in [*texts, "hit 0", "hit 1"]]
                resolver.resolve(mine)
                waiting.append(both)
                other.resolve([both])
                labels = [(await one.outcome()).label for one in mine]
                assert labels == ["a", "a", None, "a", "a", "a", "a"]

        async def after(ended: Ended) -> None:
            async with asyncio.timeout(5):
                assert {(await one.outcome()).label for one in waiting} <= {"a"}, str(ended)
            await remains.check(ended)
            assert task.backend.in_flight == other_task.backend.in_flight == 0, str(ended)

        check(await cancel_everywhere(work, how, after))
    for text, count in (here.calls + there.calls).items():
        # Once, and once more where the first to ask was cancelled or failed.
        assert count <= (2 if text.startswith(("cold", "both", "theirs")) else 6), text


@asynccontextmanager
async def own_resolver(url: str) -> AsyncGenerator[Resolver]:
    """A resolver whose connections are closed however it is left."""
    client = Store(url)
    try:
        async with Resolver(client, memory_bytes=1 << 20).running() as resolver:
            yield resolver
    finally:
        with anyio.CancelScope(shield=True):
            await client.aclose()


@pytest.mark.parametrize("how", ["scope"])
async def test_a_worker(
    store: redis.asyncio.Redis, url: str, how: How, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it leaves undone is done by the next one, once."""
    monkeypatch.setattr(intake, "BLOCK_MS", 5)
    monkeypatch.setattr(worker, "FLUSH_LIMIT_S", 0.1)  # a scope cancels the outbox as well
    remains, runs = Remains(store), itertools.count()
    accepted = Counter[str]()
    await run(store, queue_scripts.claim_name("0", CLIENT, CLIENT, 600_000))
    await run(store, queue_scripts.ensure_group(INTERACTIVE))

    async def work() -> None:
        one = echo_worker(url, SlowEcho(), drain_s=0.05)
        async with one.running():
            total = one.counters.total
            await eventually(lambda: total("jobs_settled") + total("jobs_buried") >= JOBS)

    async def enqueue() -> None:
        number = next(runs)
        texts = ["hit", f"cold {number}", f"cold {number}", f"other {number}"]
        payloads = [b'{"task":"echo","text":"%b"}' % text.encode() for text in texts]
        jobs = {f"{number} {n}": data for n, data in enumerate([*payloads, b'{"task":"nope"}'])}
        accepted.update(jobs.keys())
        call = queue_scripts.enqueue(
            INTERACTIVE,
            client=CLIENT,
            token=CLIENT,
            reply_to="@sink",
            max_backlog=100_000,
            max_unread=100_000,
            max_memory_share=0.9,
            stride=2,
            jobs=[word for job in jobs.items() for word in job],
        )
        assert await run(store, call) == b"a" * JOBS

    async def after(ended: Ended) -> None:
        await remains.check(ended)
        await enqueue()

    await enqueue()
    check(await cancel_everywhere(work, how, after))

    async def settled() -> bool:
        return await backlog(store) == 0

    async with echo_worker(url).running():
        await eventually(settled, timeout_s=20)
    assert await replied(store) == accepted


class SlowEcho(EchoModel):
    """Takes some steps for each answer."""

    async def ask(self, prompt: Prompt, question: Question) -> Answer:
        await steps(3)
        return await super().ask(prompt, question)


async def replied(store: redis.asyncio.Redis) -> Counter[str]:
    """How often each job was replied."""
    entries = await send(store, "XRANGE", names.replies("0", "@sink"), "-", "+")
    return Counter(one.id for _, fields in entries for one in decode_replies(fields[3])[0])


def outside(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Start a task that is not among those of the work that is cancelled."""
    return contextvars.Context().run(asyncio.ensure_future, work)


def check(deaf: list[Ended]) -> None:
    """Nobody may be deaf to a cancellation.

    Before Python 3.12 `asyncio.wait_for`, with which redis-py sends, loses one that comes just as
    the send ends. Cancelled again, as anyio does, the work ends.
    """
    if sys.version_info < (3, 12):
        deaf = [ended for ended in deaf if "wait_for" not in ended.where.partition(";")[0]]
    assert not deaf, "\n".join(map(str, deaf))
