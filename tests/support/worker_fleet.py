"""Worker processes as tests see them: started, killed, stopped, woken, drained."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.queue_worker import QUICK
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]


class Fleet:
    """Worker processes on one store. On exit all are killed, and held calls are released."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self.log = (folder / "workers.log").open("ab")

    async def start(
        self, limits: dict[str, int] | None = None, **config: Any
    ) -> subprocess.Popen[bytes]:
        """Start one and wait until it serves. `limits`: those that it shares with others."""
        given = {
            "url": self.url,
            "folder": str(self.folder),
            "worker": QUICK | config,
            "shards": 1,
            "limits": limits or {},
        }
        process = subprocess.Popen(  # noqa: ASYNC220 -- forking is quick, and it is a test
            [sys.executable, "-m", "tests.support.worker_process", json.dumps(given)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )
        self.processes.append(process)
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        assert line == b"ready\n", (self.folder / "workers.log").read_text()[-2000:]
        return process

    def calls(self) -> list[tuple[int, str]]:
        """Every model call so far: process and text."""
        path = self.folder / "calls"
        if not path.exists():
            return []
        lines = [line.partition(" ") for line in path.read_text().splitlines()]
        return [(int(pid), text) for pid, _, text in lines]

    async def until_called(self, count: int) -> None:
        """Wait until models were called `count` times in all."""
        await eventually(lambda: len(self.calls()) >= count)

    def release(self) -> None:
        """Let calls with texts that begin with "hold" answer."""
        (self.folder / "release").touch()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        self.log.close()
