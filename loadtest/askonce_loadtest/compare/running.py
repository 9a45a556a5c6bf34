"""A whole comparison: every peer, `repeat` times, in shuffled order, and nothing left behind."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import aiohttp
import anyio
import msgspec

from askonce_loadtest.bench.children import ChildError, program
from askonce_loadtest.bench.machine import describe_machine
from askonce_loadtest.bench.workload import distinct_texts, zipf_texts
from askonce_loadtest.compare.caches import measure_cache
from askonce_loadtest.compare.catalogue import Peer
from askonce_loadtest.compare.figures import Row
from askonce_loadtest.compare.plan import Plan
from askonce_loadtest.compare.queues import ModelCount, measure_queue
from askonce_loadtest.compare.scene import PeerFailed, scene
from askonce_loadtest.compare.venvs import Skipped, Venv, environment
from askonce_loadtest.servers.waiting import ServerFailed
from askonce_queue.connections import connect
from askonce_queue.embedded import EmbeddedStore

MODEL_START_S = 30.0
STREAM = 20_000
"""Jobs drawn beforehand; a run that needs more begins anew."""
_SPIN = 200_000


class Outcome(NamedTuple):
    """What was measured, on what."""

    machine: dict[str, str | float]
    rows: list[Row]
    noise: list[float]
    """How long the same bit of pure Python took before each measurement, in ms."""


class _Ready(NamedTuple):
    peer: Peer
    venv: Venv
    row: Row


async def run_compare(
    peers: Sequence[Peer],
    plan: Plan,
    *,
    repeat: int,
    venvs: Path,
    tell: Callable[[str], None],
) -> Outcome:
    """Measure all peers; `tell` hears what is going on. One that fails has a row that says so.

    Raises `ChildError` and `TimeoutError` when the model server does not start.
    """
    rows: list[Row] = []
    ready: list[_Ready] = []
    for peer in peers:
        tell(f"environment of {peer.name}")
        row = Row(name=peer.name, kind=peer.kind, settings=peer.settings)
        rows.append(row)
        try:
            venv = await environment(peer, venvs)
        except Skipped as skipped:
            row.status, row.reason = "skipped", str(skipped)
            continue
        row.versions = venv.versions
        ready.append(_Ready(peer, venv, row))
    noise: list[float] = []
    with TemporaryDirectory(prefix="askonce-compare-") as name:
        folder = Path(name)
        async with _model(plan) as model:
            machine = await _machine(folder)
            shared = {"model_url": model.root_url, "texts_file": _texts(folder, plan)}
            for number in range(1, repeat + 1):
                # A machine that gets busier, or warmer, should not always meet the same peer.
                for one in random.Random(plan.seed + number).sample(ready, len(ready)):
                    if one.row.status != "measured":
                        continue
                    tell(f"run {number} of {repeat}: {one.peer.name}")
                    noise.append(_spin_ms())
                    place = folder / f"{number}-{one.peer.name.replace(' ', '-')}"
                    await _measure(one, plan, place, shared, model)
    return Outcome(machine, rows, noise)


async def _measure(
    one: _Ready, plan: Plan, folder: Path, shared: dict[str, Any], model: ModelCount
) -> None:
    measure = measure_queue if one.peer.kind == "queue" else measure_cache
    row = one.row
    try:
        async with scene(one.peer, one.venv.python, plan, folder=folder, shared=shared) as place:
            row.runs.append(await measure(place, model))
    except Skipped as skipped:
        row.status, row.reason = "skipped", str(skipped)
    except (PeerFailed, ChildError, ServerFailed) as failure:
        row.status, row.reason = "failed", str(failure)


@asynccontextmanager
async def _model(plan: Plan) -> AsyncGenerator[ModelCount]:
    words = ("--port", "0", "--latency-ms", str(plan.model_latency_ms))
    async with (
        # It ends on SIGTERM only, so it need not be given time.
        program(["askonce_loadtest", "model", *words], end_s=0.0) as running,
        aiohttp.ClientSession(trust_env=False) as session,
    ):
        with anyio.fail_after(MODEL_START_S):
            base_url = (await running.read_line()).decode()
        yield ModelCount(session, base_url.removesuffix("/v1"))


async def _machine(folder: Path) -> dict[str, str | float]:
    async with EmbeddedStore(folder / "machine") as embedded:
        store = connect(embedded.url, role="commands", max_connections=1)
        try:
            return await describe_machine(store)
        finally:
            await store.aclose()


def _texts(folder: Path, plan: Plan) -> str:
    path = folder / "texts.json"
    texts = {
        "warm": distinct_texts(plan.distinct, "warm"),
        "stream": zipf_texts(plan.distinct, plan.exponent, STREAM, plan.seed),
        "cold": distinct_texts(plan.cold_keys, "cold"),
    }
    path.write_bytes(msgspec.json.encode(texts))
    return str(path)


def _spin_ms() -> float:
    began = time.perf_counter()
    total = 0
    for number in range(_SPIN):
        total += number
    return (time.perf_counter() - began) * 1e3
