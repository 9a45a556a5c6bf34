"""What the other tiers cost: jobs that only the model can answer, and jobs that the store can.

First every text is new and is asked of the stand-in model; then a worker with an empty memory is
asked the same, and finds it all in the store. Last come short and long texts that it knows: the
difference is what a text's length costs. Sizing a deployment (`plan`) needs these figures.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from askonce_loadtest.bench.child import Figures, Order, Steps
from askonce_loadtest.bench.children import Child, child
from askonce_loadtest.bench.serving import worker
from askonce_loadtest.bench.store_use import store_use
from askonce_loadtest.bench.workload import check_reply, distinct_texts, job
from askonce_queue.client import Client
from askonce_queue.scripts import AsyncStore

LONG_BYTES = 4096
_KIB = 1024
_FEW = 50
"""Distinct texts, short and long, that are asked again and again."""


class _Cost(NamedTuple):
    """Of one job, in µs and bytes."""

    worker_us: float
    store_us: float
    net_bytes: float


async def measure_tiers(order: Order, store: AsyncStore) -> Figures:
    """Return what a model call, a store hit and a KiB of text cost worker and store."""
    jobs = order.plan.tier_jobs
    async with child(tier_producer, order) as asking:
        async with child(worker, order) as cold:
            call = await _measure(asking, "ask_new", cold, store, jobs)
        async with child(worker, order) as serving:
            hit = await _measure(asking, "ask_new", serving, store, jobs)
            await asking.do("ask_long")
            await asking.do("ask_short")
            long = await _measure(asking, "ask_long", serving, store, jobs)
            short = await _measure(asking, "ask_short", serving, store, jobs)
    text_bytes = _mean_bytes(_short_texts())
    longer_kib = (LONG_BYTES - text_bytes) / _KIB
    return {
        "worker_cpu_us_per_store_hit": hit.worker_us,
        "store_cpu_us_per_store_hit": hit.store_us,
        "worker_cpu_us_per_model_call": call.worker_us,
        "store_cpu_us_per_model_call": call.store_us,
        "worker_cpu_us_per_kib": max(0.0, long.worker_us - short.worker_us) / longer_kib,
        "store_cpu_us_per_kib": max(0.0, long.store_us - short.store_us) / longer_kib,
        "store_net_bytes_per_job": short.net_bytes,
        "text_bytes": text_bytes,
    }


async def _measure(asking: Child, step: str, serving: Child, store: AsyncStore, jobs: int) -> _Cost:
    worker_before, used_before = await serving.do("usage"), await store_use(store)
    net_before = await _net_bytes(store)
    await asking.do(step)
    worker_after, used_after = await serving.do("usage"), await store_use(store)
    net_bytes = await _net_bytes(store) - net_before
    return _Cost(
        (worker_after["cpu_s"] - worker_before["cpu_s"]) / jobs * 1e6,
        used_after.since(used_before).cpu_s / jobs * 1e6,
        net_bytes / jobs,
    )


async def _net_bytes(store: AsyncStore) -> int:
    """What the server has read from and written to its clients."""
    stats: dict[str, Any] = await store.info("stats")
    return int(stats["total_net_input_bytes"]) + int(stats["total_net_output_bytes"])


@asynccontextmanager
async def tier_producer(order: Order) -> AsyncGenerator[Steps]:
    """The role of the producer: every step asks `tier_jobs` jobs, as fast as it can."""
    jobs = order.plan.tier_jobs
    new = distinct_texts(jobs, "tier")
    async with Client(order.url) as client:

        async def ask(texts: Sequence[str]) -> Figures:
            async for reply in client.ask_many(job(texts[at % len(texts)]) for at in range(jobs)):
                check_reply(reply)
            return {}

        async def ask_new() -> Figures:
            return await ask(new)

        async def ask_long() -> Figures:
            return await ask([(text * LONG_BYTES)[:LONG_BYTES] for text in _short_texts()])

        async def ask_short() -> Figures:
            return await ask(_short_texts())

        yield {"ask_new": ask_new, "ask_long": ask_long, "ask_short": ask_short}


def _short_texts() -> list[str]:
    return distinct_texts(_FEW, "short")


def _mean_bytes(texts: Sequence[str]) -> float:
    return sum(len(text.encode()) for text in texts) / len(texts)
