"""A whole run: store, model server and measurements, and nothing left behind."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import anyio
import msgspec

from askonce_loadtest.bench.child import Figures, Order
from askonce_loadtest.bench.children import program
from askonce_loadtest.bench.dead_model import measure_dead_model
from askonce_loadtest.bench.enqueue import measure_enqueue
from askonce_loadtest.bench.floor import measure_floor
from askonce_loadtest.bench.footprint import measure_footprint
from askonce_loadtest.bench.latency import measure_latency
from askonce_loadtest.bench.machine import describe_machine
from askonce_loadtest.bench.plan import Plan
from askonce_loadtest.bench.stampede import measure_stampede
from askonce_loadtest.bench.tiers import measure_tiers
from askonce_loadtest.bench.warm import measure_warm
from askonce_loadtest.bench.workload import LABELS, TASK
from askonce_queue.connections import connect
from askonce_queue.embedded import EmbeddedStore
from askonce_queue.scripts import AsyncStore

MODEL_START_S = 30.0

_CONFIG = """\
[redis]
{redis}

[models.stand_in]
kind = "openai"
base_url = {base_url}
model = "stand-in-1"

[tasks.{task}]
model = "stand_in"
labels = {labels}
max_tokens = 16
"""


class Outcome(NamedTuple):
    """What was measured, on what."""

    machine: dict[str, str | float]
    runs: list[Figures]


class Bench(NamedTuple):
    """What the measurements need: what children are told, the store, the model server."""

    order: Order
    store: AsyncStore
    model_root_url: str

    def measurements(self) -> dict[str, Callable[[], Awaitable[Figures]]]:
        """Every measurement by its name for people, in order."""
        order, store = self.order, self.store
        return {
            "warm jobs": lambda: measure_warm(order, store),
            "the floor": lambda: measure_floor(order),
            "enqueue": lambda: measure_enqueue(order),
            "other tiers": lambda: measure_tiers(order, store),
            "latency": lambda: measure_latency(order),
            "stampede": lambda: measure_stampede(order, self.model_root_url),
            "a dead model": lambda: measure_dead_model(order, store, self.model_root_url),
            "memory per answer": lambda: measure_footprint(order, store),
        }


async def run_bench(plan: Plan, *, repeat: int, tell: Callable[[str], None]) -> Outcome:
    """Run every measurement `repeat` times; `tell` hears what is going on.

    Raises `ChildError` when a child process fails, `TimeoutError` when one takes too long.
    """
    runs: list[Figures] = []
    async with prepared(plan) as bench:
        machine = await describe_machine(bench.store)
        for number in range(1, repeat + 1):
            figures: Figures = {}
            for name, measure in bench.measurements().items():
                tell(f"run {number} of {repeat}: {name}")
                await bench.store.flushall()
                with anyio.fail_after(plan.limit_s):
                    figures |= await measure()
            per_job, floor = figures["worker_cpu_us_per_job"], figures["floor_cpu_us_per_job"]
            figures["worker_to_floor"] = per_job / floor if floor else math.nan
            runs.append(figures)
    return Outcome(machine, runs)


@asynccontextmanager
async def prepared(plan: Plan) -> AsyncGenerator[Bench]:
    """An embedded store in a temporary folder and a model server, for the length of a block."""
    latency = ("--latency-ms", str(plan.model_latency_ms))
    with TemporaryDirectory(prefix="askonce-bench-") as folder:
        async with (
            EmbeddedStore(Path(folder, "store")) as embedded,
            # It ends on SIGTERM only, so it need not be given time.
            program(["askonce_loadtest", "model", "--port", "0", *latency], end_s=0.0) as model,
        ):
            with anyio.fail_after(MODEL_START_S):
                base_url = (await model.read_line()).decode()
            config = await anyio.Path(folder, "askonce.toml").absolute()
            await config.write_text(config_text({"url": embedded.url}, base_url), encoding="utf-8")
            store = connect(embedded.url, role="commands", max_connections=1)
            try:
                order = Order(plan, embedded.url, str(config))
                yield Bench(order, store, base_url.removesuffix("/v1"))
            finally:
                await store.aclose()


def config_text(redis: Mapping[str, str | bool | int], base_url: str) -> str:
    """The configuration of the bench's task; `redis` is the `[redis]` table."""
    texts = {"base_url": base_url, "labels": LABELS}
    return _CONFIG.format(
        task=TASK,
        redis="\n".join(f"{name} = {_toml(value)}" for name, value in redis.items()),
        **{name: _toml(value) for name, value in texts.items()},
    )


def _toml(value: object) -> str:
    """JSON texts, numbers and lists of them are TOML too."""
    return msgspec.json.encode(value).decode()
