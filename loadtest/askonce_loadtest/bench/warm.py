"""Warm jobs end to end: one producer process, one worker process, every answer known."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from askonce_loadtest.bench.child import Figures, Order, Steps
from askonce_loadtest.bench.children import child
from askonce_loadtest.bench.serving import worker
from askonce_loadtest.bench.store_use import store_use
from askonce_loadtest.bench.workload import check_reply, distinct_texts, job, zipf_texts
from askonce_queue.client import Client
from askonce_queue.scripts import AsyncStore

_MIB = 1 << 20


async def measure_warm(order: Order, store: AsyncStore) -> Figures:
    """Return throughput, CPU and commands per job, and the worker's memory."""
    jobs = order.plan.jobs
    async with child(worker, order) as serving, child(producer, order) as producing:
        await producing.do("warm_up")
        worker_before, used_before = await serving.do("usage"), await store_use(store)
        run = await producing.do("ask_all")
        worker_after, used_after = await serving.do("usage"), await store_use(store)
    used = used_after.since(used_before)
    return {
        "warm_jobs_per_s": jobs / run["wall_s"],
        "worker_cpu_us_per_job": (worker_after["cpu_s"] - worker_before["cpu_s"]) / jobs * 1e6,
        "producer_cpu_us_per_job": run["cpu_s"] / jobs * 1e6,
        "store_cpu_us_per_job": used.cpu_s / jobs * 1e6,
        "store_commands_per_job": (used.client_commands + used.script_commands) / jobs,
        "store_client_commands_per_job": used.client_commands / jobs,
        "store_script_commands_per_job": used.script_commands / jobs,
        "worker_rss_mb": worker_after["peak_rss_bytes"] / _MIB,
        "warm_memory_share": run["memory"] / jobs,
    }


@asynccontextmanager
async def producer(order: Order) -> AsyncGenerator[Steps]:
    """The role of the producer: asks every text once, then all jobs, as fast as it can."""
    plan = order.plan
    async with Client(order.url) as client:

        async def warm_up() -> Figures:
            async for reply in client.ask_many(map(job, distinct_texts(plan.texts, "warm"))):
                check_reply(reply)
            return {}

        async def ask_all() -> Figures:
            texts = zipf_texts(plan.texts, plan.exponent, plan.jobs, plan.seed)
            sources: Counter[str | None] = Counter()
            cpu_s, began = time.process_time(), time.perf_counter()
            async for reply in client.ask_many(map(job, texts)):
                check_reply(reply)
                sources[reply.source] += 1
            wall_s = time.perf_counter() - began
            return {
                "wall_s": wall_s,
                "cpu_s": time.process_time() - cpu_s,
                "memory": sources["memory"],
            }

        yield {"warm_up": warm_up, "ask_all": ask_all}
