"""Enqueueing alone: one producer process and no worker."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from itertools import islice

import anyio

from askonce_loadtest.bench.child import Figures, Order, Steps
from askonce_loadtest.bench.children import child
from askonce_loadtest.bench.workload import job, zipf_texts
from askonce_queue.client import Client
from askonce_queue.job import Job
from askonce_queue.ledger import Limits
from askonce_queue.scripts import CHUNK

AT_ONCE = 2
"""Calls under way: while the store works on one batch, the producer prepares the next."""


async def measure_enqueue(order: Order) -> Figures:
    """Return how many jobs a second one producer gets accepted."""
    async with child(enqueuer, order) as enqueuing:
        run = await enqueuing.do("enqueue_all")
    return {"enqueue_jobs_per_s": order.plan.jobs / run["wall_s"]}


@asynccontextmanager
async def enqueuer(order: Order) -> AsyncGenerator[Steps]:
    """The role of the producer: enqueues all jobs, in batches, as fast as it can."""
    plan = order.plan
    limits = Limits(max_backlog=plan.jobs, max_unread=plan.jobs)
    async with Client(order.url, limits=limits) as client:

        async def enqueue(jobs: Iterator[Job]) -> None:
            while batch := list(islice(jobs, CHUNK)):
                await client.enqueue_many(batch)

        async def enqueue_all() -> Figures:
            texts = zipf_texts(plan.texts, plan.exponent, plan.jobs, plan.seed)
            jobs = map(job, texts)
            began = time.perf_counter()
            async with anyio.create_task_group() as tasks:
                for _ in range(AT_ONCE):
                    tasks.start_soon(enqueue, jobs)
            return {"wall_s": time.perf_counter() - began}

        yield {"enqueue_all": enqueue_all}
