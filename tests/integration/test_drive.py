"""The open loop: what it must show, what it must not hide, and the command around it."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis.asyncio
from typer.testing import CliRunner

from askonce_loadtest.__main__ import app
from askonce_loadtest.drive.open_loop import OpenLoop
from askonce_loadtest.drive.trial import Pace, Trial, misses
from askonce_loadtest.workloads.request import Request
from askonce_queue.client import Client
from askonce_queue.ledger import Limits
from tests.support.askonce_command import Askonce
from tests.support.embedded_server import server_pid
from tests.support.waiting import eventually, eventually_sync

RATE_PER_S = 200.0
TEXTS = 20
STALLED = 100
"""Requests that fall due while something stands still: half a second of them."""


class Up(NamedTuple):
    """A deployment that runs."""

    askonce: Askonce
    worker_pid: int


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with Askonce(tmp_path_factory.mktemp("askonce")) as askonce:
        worker = askonce.start("worker", "askonce.toml")
        askonce.until_said("worker started")
        yield Up(askonce, worker.pid)


def url_of(askonce: Askonce) -> str:
    return f"unix://{askonce.store / 'store.sock'}"


def workload(folder: Path, text: str = "text", count: int = 2_000) -> Path:
    path = folder / "w.jsonl"
    lines = [
        {"t": i / RATE_PER_S, "text": f"{text} {i % TEXTS}", "task": "size"} for i in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def due() -> Iterator[tuple[float, Request]]:
    for number in itertools.count():
        at = number / RATE_PER_S
        yield at, Request(at, f"text {number % TEXTS}", "size")


@asynccontextmanager
async def loop_on(url: str, limits: Limits | None = None) -> AsyncGenerator[OpenLoop]:
    async with Client(url, limits=limits) as client:
        loop = OpenLoop(client)
        listening = asyncio.create_task(loop.listen())
        yield loop
        listening.cancel()
        await asyncio.wait([listening])


def measured_s(loop: OpenLoop) -> float:
    """How long a run has been measured, as it tells."""
    return float(loop.progress().split()[0])


@pytest.mark.parametrize("what", ["worker", "store"])
async def test_a_stall_counts_for_all_that_it_delays(up: Up, what: str) -> None:
    pid = up.worker_pid if what == "worker" else server_pid(url_of(up.askonce))
    async with loop_on(url_of(up.askonce)) as loop:
        pace = Pace(rate_per_s=RATE_PER_S, seconds=3, warm_up_s=0.5)
        running = asyncio.create_task(loop.run(due(), pace))
        await eventually(lambda: measured_s(loop) >= 0.5)
        os.kill(pid, signal.SIGSTOP)
        stopped = time.perf_counter()
        try:
            await eventually(lambda: loop.outstanding >= STALLED)
        finally:
            stall_s = time.perf_counter() - stopped
            os.kill(pid, signal.SIGCONT)
        trial = await running
    assert trial.unanswered == 0
    assert trial.errors == {}
    assert trial.answered == trial.intended == pytest.approx(3 * RATE_PER_S, abs=2)
    # Whatever fell due in the first half of the stall waited for at least its second half. Timed
    # from when it was sent, or asked one after the other, hardly anything would have.
    assert over(trial, stall_s / 2) >= 0.8 * RATE_PER_S * stall_s / 2
    assert trial.latency_ms.max >= 0.9 * stall_s * 1e3
    assert trial.latency_ms.p99 >= 0.7 * stall_s * 1e3
    # It was not the driver's fault, and the driver knows.
    assert trial.late_ms.p99 < stall_s / 2 * 1e3
    assert "fell behind" not in misses(trial, 25, 0)
    assert "too slow" in misses(trial, 25, 0)


async def test_a_driver_that_cannot_keep_up_says_so(up: Up) -> None:
    async with loop_on(url_of(up.askonce)) as loop:
        pace = Pace(rate_per_s=RATE_PER_S, seconds=1, max_late_ms=50)
        running = asyncio.create_task(loop.run(due(), pace))
        await eventually(lambda: measured_s(loop) >= 0.1)
        time.sleep(0.3)  # noqa: ASYNC251 -- the loop stands still: that is the test
        trial = await running
    assert trial.late_ms.max >= 250
    assert trial.latency_ms.max >= 250
    assert len(trial.invalid) == 1
    assert "could not keep up" in trial.invalid[0]
    assert "driver late" in misses(trial, 10_000, 0)


async def test_what_never_comes_counts_with_how_long_it_was_waited_for(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    del store  # it empties the server first
    async with loop_on(store_url) as loop:  # no worker is there
        pace = Pace(rate_per_s=RATE_PER_S, seconds=0.2, drain_s=0.3, max_late_ms=1e5)
        trial = await loop.run(due(), pace)
        assert trial.unanswered == trial.intended == 40
        assert trial.latency_ms.p50 >= 300
        assert trial.invalid == ["not one reply came: are workers up?"]
        hopeless = Pace(rate_per_s=RATE_PER_S, seconds=30, drain_s=0.0, give_up_after_s=0.1)
        trial = await loop.run(due(), hopeless)
        assert trial.gave_up
        assert trial.seconds < 10
        assert "fell behind" in misses(trial, 1e9, 1)


async def test_refused_jobs_are_errors_and_make_nothing_look_faster(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    del store
    async with loop_on(store_url, Limits(max_backlog=10)) as loop:
        pace = Pace(rate_per_s=RATE_PER_S, seconds=0.2, drain_s=0.1)
        trial = await loop.run(due(), pace)
    assert trial.errors == {"queue_full": 30}
    assert trial.unanswered == 10
    assert trial.latency_ms.count == 10
    assert "40 errors" in misses(trial, 1e9, 0.5)


def over(trial: Trial, seconds: float) -> int:
    """How many took longer."""
    return sum(count for us, count in trial.latency_us.counts if us > seconds * 1e6)


def drive(*args: str, code: int = 0) -> tuple[str, str]:
    """Run the command here: a process of its own would need a second to start."""
    done = CliRunner().invoke(app, ["drive", *args], env={"COLUMNS": "100"})
    assert done.exit_code == code, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.stdout, done.stderr


def run_of(output: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output)["run"]
    return found


def test_it_brings_its_own_deployment_and_leaves_nothing(tmp_path: Path, temporary: Path) -> None:
    path = workload(tmp_path)
    late = ("--max-late-ms", "60000")
    args = ("--rate", "400", "--seconds", "1", "--prime", "--model-latency-ms", "1", *late)
    run = run_of(drive(str(path), *args, "--json")[0])
    assert run["answered"] == run["intended"] == pytest.approx(400, abs=2)
    assert run["hit_rate"] == 1.0
    assert run["latency_us"]["counts"]
    assert 0 < run["latency_ms"]["p50"] <= run["latency_ms"]["p99"] <= run["latency_ms"]["max"]
    assert run["intended_per_s"] == pytest.approx(400, rel=0.01)
    assert run["invalid"] == []
    assert list(temporary.glob("askonce-drive-*")) == []


def test_a_search_goes_up_to_its_bound_on_a_running_deployment(
    up: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(up.askonce.folder)
    path = workload(up.askonce.folder)
    args = ("--config", "askonce.toml", "--find-rate", "--rate", "100", "--max-rate", "200")
    search = ("--p99-ms", "60000", "--max-late-ms", "60000", "--repeats", "3")
    output, told = drive(str(path), *args, *search, "--seconds", "0.3", "--warm-up-s", "0")
    assert "Highest rate with p99 ≤ 60000 ms: 200/s; higher ones were not tried." in output
    assert "4 runs, up to 3 a rate" in output
    assert told.count(", met") == 4
    impossible = ("--p99-ms", "0.1", "--max-late-ms", "60000", "--seconds", "0.1", "--json")
    output, _ = drive(str(path), *args, *impossible, "--warm-up-s", "0", code=1)
    found = json.loads(output)["search"]
    assert found["rate_per_s"] is None
    assert found["missed_per_s"] == 1.0
    assert found["tries"][0]["misses"] == ["too slow"]


def test_an_interrupt_gives_what_there_is(tmp_path: Path, up: Up) -> None:
    path = workload(tmp_path, "another")
    config = str(up.askonce.folder / "askonce.toml")
    args = ("--config", config, "--seconds", "60", "--warm-up-s", "0", "--json")
    driving = subprocess.Popen(
        [sys.executable, "-m", "askonce_loadtest", "drive", str(path), *args],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with driving:
        eventually_sync(lambda: " ".join(up.askonce.calls()).count("another") == TEXTS, 30)
        driving.send_signal(signal.SIGINT)
        output, told = driving.communicate(timeout=30)
    assert driving.returncode == 130, told
    run = run_of(output)
    assert run["interrupted"]
    assert 0 < run["answered"] <= run["intended"]  # the last may have been under way


def test_a_search_without_workers_ends_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("askonce_loadtest.drive.session.RECOVER_S", 0.2)
    with Askonce(tmp_path):  # writes the configuration; nobody works
        config = ("--config", str(tmp_path / "askonce.toml"))
        search = ("--find-rate", "--seconds", "0.2", "--warm-up-s", "0", "--rate", "50")
        _, told = drive(str(workload(tmp_path)), *config, *search, code=2)
    assert "10 replies did not come" in told
    assert "are workers up" in told
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "args", "message"),
    [
        ("", (), "no requests"),
        ('{"t": 0, "text": "x"}\n', (), "line 1: Object missing required field `task`"),
        ('{"t": 1, "text": "x", "task": "a"}\n{"t": 0, "text": "x", "task": "a"}\n', (), "line 2"),
        ('{"t": 0, "text": "x", "task": "sise"}\n', ("--config", "askonce.toml"), "size"),
        (None, (), "cannot be read"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str | None,
    args: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with Askonce(tmp_path):  # writes the configuration
        if content is not None:
            (tmp_path / "w.jsonl").write_text(content)
        _, told = drive("w.jsonl", *args, code=2)
    assert message in told
    assert len(told.splitlines()) == 1
