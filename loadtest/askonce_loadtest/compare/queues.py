"""One measurement of a queue: warm jobs with one worker process, then cold ones with two."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import NamedTuple

import aiohttp
import msgspec

from askonce_loadtest.bench.child import Figures
from askonce_loadtest.bench.children import Child
from askonce_loadtest.compare.scene import Scene, mib, per_job


class _Served(msgspec.Struct):
    """What is read of the model server's `/stats`."""

    total_calls: int
    distinct_inputs: int


class ModelCount(NamedTuple):
    """The stand-in model server's own count of calls."""

    session: aiohttp.ClientSession
    root_url: str

    async def reset(self) -> None:
        """Forget what was counted."""
        async with self.session.post(f"{self.root_url}/reset") as response:
            response.raise_for_status()

    async def read(self, cold_keys: int) -> Figures:
        """Calls since then, and how many of them were not the first for their key."""
        async with self.session.get(f"{self.root_url}/stats") as response:
            response.raise_for_status()
            served = msgspec.json.decode(await response.read(), type=_Served)
        assert served.distinct_inputs <= cold_keys
        return {
            "cold_calls": served.total_calls,
            "cold_calls_above_one": served.total_calls - served.distinct_inputs,
        }


async def measure_queue(scene: Scene, model: ModelCount) -> Figures:
    """Return a queue's figures. Raises `PeerFailed`."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(scene.worker())
        asking = await stack.enter_async_context(scene.asker())
        await scene.ready(1)
        figures = await _warm(scene, asking, first)
        for _ in range(1, scene.plan.cold_workers):
            await stack.enter_async_context(scene.worker())
        await scene.ready(scene.plan.cold_workers)
        return figures | await _cold(scene, asking, model)


async def _warm(scene: Scene, asking: Child, worker: int) -> Figures:
    empty = await scene.used(worker)
    await scene.do(asking, "warm_up")
    before = await scene.used(worker)
    run = await scene.do(asking, "ask_all")
    after = await scene.used(worker)
    used = after.since(before)
    return {
        **per_job(used, run),
        "worker_cpu_us_per_job": used.worker_cpu_s / run["jobs"] * 1e6,
        "producer_cpu_us_per_job": run["cpu_s"] / run["jobs"] * 1e6,
        "worker_rss_mb": mib(after.worker_rss_bytes),
        "store_bytes_per_answer": before.since(empty).store_bytes / scene.plan.distinct,
        **await scene.do(asking, "paced"),
    }


async def _cold(scene: Scene, asking: Child, model: ModelCount) -> Figures:
    await model.reset()
    before = await scene.used()
    run = await scene.do(asking, "cold")
    used = (await scene.used()).since(before)
    return {
        **await model.read(scene.plan.cold_keys),
        "cold_asks": run["jobs"],
        "cold_s": run["wall_s"],
        "cold_commands_per_ask": used.commands / run["jobs"],
    }
