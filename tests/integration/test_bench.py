"""The benchmark on tiny amounts: every figure is there, the counts are exact, nothing is left.

Times and rates are never judged here: a shared machine decides them.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from rich.console import Console

from askonce_loadtest.bench.child import Order, Steps
from askonce_loadtest.bench.children import ChildError, child
from askonce_loadtest.bench.figures import FIGURES
from askonce_loadtest.bench.plan import Plan
from askonce_loadtest.bench.report import as_json, print_table
from askonce_loadtest.bench.running import run_bench
from askonce_loadtest.bench.workload import distinct_texts, zipf_texts
from tests.support.waiting import eventually, eventually_sync

TINY = Plan(
    jobs=1_000,
    texts=50,
    paced_jobs=50,
    askers=2,
    callers=8,
    cold_keys=10,
    tier_jobs=100,
    answers=500,
    model_latency_ms=20.0,
    limit_s=60.0,
)
PROMISED = {
    "warm_jobs_per_s",
    "enqueue_jobs_per_s",
    "worker_cpu_us_per_job",
    "floor_cpu_us_per_job",
    "worker_to_floor",
    "store_cpu_us_per_job",
    "store_commands_per_job",
    "latency_ms_p50",
    "latency_ms_p99",
    "stampede_calls",
    "store_bytes_per_answer",
    "worker_rss_mb",
    "worker_cpu_us_per_store_hit",
    "worker_cpu_us_per_model_call",
    "store_net_bytes_per_job",
}


def left_in(folder: Path) -> list[Path]:
    """What a run has left in the folder for temporary files."""
    return list(folder.glob("askonce-bench-*"))


async def test_a_run_measures_everything(temporary: Path) -> None:
    told: list[str] = []
    outcome = await run_bench(TINY, repeat=1, tell=told.append)
    assert left_in(temporary) == []
    assert told[0] == "run 1 of 1: warm jobs"

    report = json.loads(as_json(TINY, outcome))
    names = {figure.name for figure in FIGURES}
    assert names >= PROMISED
    assert report.keys() >= names
    assert all(isinstance(report[name], int | float) for name in names)
    assert report["stampede_calls"] == TINY.cold_keys
    assert report["stampede_asks"] == TINY.askers * TINY.callers * TINY.cold_keys
    assert report["goals"]["stampede_calls"] == {"goal": "= 10", "met": True}
    assert all(run["warm_memory_share"] > 0 for run in outcome.runs)

    twice = outcome._replace(runs=outcome.runs * 2)
    for shown in (outcome, twice):
        table = io.StringIO()
        print_table(Console(file=table, width=200), TINY, shown)
        assert all(name in table.getvalue() for name in names)


@pytest.mark.skipif(sys.platform != "linux", reason="the children of a process are in /proc")
def test_an_interrupt_ends_every_child_and_leaves_nothing(temporary: Path) -> None:
    bench = subprocess.Popen(
        [sys.executable, "-m", "askonce_loadtest", "bench", "--quick", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with bench:
        children = eventually_sync(lambda: _at_work(bench.pid), timeout_s=30)
        bench.send_signal(signal.SIGINT)
        output, _ = bench.communicate(timeout=30)
    assert bench.returncode == 130
    assert output == b""
    eventually_sync(lambda: not any(map(_runs, children)))
    assert left_in(temporary) == []


def _at_work(pid: int) -> list[int]:
    """The bench's children, once they are the store, the model server, a worker and a producer."""
    of_threads = Path(f"/proc/{pid}/task").glob("*/children")
    found = [int(one) for file in of_threads for one in file.read_text(encoding="ascii").split()]
    return found if len(found) >= 4 else []


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@asynccontextmanager
async def crashing(order: Order) -> AsyncGenerator[Steps]:
    """A role whose one step ends its process without a word."""

    async def crash() -> dict[str, float]:
        os._exit(int(order.url))

    yield {"crash": crash}


@asynccontextmanager
async def patient(_: Order) -> AsyncGenerator[Steps]:
    """A role without steps of its own."""
    yield {}


async def test_a_child_that_ends_early_is_an_error_whatever_else_is_awaited() -> None:
    order = Order(TINY, "3", "")

    async def wait_for_the_other() -> None:
        async with child(crashing, order) as dying, child(patient, order) as living:
            used = await living.do("usage")
            assert used["cpu_s"] > 0
            assert used["peak_rss_bytes"] > 1_000_000
            with pytest.raises(ChildError):
                await dying.do("crash")
            await eventually(lambda: False)

    with pytest.raises(ChildError, match="test_bench:crashing has ended"):
        await wait_for_the_other()


def test_the_workload_is_repeatable_and_skewed() -> None:
    texts = zipf_texts(100, 1.05, 1_000, seed=1)
    assert texts == zipf_texts(100, 1.05, 1_000, seed=1)
    assert texts != zipf_texts(100, 1.05, 1_000, seed=2)
    known = distinct_texts(100, "warm")
    assert len(set(known)) == 100
    assert set(texts) <= set(known)
    assert texts.count(known[0]) > 10 * texts.count(known[99])
    assert not set(known) & set(distinct_texts(100, "cold"))
