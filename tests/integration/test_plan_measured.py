"""A plan against what was measured: constants from a small bench, then another run of another mix.

Both on the same machine, one after the other, so what is held against each other are ratios.
"""

from __future__ import annotations

import pytest
import uvloop

from askonce_loadtest.bench.child import Figures
from askonce_loadtest.bench.plan import Plan
from askonce_loadtest.bench.running import prepared
from askonce_loadtest.bench.tiers import measure_tiers
from askonce_loadtest.bench.warm import measure_warm
from askonce_loadtest.planning.constants import Constants
from askonce_loadtest.planning.sizing import size
from askonce_loadtest.planning.target import Target
from askonce_loadtest.scale.ground import ground
from askonce_loadtest.scale.measuring import LEAST_MAXMEMORY_BYTES, fill, measure
from askonce_loadtest.scale.point import Point

FACTOR = 2.0
ATTEMPTS = 3
"""A machine may become twice as busy between two measurements; not three times in a row."""
POINT = Point(keys=2_000, jobs=4_000, runs=1, store_share=0.4, model_share=0.1)
SMALL = Plan(jobs=4_000, texts=500, tier_jobs=600, model_latency_ms=5.0)


async def measured_constants() -> Constants:
    async with prepared(SMALL) as bench:
        warm = await measure_warm(bench.order, bench.store)
        await bench.store.flushall()
        figures = warm | await measure_tiers(bench.order, bench.store)
    return Constants(
        **{name: figures[name] for name in Constants.__struct_fields__ if name in figures},
        store_bytes_per_answer=200.0,
        machine={},
    )


async def measured_run() -> Figures:
    async with ground(cluster=False, maxmemory_bytes=LEAST_MAXMEMORY_BYTES) as on:
        await fill(on, POINT, 0)
        return await measure(on, POINT)


@pytest.mark.timeout(300)
def test_a_plan_predicts_the_cpu_of_a_measured_run() -> None:
    seen: list[tuple[float, float]] = []
    for _ in range(ATTEMPTS):
        constants, run = uvloop.run(measured_constants()), uvloop.run(measured_run())
        rate = run["jobs_per_s"]
        target = Target(
            rate=rate,
            distinct=POINT.keys,
            hit_rate=1 - run["model_share"],
            memory_hit_rate=run["memory_share"],
            text_bytes=POINT.text_bytes,
        )
        plan = size(target, constants)
        ratios = (
            plan.value("worker CPU") / (run["worker_cpu_us_per_job"] * rate / 1e6),
            plan.value("store CPU") / (run["store_cpu_us_per_job"] * rate / 1e6),
        )
        assert abs(plan.value("model calls") - rate * POINT.model_share) < 0.01 * rate
        seen.append(ratios)
        if all(1 / FACTOR <= ratio <= FACTOR for ratio in ratios):
            return
    raise AssertionError(f"predicted over measured CPU, of worker and store: {seen}")
