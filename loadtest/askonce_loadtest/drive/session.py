"""One run of the command: everything set up, driven at one rate or searched, taken down."""

from __future__ import annotations

import gc
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path

import anyio
import msgspec

from askonce_loadtest.drive.deployment import Deployment, own, running
from askonce_loadtest.drive.open_loop import OpenLoop
from askonce_loadtest.drive.replay import Replay, Survey
from askonce_loadtest.drive.search import Search
from askonce_loadtest.drive.trial import Pace, Trial, misses
from askonce_loadtest.workloads.request import opened_requests
from askonce_queue.client import Client
from askonce_queue.errors import AskonceError
from askonce_queue.job import Job

MAX_PRIMED = 1_000_000
PROGRESS_EVERY_S = 0.5
RECOVER_S = 120.0
"""How long a search waits for the backlog of a rate that was too high, before the next."""

Tell = Callable[[str], None]


class NotDrained(AskonceError):
    """Replies of a run did not come, and would be in the way of the next: look at the workers."""


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What is driven, and how it is made ready."""

    workload: Path
    config: Path | None = None
    """A deployment that runs; None: one of our own."""
    workers: int = 1
    model_latency_ms: float = 50.0
    prime: bool = False
    """Ask every question of the workload once before."""


class Objective(msgspec.Struct, frozen=True, kw_only=True):
    """What a rate has to meet, and how exactly the highest one is wanted."""

    p99_ms: float
    max_error_share: float = 0.0
    start_per_s: float = 1_000.0
    highest_per_s: float = 1_000_000.0
    precision: float = 0.05
    repeats: int = 1
    """How often a rate is tried at most; the majority says whether it meets the objective."""


class Try(msgspec.Struct, kw_only=True):
    """One run of a search."""

    rate_per_s: float
    misses: list[str]
    """Why it does not meet the objective; empty: it does."""
    trial: Trial


class Found(msgspec.Struct, kw_only=True):
    """What a search has found."""

    objective: Objective
    rate_per_s: float | None
    """The highest rate that met the objective; None: none did."""
    missed_per_s: float | None
    """The lowest that did not; None: the search ended at its highest rate, or was interrupted."""
    driver_bound: bool
    """The lowest rate that missed was a run in which the driver could not keep up."""
    complete: bool
    tries: list[Try]


class Session:
    """A deployment with a client and a workload on it."""

    def __init__(self, loop: OpenLoop, client: Client, replay: Replay, setup: Setup) -> None:
        self.loop = loop
        self.stopped = False
        self._client = client
        self._replay = replay
        self._setup = setup

    def stop(self) -> None:
        """End what is under way, and give what there is."""
        self.stopped = True
        self.loop.stop()

    async def prime(self, tell: Tell) -> int:
        """Ask every question once; return how many answers there are now."""
        answered = 0
        with opened_requests(self._setup.workload) as requests:
            seen: dict[tuple[str, str], None] = {}

            def fresh() -> Iterator[Job]:
                for request in requests:
                    question = (request.task, request.text)
                    if question not in seen and len(seen) < MAX_PRIMED:
                        seen[question] = None
                        yield Job(task=request.task, text=request.text)

            async for _ in self._client.ask_many(fresh()):
                answered += 1
                if answered % 1_000 == 0:
                    tell(f"asking every question once: {answered:,}")
        return answered

    async def drive(self, pace: Pace) -> Trial:
        """One run at one rate."""
        gc.collect()
        gc.freeze()  # what is here already need not be looked at while times are taken
        return await self.loop.run(
            self._replay.due(pace.rate_per_s), pace, lambda: self._replay.rounds
        )

    async def find(self, pace: Pace, objective: Objective, done: Callable[[Try], None]) -> Found:
        """Search for the highest rate that meets the objective; `done` hears of every run.

        Raises `NotDrained`.
        """
        search = Search(
            objective.start_per_s,
            highest_per_s=objective.highest_per_s,
            precision=objective.precision,
        )
        tries: list[Try] = []
        while (rate := search.next_rate) is not None:
            verdict = await self._judge(pace, objective, rate, tries, done)
            if verdict is None:
                break
            search.tell(met=verdict)
        return Found(
            objective=objective,
            rate_per_s=search.met,
            missed_per_s=search.missed,
            driver_bound=any(
                one.trial.invalid for one in tries if one.rate_per_s == search.missed and one.misses
            ),
            complete=search.next_rate is None,
            tries=tries,
        )

    async def _judge(
        self,
        pace: Pace,
        objective: Objective,
        rate: float,
        tries: list[Try],
        done: Callable[[Try], None],
    ) -> bool | None:
        """Whether the majority of runs at a rate meets the objective; None when interrupted."""
        verdicts: list[bool] = []
        while not _decided(verdicts, objective.repeats):
            one = await self._try(pace, objective, rate)
            if self.stopped:
                return None
            tries.append(one)
            verdicts.append(not one.misses)
            done(one)
        return 2 * sum(verdicts) > len(verdicts)

    async def _try(self, pace: Pace, objective: Objective, rate: float) -> Try:
        trial = await self.drive(
            msgspec.structs.replace(
                pace,
                rate_per_s=rate,
                drain_s=RECOVER_S,
                give_up_after_s=max(1.0, 20 * objective.p99_ms / 1e3),
            )
        )
        if trial.unanswered and not trial.interrupted:
            raise NotDrained(
                f"{trial.unanswered:,} replies did not come within {RECOVER_S:g} s of a run at "
                f"{rate:,.0f}/s: are workers up, and does the model answer?"
            )
        return Try(
            rate_per_s=rate,
            misses=misses(trial, objective.p99_ms, objective.max_error_share),
            trial=trial,
        )


def _decided(verdicts: list[bool], repeats: int) -> bool:
    """Whether more runs of a rate could not change what the majority says."""
    met, missed = sum(verdicts), len(verdicts) - sum(verdicts)
    return 2 * max(met, missed) > repeats or len(verdicts) >= repeats


@asynccontextmanager
async def opened(setup: Setup, found: Survey, tell: Tell) -> AsyncGenerator[Session]:
    """Set everything up for the length of a block; `tell` hears how it is going."""
    deployment: AbstractAsyncContextManager[Deployment]
    if setup.config is None:
        tell("starting store, model and workers")
        deployment = own(
            found.tasks, workers=setup.workers, model_latency_ms=setup.model_latency_ms
        )
    else:
        deployment = running(setup.config, found.tasks)
    async with deployment as there:
        client = Client(there.store, pool=there.pool, shards=there.shards, limits=there.limits)
        replay = Replay(setup.workload, found)
        async with client, anyio.create_task_group() as tasks:
            loop = OpenLoop(client, shards=there.shards)
            with closing(replay):
                session = Session(loop, client, replay, setup)
                if setup.prime:
                    await session.prime(tell)
                tasks.start_soon(loop.listen)
                tasks.start_soon(_tell_forever, loop, tell)
                yield session
                tasks.cancel_scope.cancel()


async def _tell_forever(loop: OpenLoop, tell: Tell) -> None:
    while True:
        await anyio.sleep(PROGRESS_EVERY_S)
        tell(loop.progress())
