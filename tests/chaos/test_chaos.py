"""Chaos, as anyone runs it: about a minute with every kind of fault, and nothing may be found."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from askonce_loadtest.chaos.account import VIOLATIONS
from askonce_loadtest.chaos.schedule import RECIPES
from tests.support.embedded_server import is_running
from tests.support.waiting import eventually_sync

COMMAND = [sys.executable, "-m", "askonce_loadtest", "chaos"]
SEED = 1
MINUTES = 0.6
LIMIT_S = 280
"""Load, recovery at its slowest, and the start of everything on a busy machine."""


@pytest.mark.timeout(LIMIT_S + 20)
def test_nothing_is_lost_doubled_wrong_or_left_behind(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *COMMAND,
            *("--minutes", str(MINUTES), "--seed", str(SEED), "--json"),
            *("--keep", str(tmp_path / "run")),
        ],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    report: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
    assert report, done.stderr
    assert report["violations"] == dict.fromkeys(VIOLATIONS, 0), report["found"]
    assert done.returncode == 0
    assert report["ok"] is True
    counts = report["counts"]
    assert counts["accepted"] == counts["replied"] == counts["attempted"] > 1_000
    assert set(report["faults"]) == set(RECIPES), [
        one for one in report["schedule"] if one["failed"]
    ]
    # The faults were felt, and the account had something to go by.
    assert counts["tapped"] > 0.9 * counts["replied"]
    assert report["calls"]["retry"] > 0
    assert report["calls"]["takeover"] > 0
    assert report["errors"]["poison"] == 1
    assert report["processes"]["workers killed"] == RECIPES["kill-worker"].per_round
    assert f"seed {SEED}" in done.stderr
    for fault in report["schedule"]:
        assert fault["fault"]["kind"] in done.stderr


@pytest.mark.timeout(120)
def test_ctrl_c_ends_every_process(tmp_path: Path) -> None:
    said = tmp_path / "stderr"
    with said.open("wb") as stderr:
        process = subprocess.Popen(
            [*COMMAND, "--minutes", "5", "--keep", str(tmp_path / "run")],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    try:
        eventually_sync(lambda: b"poison data: job" in said.read_bytes(), timeout_s=60)
        tasks = Path(f"/proc/{process.pid}/task")
        children = [
            int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()
        ]
        assert len(children) >= 2 + 3 + 2 + 1  # proxy, model, workers, producers, the store
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        eventually_sync(lambda: not any(map(is_running, children)))
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("option", ["--faults", "--without"])
def test_a_kind_that_there_is_not_is_named_with_those_that_there_are(option: str) -> None:
    done = subprocess.run(
        [*COMMAND, option, "drop,earthquake"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "earthquake" in done.stderr
    assert "half-open" in done.stderr


def test_a_folder_with_something_in_it_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    done = subprocess.run(
        [*COMMAND, "--keep", str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]
