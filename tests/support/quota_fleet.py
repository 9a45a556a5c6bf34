"""Workers that share a model's limits, in virtual time: the real loop, quotas and script, and no
model. Their flights wait as in a waiting room; whatever begins is noted.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import anyio
import redis
from redis.exceptions import ConnectionError as StoreDown
from redis.exceptions import NoScriptError

from askonce_queue import names
from askonce_queue.reply import Answer, Usage
from askonce_queue.scripts import Call, Script
from askonce_queue.store import Store
from askonce_worker.backend import Backend
from askonce_worker.config import LimitsConfig
from askonce_worker.models.batching import BatchedModel, Part
from askonce_worker.models.protocol import Model, Prompt, Question, TransientFailure
from askonce_worker.quotas import Quotas
from tests.support.virtual_loop import VirtualLoop, run_virtually
from tests.support.virtual_scripts import CLOCK_FIELD, PRELUDE, START_MS, TAG

MODEL = "gpt"
TTL_S = 10.0
LOOK_UP_S = 0.002
PROMPT, QUESTION = Prompt(), Question(text="text")


class Begun(NamedTuple):
    """A request: when it began, whose, how many tokens it took, and how many questions."""

    at: float
    worker: int
    tokens: int
    questions: int = 1


class FleetModel:
    """A `ManyModel` whose requests are noted."""

    def __init__(self, fleet: QuotaFleet, worker: int) -> None:
        self._fleet = fleet
        self._worker = worker

    def group(self, question: Question) -> str:
        return str(question.text)

    async def ask(self, prompt: Prompt, question: Question) -> Answer:
        return (await self.ask_many(prompt, [question]))[0]

    async def ask_many(self, prompt: Prompt, questions: Sequence[Question]) -> list[Answer]:
        del prompt
        fleet = self._fleet
        fleet.note(self._worker, 0, len(questions))
        try:
            await asyncio.sleep(fleet.call_s())
        finally:
            fleet.in_flight -= 1
        if fleet.rng.random() < fleet.failing:
            raise TransientFailure("unavailable", "it failed")
        return [Answer()] * len(questions)

    async def check(self) -> str:
        return "a fleet's"

    async def aclose(self) -> None:
        pass


class VirtualServer:
    """A store with one shard, as `Quotas` uses it: at the loop's time, some way off."""

    tags = (TAG,)

    def __init__(self, client: redis.Redis, loop: VirtualLoop, rng: random.Random) -> None:
        self.away = False
        self.requests = 0
        self.way_s = 0.001
        """The mean time of a message, either way."""
        self._client = client
        self._loop = loop
        self._rng = rng
        self._script = Script("take_quota", allow_oom=True, prelude=PRELUDE)

    async def run_many(self, calls: Sequence[Call]) -> list[Any]:
        self.requests += 1
        await asyncio.sleep(self._rng.expovariate(1 / self.way_s))
        results = [StoreDown("away") if self.away else self._run(call) for call in calls]
        await asyncio.sleep(self._rng.expovariate(1 / self.way_s))
        return results

    def _run(self, call: Call) -> Any:
        """Set the clock and run, in one round trip."""
        now_us = START_MS * 1000 + round(self._loop.time() * 1e6)
        pipe = self._client.pipeline(transaction=False)
        pipe.execute_command("HSET", names.META, CLOCK_FIELD, now_us)
        pipe.execute_command(*call._replace(script=self._script).command("EVALSHA"))
        try:
            return pipe.execute()[1]
        except NoScriptError:
            self._client.script_load(self._script.source)
            return self._run(call)


class FleetWorker:
    """One worker: `demand` flights wait at first, and each that ends brings the next."""

    def __init__(self, fleet: QuotaFleet, index: int, slots: int) -> None:
        self.index = index
        model = cast("Model", None)
        if fleet.batch:
            model = BatchedModel(FleetModel(fleet, index), size=fleet.batch, wait_s=0.005)
        self.backend = Backend(MODEL, model, slots, 60.0, shared=fleet.limits)
        self.backend.when_opened.append(self._opened)
        self.backend.who_waits.append(lambda _: self.waiting)
        self.waiting = 0
        self.begun = 0
        self.alive = True
        self.tasks: set[asyncio.Task[None]] = set()
        self._fleet = fleet
        self._quotas = Quotas(
            cast("Store", fleet.server),
            [self.backend],
            holder=f"worker {index}",
            ttl_s=TTL_S,
            clock=fleet.loop,
            rng=random.Random(index),
        )
        self.quota = self._quotas.by_model[MODEL]
        self._stop = anyio.Event()
        self._run = asyncio.ensure_future(self._running())

    async def _running(self) -> None:
        async with self._quotas.running():
            await self._stop.wait()

    def ask(self, flights: int) -> None:
        """So many more flights wait."""
        self.waiting += flights
        self.backend.wanted()
        self._opened(self.backend)

    def _opened(self, backend: Backend) -> None:
        for _ in range(min(backend.free_slots, self.waiting)):
            self.waiting -= 1
            backend.in_flight += 1
            task = asyncio.ensure_future(self._fly())
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _fly(self) -> None:
        backend = self.backend
        try:
            await asyncio.sleep(LOOK_UP_S)
            await (self._call_in_batches() if self._fleet.batch else self._call())
        finally:
            backend.in_flight -= 1
        self.waiting += self._fleet.endless
        if self.waiting:
            backend.wanted()
        self._opened(backend)

    async def _call(self) -> None:
        """Ask until there is an answer."""
        fleet, backend = self._fleet, self.backend
        while True:
            await self.quota.admit()
            backend.began()
            self.begun += 1
            tokens = fleet.tokens()
            fleet.note(self.index, tokens)
            try:
                await asyncio.sleep(fleet.call_s())
            finally:
                fleet.in_flight -= 1
            if fleet.rng.random() >= fleet.failing:
                break
            backend.ended(TransientFailure("unavailable", "it failed"), b"", 0)
            await asyncio.sleep(fleet.rng.uniform(0, 1))
        backend.ended(Answer(usage=Usage(input_tokens=tokens)), b"", 0)

    async def _call_in_batches(self) -> None:
        """Ask until there is an answer, after a failure alone."""
        alone = False
        while not await self._answered_in_a_batch(alone=alone):
            alone = True
            await self.backend.pause(self._fleet.rng.uniform(0, 1))

    async def _answered_in_a_batch(self, *, alone: bool) -> bool:
        """Ask once with others, as `Calls.ask` does; whether there was an answer."""
        backend = self.backend
        part = Part(alone=alone, begins=lambda: backend.began() >= 0)
        outcome: Answer | TransientFailure | None = None
        try:
            outcome = await backend.ask(PROMPT, QUESTION, part)
        except TransientFailure as failure:
            outcome = failure
        finally:
            if part.begun:
                backend.ended(outcome, b"", 0)
        return isinstance(outcome, Answer)

    async def drain(self) -> None:
        """End well."""
        self.alive = False
        self.waiting = 0
        self._stop.set()
        await self._run
        await self._cancel()

    async def kill(self) -> None:
        """End as by kill −9: nothing is given back."""
        self._quotas._leave = _nothing  # type: ignore[method-assign]  # pyright: ignore[reportPrivateUsage]
        await self.drain()

    async def _cancel(self) -> None:
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def _nothing() -> None:
    """What a killed worker gives back."""


class QuotaFleet:
    """Workers, their store, and what began when. `endless`: a flight that ends brings the next.

    `batch`: how many questions a request may have, if it may have several.
    """

    def __init__(
        self,
        client: redis.Redis,
        limits: LimitsConfig,
        *,
        seed: int = 0,
        batch: int = 0,
        endless: bool = True,
        failing: float = 0.0,
        call_s: Callable[[random.Random], float] = lambda rng: rng.uniform(0.05, 0.5),
        tokens: Callable[[random.Random], int] = lambda rng: rng.randint(50, 150),
    ) -> None:
        client.flushall()
        self.loop = VirtualLoop()
        self.limits = limits
        self.rng = random.Random(seed)
        self.server = VirtualServer(client, self.loop, self.rng)
        self.workers: list[FleetWorker] = []
        self.endless = endless
        self.batch = batch
        self.failing = failing
        self.begun: list[Begun] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self._call_s = call_s
        self._tokens = tokens

    def call_s(self) -> float:
        return self._call_s(self.rng)

    def tokens(self) -> int:
        return self._tokens(self.rng)

    def note(self, worker: int, tokens: int, questions: int = 1) -> None:
        """A request begins."""
        self.begun.append(Begun(self.loop.time(), worker, tokens, questions))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)

    def start(self, slots: int = 1000) -> FleetWorker:
        """One more worker."""
        worker = FleetWorker(self, len(self.workers), slots)
        self.workers.append(worker)
        return worker

    def run(self, scenario: Callable[[QuotaFleet], Any]) -> None:
        """Run a scenario, a coroutine function; then end all workers."""

        async def main() -> None:
            try:
                await scenario(self)
            finally:
                for worker in self.workers:
                    await worker.drain()

        run_virtually(main(), self.loop)

    def calls_between(self, start: float, end: float) -> int:
        return sum(start <= call.at < end for call in self.begun)

    def most_in_a_minute(self, *, tokens: bool = False) -> int:
        """The most calls, or tokens, of calls that began within 60 s, wherever these begin."""
        window: deque[Begun] = deque()
        total = most = 0
        for call in self.begun:
            window.append(call)
            total += call.tokens if tokens else 1
            while window[0].at <= call.at - 60:
                first = window.popleft()
                total -= first.tokens if tokens else 1
            most = max(most, total)
        return most
