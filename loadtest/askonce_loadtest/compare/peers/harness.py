"""A peer's end of the comparison: what it is told, the steps it is asked for, and its driver.

Every process of a peer finds its `Order` as JSON in the environment variable ASKONCE_COMPARE. The
comparison writes the name of one step after the other to standard input; each is answered with one
line of JSON on standard output: {} when the process is ready, then the step's figures. End of input
ends it. Standard library only: this file runs in every peer's environment.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import random
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast
from urllib.parse import urlsplit

VARIABLE = "ASKONCE_COMPARE"
LEAD_S = 0.1
END_S = 3.0
AHEAD = 1_000
TAKERS = 8

Figures = dict[str, float]
Step = Callable[[], Awaitable[Figures]]
SyncStep = Callable[[], Figures]


class WrongAnswerError(Exception):
    """A peer handed back something that is not what the model answers."""


@dataclass(frozen=True)
class Order:
    """What every process of a peer is told."""

    store_url: str
    """Of a fresh server, `redis://host:port/0`."""
    model_url: str
    """The root of the stand-in model server."""
    texts_file: str
    """JSON: `warm` (every distinct text), `stream` (the jobs, in order), `cold`."""
    ready_folder: str
    """Where a worker that takes jobs leaves a file."""
    config: str
    """askonce's own configuration file."""
    labels: tuple[str, ...]
    """What the model may answer."""
    jobs: int
    """The least number of jobs of the throughput run."""
    seconds: float
    """Its least length."""
    callers: int
    """Coroutines, or threads, that ask at once."""
    paced_per_s: float
    paced_jobs: int
    copies: int
    """How often every cold text is asked by a queue's producer."""
    seed: int

    @property
    def host(self) -> str:
        """The store's host."""
        return urlsplit(self.store_url).hostname or ""

    @property
    def port(self) -> int:
        """The store's port."""
        return urlsplit(self.store_url).port or 0

    def texts(self) -> dict[str, list[str]]:
        """Read the texts."""
        return cast(
            "dict[str, list[str]]", json.loads(Path(self.texts_file).read_text(encoding="utf-8"))
        )

    def check(self, label: object) -> None:
        """Raise `WrongAnswerError` unless `label` is one of the model's."""
        if label not in self.labels:
            raise WrongAnswerError(f"expected one of {self.labels}, got {label!r}")


def order() -> Order:
    """Read the order of this process."""
    fields: dict[str, Any] = json.loads(os.environ[VARIABLE])
    return Order(**{**fields, "labels": tuple(fields["labels"])})


def ready() -> None:
    """Say, in a worker, that it takes jobs."""
    Path(order().ready_folder, str(os.getpid())).touch()


# The pipe


def serve(role: Callable[[Order], AbstractAsyncContextManager[Mapping[str, Step]]]) -> None:
    """Serve an asynchronous role's steps until the input ends; on uvloop where it is installed."""
    pipe = _claim_output()
    try:
        import uvloop  # noqa: PLC0415 -- not every peer's environment has it
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve(role, pipe))


async def _serve(
    role: Callable[[Order], AbstractAsyncContextManager[Mapping[str, Step]]], pipe: BinaryIO
) -> None:
    lines: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    _read(lambda line: loop.call_soon_threadsafe(lines.put_nowait, line))
    async with role(order()) as steps:
        _say(pipe, {})
        while name := await lines.get():
            _say(pipe, await steps[name]())


def serve_sync(make_steps: Callable[[Order], Mapping[str, SyncStep]]) -> None:
    """The same for a peer whose client blocks."""
    pipe = _claim_output()
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    _read(lines.put)
    steps = make_steps(order())
    _say(pipe, {})
    while name := lines.get():
        _say(pipe, steps[name]())


def _read(tell: Callable[[str], object]) -> None:
    """Hear the lines of the input, and "" at its end, which also ends a step that goes on."""

    def read() -> None:
        with open(0, "rb", buffering=0, closefd=False) as given:  # sys.stdin is locked at exit
            for line in iter(given.readline, b""):
                tell(line.decode().strip())
        tell("")
        time.sleep(END_S)
        os._exit(1)

    threading.Thread(target=read, daemon=True).start()


def _claim_output() -> BinaryIO:
    """What a library prints must not get between the figures."""
    pipe = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return cast("BinaryIO", pipe)


def _say(pipe: BinaryIO, figures: Mapping[str, float]) -> None:
    pipe.write(json.dumps(figures).encode() + b"\n")


def skip(reason: str) -> NoReturn:
    """End this process: the peer cannot be measured here. Before `serve` only."""
    print(json.dumps({"skip": reason}), flush=True)
    sys.exit(0)


# Drivers


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
        asked = []
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
