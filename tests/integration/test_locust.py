"""The locust file is run as a user runs it, headless, against a worker of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import askonce_loadtest
from tests.support.askonce_command import Askonce

# Not imported: locust patches the sockets of the process that imports it.
LOCUSTFILE = Path(str(askonce_loadtest.__file__)).with_name("locustfile.py")


def test_producers_under_locust_see_no_failure(tmp_path: Path) -> None:
    with Askonce(tmp_path) as askonce:
        askonce.start("worker", "askonce.toml")
        askonce.until_said("worker started")
        done = subprocess.run(
            [
                *(sys.executable, "-m", "locust", "-f", str(LOCUSTFILE)),
                *("--headless", "-u", "4", "-r", "4", "-t", "3s", "--only-summary", "--json"),
                *("--askonce-url", f"unix://{askonce.store / 'store.sock'}"),
                *("--askonce-task", "size", "--distinct", "50", "--batch", "10"),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        (figures,) = json.loads(done.stdout)
        assert figures["name"] == "size"
        assert figures["num_requests"] > 100
        assert figures["num_failures"] == 0
        calls = askonce.calls()
        assert len(calls) == len(set(calls)) <= 50
