"""Latency of warm jobs under a steady load, on the open loop of `askonce_loadtest.drive`.

Jobs are due at random times (a Poisson process), whatever became of those before; when anything
stalls, the producer included, all that was due meanwhile counts from when it was due.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager

import anyio

from askonce_loadtest.bench.child import Figures, Order, Steps
from askonce_loadtest.bench.children import child
from askonce_loadtest.bench.plan import Plan
from askonce_loadtest.bench.serving import worker
from askonce_loadtest.bench.workload import (
    TASK,
    WrongReplyError,
    check_reply,
    distinct_texts,
    job,
    zipf_texts,
)
from askonce_loadtest.drive.open_loop import OpenLoop
from askonce_loadtest.drive.trial import Pace
from askonce_loadtest.workloads.request import Request
from askonce_queue.client import Client


async def measure_latency(order: Order) -> Figures:
    """Return percentiles of the latency in milliseconds."""
    async with child(worker, order), child(paced, order) as asking:
        await asking.do("warm_up")
        return await asking.do("ask_all")


@asynccontextmanager
async def paced(order: Order) -> AsyncGenerator[Steps]:
    """The role of the producer: asks every text once, then every job when it is due."""
    plan = order.plan
    async with Client(order.url) as client, anyio.create_task_group() as tasks:
        loop = OpenLoop(client)
        tasks.start_soon(loop.listen)

        async def warm_up() -> Figures:
            async for reply in client.ask_many(map(job, distinct_texts(plan.texts, "warm"))):
                check_reply(reply)
            return {}

        async def ask_all() -> Figures:
            seconds = plan.paced_jobs / plan.paced_per_s
            pace = Pace(rate_per_s=plan.paced_per_s, seconds=seconds)
            trial = await loop.run(_due(plan), pace)
            if trial.answered < trial.intended:
                raise WrongReplyError(
                    f"{trial.intended - trial.answered} jobs got no answer: {trial.errors}"
                )
            return {
                "latency_ms_p50": trial.latency_ms.p50,
                "latency_ms_p99": trial.latency_ms.p99,
                "latency_ms_max": trial.latency_ms.max,
                "latency_late_ms_p99": trial.late_ms.p99,
            }

        yield {"warm_up": warm_up, "ask_all": ask_all}
        tasks.cancel_scope.cancel()


def _due(plan: Plan) -> Iterator[tuple[float, Request]]:
    """Every job, with its due time in seconds."""
    rng = random.Random(plan.seed)
    at = 0.0
    # Random times: some more than expected may be due.
    for text in zipf_texts(plan.texts, plan.exponent, 2 * plan.paced_jobs, plan.seed):
        at += rng.expovariate(plan.paced_per_s)
        yield at, Request(at, text, TASK)
