"""The locust files are run as a user runs them, headless, against a worker or a model server."""

from __future__ import annotations

import asyncio
import csv
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

import askonce_loadtest
from askonce_loadtest.load_shapes import ShapeKind
from askonce_loadtest.model_server import Behaviour, ModelServer
from askonce_loadtest.servers.ports import free_port
from tests.support.askonce_command import Askonce
from tests.support.waiting import eventually, eventually_sync

# Not imported: locust patches the sockets of the process that imports it.
FOLDER = Path(str(askonce_loadtest.__file__)).parent
LOCUST = (sys.executable, "-m", "locust", "--headless", "--only-summary", "-f")
TIMEOUT_S = 60


@pytest.fixture(scope="module")
def askonce(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Askonce]:
    with Askonce(tmp_path_factory.mktemp("askonce")) as askonce:
        askonce.start("worker", "askonce.toml")
        askonce.until_said("worker started")
        yield askonce


def files(*names: str) -> str:
    return ",".join(str(FOLDER / name) for name in names)


def producing(askonce: Askonce) -> tuple[str, ...]:
    return ("--askonce-url", f"unix://{askonce.store / 'store.sock'}", "--askonce-task", "size")


def workload(folder: Path, texts: int) -> Path:
    """A workload in which every text is once, half of them in the lane bulk."""
    lanes = ("interactive", "bulk")
    lines = [
        {"t": number, "text": f"{folder.name} {number}", "task": "size", "lane": lanes[number % 2]}
        for number in range(texts)
    ]
    path = folder / "w.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


class Running:
    """Locust, until it is told to stop: how much it gets to do in a time is the machine's."""

    def __init__(self, folder: Path, *args: str) -> None:
        self.prefix, self.page = folder / "run", folder / "run.html"
        reports = ("--csv", str(self.prefix), "--html", str(self.page))
        self._said = folder / "said"
        with self._said.open("wb") as said:
            self._process = subprocess.Popen([*LOCUST, *args, *reports], stdout=said, stderr=said)

    def total(self) -> dict[str, str]:
        """All requests together, of locust's CSV; empty while there is none."""
        try:
            with Path(f"{self.prefix}_stats.csv").open() as file:
                lines = list(csv.DictReader(file))
        except FileNotFoundError:
            return {}
        return lines[-1] if lines and lines[-1]["Name"] == "Aggregated" else {}

    def requests(self) -> int:
        """How many requests its CSV has."""
        return int(self.total().get("Request Count") or 0)

    def failures(self) -> str:
        """What its CSV says of failed requests."""
        return Path(f"{self.prefix}_failures.csv").read_text()

    def users(self) -> set[int]:
        """How many users there have been."""
        with Path(f"{self.prefix}_stats_history.csv").open() as file:
            return {int(line["User Count"]) for line in csv.DictReader(file)}

    def end(self, code: int = 0) -> None:
        """Stop it as Ctrl-C does (before a shape has ended, SIGTERM would just kill it)."""
        self._process.send_signal(signal.SIGINT)
        assert self._process.wait(TIMEOUT_S) == code, self._said.read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(TIMEOUT_S)


def test_producers_under_locust_see_no_failure(askonce: Askonce) -> None:
    done = subprocess.run(
        [
            *(*LOCUST, files("locustfile.py"), "--json"),
            *("-u", "4", "-r", "4", "-t", "3s"),
            *(*producing(askonce), "--distinct", "50", "--batch", "10"),
        ],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (figures,) = json.loads(done.stdout)
    assert figures["name"] == "size"
    assert figures["num_requests"] > 100
    assert figures["num_failures"] == 0
    calls = askonce.calls()
    assert 0 < len(calls) == len(set(calls)) <= 50


@pytest.mark.parametrize("shape", ["ramp", "spike", "soak"])
def test_a_shape_with_a_workload_writes_its_reports(
    askonce: Askonce, tmp_path: Path, shape: ShapeKind
) -> None:
    texts = 50
    with Running(
        tmp_path,
        files("locustfile.py", "locust_shape.py"),
        *("--shape", shape, "--shape-users", "4", "--shape-seconds", "6", *producing(askonce)),
        *("--workload", str(workload(tmp_path, texts))),
    ) as locust:
        enough = {"ramp": 2, "spike": 4, "soak": 4}[shape]
        eventually_sync(lambda: locust.requests() > texts and max(locust.users()) >= enough, 30)
        locust.end()
    assert locust.total()["Failure Count"] == "0"
    assert max(locust.users()) <= 4
    # It began anew at the end of the workload, after every text of it.
    asked = [text for text in askonce.calls() if text.startswith(f"{tmp_path.name} ")]
    assert len(asked) == len(set(asked)) == texts
    assert "<html" in locust.page.read_text()


def test_a_distributed_run_starts_in_several_places_of_the_workload(
    askonce: Askonce, tmp_path: Path
) -> None:
    path, port = workload(tmp_path, 10_000), str(free_port())

    def begins() -> list[int]:
        """Where runs of neighbouring texts begin."""
        head = f"{tmp_path.name} "
        numbers = {int(text[len(head) :]) for text in askonce.calls() if text.startswith(head)}
        return sorted(number for number in numbers if number - 1 not in numbers)

    joining = ("--worker", "--master-host", "127.0.0.1", "--master-port", port)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with (
        Running(tmp_path / "one", files("locustfile.py"), *joining),
        Running(tmp_path / "two", files("locustfile.py"), *joining),
        Running(
            tmp_path,
            *(files("locustfile.py"), *producing(askonce), "--workload", str(path)),
            *("--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port),
            *("--expect-workers", "2", "-u", "4", "-r", "4"),
        ) as master,
    ):
        eventually_sync(lambda: master.requests() > 20 and len(begins()) == 2, 40)
        master.end()
    assert begins() == [0, 6180]
    assert master.total()["Failure Count"] == "0"


async def test_the_model_server_is_asked_without_askonce(tmp_path: Path) -> None:
    async with ModelServer(Behaviour()) as server:
        with Running(
            tmp_path,
            *(files("locust_model.py"), "--host", server.root_url),
            *("-u", "2", "-r", "2", "--distinct", "5", "--labels", "a,b"),
        ) as locust:
            await eventually(lambda: locust.requests() > 20, 30)
            await asyncio.to_thread(locust.end)
        assert len(server.calls) == 5
        assert server.total_calls >= locust.requests()
        assert locust.total()["Failure Count"] == "0"


async def test_an_answer_that_is_none_is_a_failure(tmp_path: Path) -> None:
    async with ModelServer(Behaviour(out_of_set=1.0)) as server:
        with Running(
            tmp_path, files("locust_model.py"), "--host", server.root_url, "-u", "1"
        ) as locust:
            await eventually(lambda: locust.requests() > 0, 30)
            await asyncio.to_thread(locust.end, code=1)
    assert "the label is none of those offered" in locust.failures()
