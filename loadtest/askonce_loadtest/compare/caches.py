"""One measurement of a cache: warm look-ups in one process, then a stampede of several."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

from askonce_loadtest.bench.child import Figures
from askonce_loadtest.bench.children import Child
from askonce_loadtest.compare.queues import ModelCount
from askonce_loadtest.compare.scene import Scene, mib, per_job, rss_bytes


async def measure_cache(scene: Scene, model: ModelCount) -> Figures:
    """Return a cache's figures. Raises `PeerFailed`, and `Skipped` by the peer's own word."""
    async with scene.asker() as asking:
        figures = await _warm(scene, asking)
    return figures | await _stampede(scene, model)


async def _warm(scene: Scene, asking: Child) -> Figures:
    empty = await scene.used()
    await scene.do(asking, "warm_up")
    before = await scene.used()
    run = await scene.do(asking, "ask_all")
    used = (await scene.used()).since(before)
    return {
        **per_job(used, run),
        # The caller's own process does all the work.
        "worker_cpu_us_per_job": run["cpu_s"] / run["jobs"] * 1e6,
        "worker_rss_mb": mib(rss_bytes(asking)),
        "store_bytes_per_answer": before.since(empty).store_bytes / scene.plan.distinct,
        **await scene.do(asking, "paced"),
    }


async def _stampede(scene: Scene, model: ModelCount) -> Figures:
    async with AsyncExitStack() as stack:
        askers = [await stack.enter_async_context(scene.asker()) for _ in range(scene.plan.askers)]
        await model.reset()
        before, began = await scene.used(), time.perf_counter()
        runs = await asyncio.gather(*(scene.do(one, "stampede") for one in askers))
        took_s = time.perf_counter() - began
        used = (await scene.used()).since(before)
    asks = sum(run["jobs"] for run in runs)
    return {
        **await model.read(scene.plan.cold_keys),
        "cold_asks": asks,
        "cold_s": took_s,
        "cold_commands_per_ask": used.commands / asks,
    }
