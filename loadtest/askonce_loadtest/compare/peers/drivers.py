"""How jobs are handed to a peer, timed and checked, in the same way for all of them.

Standard library only, and at run time nothing of this folder: it runs in every peer's environment.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a peer's environment has no askonce
    from askonce_loadtest.compare.peers.harness import Figures, Order, Step, SyncStep

LEAD_S = 0.1
AHEAD = 1_000
"""Jobs that a producer hands in before it has their results."""
TAKERS = 8


def jobs_of(order: Order) -> Iterator[str]:
    """The throughput run's texts: at least `order.jobs`, for at least `order.seconds`."""
    stream = order.texts()["stream"]
    until, handed = time.perf_counter() + order.seconds, 0
    while True:
        for text in stream:
            if handed >= order.jobs and time.perf_counter() >= until:
                return
            handed += 1
            yield text


def cold_jobs(order: Order) -> list[str]:
    """Every cold text, as often as `order.copies` says, shuffled."""
    texts = order.texts()["cold"] * order.copies
    random.Random(order.seed).shuffle(texts)
    return texts


async def drive(texts: Iterable[str], ask: Callable[[str], Awaitable[object]], order: Order) -> int:
    """Ask all texts from `order.callers` coroutines at once; return how many there were."""
    source, asked = iter(texts), 0

    async def caller() -> None:
        nonlocal asked
        for text in source:
            asked += 1
            order.check(await ask(text))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(order.callers):
            tasks.create_task(caller())
    return asked


def drive_sync(texts: Iterable[str], ask: Callable[[str], object], order: Order) -> int:
    """The same from as many threads."""
    source, lock = iter(texts), threading.Lock()

    def caller() -> int:
        asked = 0
        while True:
            with lock:
                text = next(source, None)
            if text is None:
                return asked
            order.check(ask(text))
            asked += 1

    with ThreadPoolExecutor(order.callers) as threads:
        callers = [threads.submit(caller) for _ in range(order.callers)]
        return sum(one.result() for one in callers)


def cache_steps(ask: Callable[[str], Awaitable[object]], order: Order) -> Mapping[str, Step]:
    """The steps of a cache whose look-up, or call, is `ask`."""

    async def stampede() -> int:
        cold = order.texts()["cold"]

        async def caller() -> None:
            for text in cold:
                order.check(await ask(text))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(order.callers):
                tasks.create_task(caller())
        return order.callers * len(cold)

    return {
        "warm_up": lambda: timed(drive(order.texts()["warm"], ask, order)),
        "ask_all": lambda: timed(drive(jobs_of(order), ask, order)),
        "paced": lambda: paced(ask, order),
        "stampede": lambda: timed(stampede()),
    }


def cache_steps_sync(ask: Callable[[str], object], order: Order) -> Mapping[str, SyncStep]:
    """The same for a cache that blocks."""

    def stampede() -> int:
        cold = order.texts()["cold"]

        def caller() -> None:
            for text in cold:
                order.check(ask(text))

        with ThreadPoolExecutor(order.callers) as threads:
            for one in [threads.submit(caller) for _ in range(order.callers)]:
                one.result()
        return order.callers * len(cold)

    return {
        "warm_up": lambda: timed_sync(lambda: drive_sync(order.texts()["warm"], ask, order)),
        "ask_all": lambda: timed_sync(lambda: drive_sync(jobs_of(order), ask, order)),
        "paced": lambda: paced_sync(ask, order),
        "stampede": lambda: timed_sync(stampede),
    }


async def drive_ahead(
    texts: Iterable[str],
    hand_in: Callable[[str], Awaitable[Any]],
    take: Callable[[Any], Awaitable[object]],
    order: Order,
) -> int:
    """Hand jobs in up to `AHEAD` before their results, and take these oldest first.

    For clients whose waiting for a result costs polls: the oldest is mostly there.
    """
    source, asked = iter(texts), 0
    handed: asyncio.Queue[Any] = asyncio.Queue(AHEAD)

    async def give() -> None:
        for text in source:
            await handed.put(await hand_in(text))

    async def give_all() -> None:
        async with asyncio.TaskGroup() as givers:
            for _ in range(order.callers):
                givers.create_task(give())
        for _ in range(TAKERS):
            await handed.put(None)

    async def collect() -> None:
        nonlocal asked
        while (job := await handed.get()) is not None:
            order.check(await take(job))
            asked += 1

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(give_all())
        for _ in range(TAKERS):
            tasks.create_task(collect())
    return asked


async def timed(run: Awaitable[int]) -> Figures:
    """Await a run; return its jobs, wall time and this process's CPU time."""
    cpu_s, began = time.process_time(), time.perf_counter()
    jobs = await run
    return {
        "jobs": jobs,
        "wall_s": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu_s,
    }


def timed_sync(run: Callable[[], int]) -> Figures:
    """The same for a run that blocks."""
    cpu_s, began = time.process_time(), time.perf_counter()
    jobs = run()
    return {
        "jobs": jobs,
        "wall_s": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu_s,
    }


async def paced(ask: Callable[[str], Awaitable[object]], order: Order) -> Figures:
    """An open loop at `order.paced_per_s`; latencies are from each job's intended start."""
    took_s: list[float] = []

    async def one(text: str, due: float) -> None:
        order.check(await ask(text))
        took_s.append(time.perf_counter() - due)

    async with asyncio.TaskGroup() as tasks:
        for text, due in _due(order):
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.create_task(one(text, due))
    return _percentiles(took_s)


def paced_sync(ask: Callable[[str], object], order: Order) -> Figures:
    """The same for a client that blocks: a thread a job in flight."""
    took_s: list[float] = []

    def one(text: str, due: float) -> None:
        order.check(ask(text))
        took_s.append(time.perf_counter() - due)

    with ThreadPoolExecutor(order.callers) as threads:
        asked: list[Future[None]] = []
        for text, due in _due(order):
            time.sleep(max(0.0, due - time.perf_counter()))
            asked.append(threads.submit(one, text, due))
        for future in asked:
            future.result()
    return _percentiles(took_s)


def _due(order: Order) -> Iterator[tuple[str, float]]:
    """Texts with the moments they are due: a Poisson process."""
    rng = random.Random(order.seed)
    stream = order.texts()["stream"]
    due = time.perf_counter() + LEAD_S
    for number in range(order.paced_jobs):
        due += rng.expovariate(order.paced_per_s)
        yield stream[number % len(stream)], due


def _percentiles(took_s: list[float]) -> Figures:
    ordered = sorted(took_s)
    last = len(ordered) - 1
    return {
        "latency_ms_p50": ordered[round(0.50 * last)] * 1e3,
        "latency_ms_p99": ordered[round(0.99 * last)] * 1e3,
    }
