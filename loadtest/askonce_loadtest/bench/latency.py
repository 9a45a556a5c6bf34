"""Latency of warm jobs under a steady load: an open loop, timed from each job's intended start.

Jobs are due at random times (a Poisson process), whatever became of those before; when anything
stalls, the producer included, all that was due meanwhile counts from when it was due.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio

from askonce_loadtest.bench.child import Figures, Order, Steps
from askonce_loadtest.bench.children import child
from askonce_loadtest.bench.serving import worker
from askonce_loadtest.bench.workload import check_reply, distinct_texts, job, zipf_texts
from askonce_queue.client import Client

LEAD_S = 0.1


async def measure_latency(order: Order) -> Figures:
    """Return percentiles of the latency in milliseconds."""
    async with child(worker, order), child(paced, order) as asking:
        await asking.do("warm_up")
        return await asking.do("ask_all")


@asynccontextmanager
async def paced(order: Order) -> AsyncGenerator[Steps]:
    """The role of the producer: asks every text once, then one job after the other, when due."""
    plan = order.plan
    async with Client(order.url) as client:

        async def warm_up() -> Figures:
            async for reply in client.ask_many(map(job, distinct_texts(plan.texts, "warm"))):
                check_reply(reply)
            return {}

        async def ask_all() -> Figures:
            texts = zipf_texts(plan.texts, plan.exponent, plan.paced_jobs, plan.seed)
            rng = random.Random(plan.seed)
            took_s: list[float] = []
            late_s: list[float] = []

            async def ask(text: str, due: float) -> None:
                late_s.append(time.perf_counter() - due)
                check_reply(await client.ask(job(text)))
                took_s.append(time.perf_counter() - due)

            due = time.perf_counter() + LEAD_S
            async with anyio.create_task_group() as tasks:
                for text in texts:
                    due += rng.expovariate(plan.paced_per_s)
                    await anyio.sleep(max(0.0, due - time.perf_counter()))
                    tasks.start_soon(ask, text, due)
            took_s.sort()
            late_s.sort()
            return {
                "latency_ms_p50": percentile(took_s, 0.50) * 1e3,
                "latency_ms_p99": percentile(took_s, 0.99) * 1e3,
                "latency_ms_max": took_s[-1] * 1e3,
                "latency_late_ms_p99": percentile(late_s, 0.99) * 1e3,
            }

        yield {"warm_up": warm_up, "ask_all": ask_all}


def percentile(ordered: list[float], share: float) -> float:
    """The smallest value that at least `share` of all are not above (nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
