"""The comparison on tiny amounts: real peers in real processes; nothing is left of any of them.

Times and rates are never judged here: a shared machine decides them.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from askonce_loadtest.compare.catalogue import BY_NAME, Kind, Peer
from askonce_loadtest.compare.figures import FIGURES, Row
from askonce_loadtest.compare.plan import Plan
from askonce_loadtest.compare.running import run_compare
from tests.support.waiting import eventually_sync

TINY = Plan(
    jobs=100,
    seconds=0.0,
    distinct=20,
    callers=8,
    paced_jobs=10,
    cold_keys=5,
    copies=4,
    askers=2,
    limit_s=60.0,
)
OF_QUEUES_ONLY = {"producer_cpu_us_per_job"}


def left_in(folder: Path) -> list[Path]:
    """What a run has left in the folder for temporary files."""
    return list(folder.glob("askonce-compare-*"))


def pids_in(folder: Path) -> list[int]:
    """The processes that have left a file there with their pid as its ending."""
    return [int(path.suffix[1:]) for path in folder.glob("*.[0-9]*")]


async def measured(peers: list[Peer], plan: Plan, venvs: Path) -> dict[str, Row]:
    outcome = await run_compare(peers, plan, repeat=1, venvs=venvs, tell=lambda _: None)
    return {row.name: row for row in outcome.rows}


async def test_askonce_goes_through_the_same_harness_as_its_peers(temporary: Path) -> None:
    names = ["askonce", "askonce library"]
    rows = await measured([BY_NAME[name] for name in names], TINY, temporary / "venvs")
    assert left_in(temporary) == []
    every = {figure.name for figure in FIGURES}
    for name in names:
        assert rows[name].status == "measured", rows[name].reason
        figures = rows[name].figures
        assert figures.keys() == (every if name == "askonce" else every - OF_QUEUES_ONLY)
        assert figures["cold_calls"] == TINY.cold_keys
        assert figures["cold_calls_above_one"] == 0
        assert rows[name].runs[0]["jobs"] >= TINY.jobs
    assert rows["askonce"].figures["cold_asks"] == TINY.cold_keys * TINY.copies
    asks = TINY.cold_keys * TINY.callers * TINY.askers
    assert rows["askonce library"].figures["cold_asks"] == asks


def peer_of(folder: Path, name: str, kind: Kind, script: str) -> Peer:
    """A peer that runs `script` in our own environment, as worker too."""
    path = folder / f"{name}.py"
    path.write_text(textwrap.dedent(script), encoding="utf-8")
    worker = (str(path), "worker") if kind == "queue" else ()
    return Peer(name=name, kind=kind, script=str(path), worker=worker, settings="-", shows=("x",))


async def test_a_peer_that_fails_hangs_or_is_skipped_has_a_row_that_says_so(
    tmp_path: Path,
) -> None:
    hangs = """
        import os, pathlib, time
        pathlib.Path(__file__).with_suffix(f".{os.getpid()}").touch()
        print("{}", flush=True)
        time.sleep(600)
    """
    works = """
        import json, sys
        print("{}", flush=True)
        figures = {"jobs": 100, "wall_s": 2, "cpu_s": 1, "latency_ms_p50": 1, "latency_ms_p99": 1}
        for line in sys.stdin:
            print(json.dumps(figures), flush=True)
    """
    peers = [
        peer_of(tmp_path, "dies", "cache", "raise SystemExit('out of luck')"),
        peer_of(tmp_path, "hangs", "cache", hangs),
        peer_of(tmp_path, "no-worker", "queue", hangs),
        peer_of(tmp_path, "not-here", "cache", """print('{"skip": "no JSON commands"}')"""),
        peer_of(tmp_path, "works", "cache", works),
    ]
    plan = Plan(askers=1, limit_s=6.0)
    rows = await measured(peers, plan, tmp_path / "venvs")
    assert (rows["dies"].status, rows["dies"].reason) == ("failed", "asker ended: out of luck")
    assert rows["hangs"].status == "failed"
    assert rows["hangs"].reason.startswith("warm_up took over 6 s, and was ended")
    assert rows["no-worker"].status == "failed"
    assert "took no jobs within 6 s" in rows["no-worker"].reason
    assert (rows["not-here"].status, rows["not-here"].reason) == ("skipped", "no JSON commands")
    assert rows["works"].status == "measured", rows["works"].reason
    assert rows["works"].figures["jobs_per_s"] == 50
    left = pids_in(tmp_path)
    assert len(left) >= 3
    eventually_sync(lambda: not any(map(psutil.pid_exists, left)))


@pytest.mark.timeout(400)
def test_the_command_compares_with_a_real_queue_and_a_real_cache(tmp_path: Path) -> None:
    """Builds the peers' environments at the first time, in the cache folder that users have."""
    command = [sys.executable, "-m", "askonce_loadtest", "compare", "--quick", "--json"]
    done = subprocess.run(
        [*command, "--only", "saq,cashews", "--jobs", "50", "--out", str(tmp_path / "out")],
        check=False,
        capture_output=True,
        timeout=380,
    )
    assert done.returncode == 0, done.stderr.decode()
    report = json.loads(done.stdout)
    peers = {peer["name"]: peer for peer in report["peers"]}
    assert peers.keys() == {"askonce", "saq", "askonce library", "cashews"}
    for peer in peers.values():
        assert peer["status"] == "measured", peer["reason"]
        assert peer["figures"]["cold_calls"] >= 10
    assert peers["saq"]["versions"]["saq"] in BY_NAME["saq"].requirements[0]
    assert peers["askonce"]["figures"]["cold_calls_above_one"] == 0
    assert peers["askonce library"]["figures"]["cold_calls_above_one"] == 0
    assert report["jobs_per_s_to_best_queue"] > 0
    assert json.loads((tmp_path / "out" / "compare.json").read_bytes()) == report
    assert (tmp_path / "out" / "queues-jobs.png").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the server's children are found in /proc")
def test_an_interrupt_ends_everything(temporary: Path) -> None:
    comparing = subprocess.Popen(
        [sys.executable, "-m", "askonce_loadtest", "compare", "--only", "askonce"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with comparing:
        # Model server, store, producer, and the guard with its worker below.
        started = eventually_sync(lambda: _at_work(comparing.pid), timeout_s=60)
        comparing.send_signal(signal.SIGINT)
        output, _ = comparing.communicate(timeout=30)
    assert comparing.returncode == 130
    assert output == b""
    eventually_sync(lambda: not any(map(psutil.pid_exists, started)))
    assert left_in(temporary) == []


def _at_work(pid: int) -> list[int]:
    below = [process.pid for process in psutil.Process(pid).children(recursive=True)]
    return below if len(below) >= 5 else []
