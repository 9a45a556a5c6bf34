"""The figures of one point: CPU of all workers and of the store per job, medians of its runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from statistics import median

from askonce_loadtest.bench.child import Figures
from askonce_loadtest.bench.children import Child, child
from askonce_loadtest.bench.serving import worker
from askonce_loadtest.scale.asking import producer
from askonce_loadtest.scale.axes import Axis
from askonce_loadtest.scale.filling import Lot, filler
from askonce_loadtest.scale.ground import Ground, ground
from askonce_loadtest.scale.point import Point

_LARGE = 200_000
"""Keys from which on the store is filled without its append-only file."""
STORE_BYTES_PER_KEY = 320
"""Of the server's memory, with room to spare."""
LEAST_MAXMEMORY_BYTES = 1 << 30


async def measure_axis(axis: Axis, tell: Callable[[str], None]) -> list[Figures]:
    """Measure every point of an axis, in order; each has its value as `at`."""
    figures: list[Figures] = []
    filled = 0
    most = max(point.keys for _, point in axis.points)
    maxmemory = max(LEAST_MAXMEMORY_BYTES, most * STORE_BYTES_PER_KEY)
    async with ground(cluster=axis.cluster, maxmemory_bytes=maxmemory) as on:
        for at, point in axis.points:
            if axis.name != "keys":  # there what one point has filled is the next one's, too
                await on.flush()
                filled = 0
            tell(f"{axis.name} {at:,g}: filling {point.keys:,} keys")
            rate = await fill(on, point, filled)
            filled = point.keys
            tell(f"{axis.name} {at:,g}: {point.runs} runs of {point.jobs:,} jobs")
            figures.append({"at": at, "fill_keys_per_s": rate, **await measure(on, point)})
    return figures


async def fill(on: Ground, point: Point, filled: int) -> float:
    """Fill the point's keys but for the first `filled`; return how many a second."""
    lot = Lot(point, filled, point.keys)
    order = await on.order(point, lot)
    async with AsyncExitStack() as stack:
        if lot.end - lot.first > _LARGE:
            await stack.enter_async_context(on.without_log())
        async with child(filler, order) as filling:
            took = await filling.do("fill")
    return (lot.end - lot.first) / took["wall_s"]


async def measure(on: Ground, point: Point) -> Figures:
    """Measure one point whose keys are filled."""
    order = await on.order(point, point)
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(child(worker, order)) for _ in range(point.workers)
        ]
        asking = await stack.enter_async_context(child(producer, order))
        await asking.do("warm_up")
        runs = [await _run(on, workers, asking, point) for _ in range(point.runs)]
        store_bytes = await on.used_bytes()
    figures = {name: median([run[name] for run in runs]) for name in runs[0]}
    costs = [run["cost_us_per_job"] for run in runs]
    return {
        **figures,
        "cost_us_lowest": min(costs),
        "cost_us_highest": max(costs),
        "store_bytes": store_bytes,
    }


async def _run(on: Ground, workers: Sequence[Child], asking: Child, point: Point) -> Figures:
    cpu_before, used_before = await _cpu_s(workers), await on.use()
    run = await asking.do("ask")
    cpu_s, used = await _cpu_s(workers) - cpu_before, (await on.use()).since(used_before)
    us = 1e6 / point.jobs
    return {
        "cost_us_per_job": (cpu_s + used.cpu_s) * us,
        "worker_cpu_us_per_job": cpu_s * us,
        "store_cpu_us_per_job": used.cpu_s * us,
        "producer_cpu_us_per_job": run["cpu_s"] * us,
        "jobs_per_s": point.jobs / run["wall_s"],
        "store_client_commands_per_job": used.client_commands / point.jobs,
        "memory_share": run["memory"] / point.jobs,
        "store_share": run["store"] / point.jobs,
        "model_share": run["model"] / point.jobs,
    }


async def _cpu_s(workers: Sequence[Child]) -> float:
    used = [await one.do("usage") for one in workers]
    return sum(one["cpu_s"] for one in used)
