"""A worker in a process of its own, with a Python model that does what its texts say.

    python worker_process.py '{"url": …, "folder": …, "worker": {…}, "shards": 1}'

Prints "ready" when it serves; SIGTERM drains it. Every model call is a line `pid text` in
`folder/calls`. Texts beginning with "hold" are answered once `folder/release` exists; "die…" ends
the process as a segmentation fault would.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import structlog

from askonce_worker.config import LimitsConfig, WorkerConfig
from askonce_worker.models.python import PythonModel
from askonce_worker.pool.worker import Worker
from tests.support.queue_worker import echo_tasks


def model(folder: Path) -> PythonModel:
    """The model of every worker process."""
    calls = os.open(folder / "calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    async def call(text: str) -> str:
        os.write(calls, f"{os.getpid()} {text}\n".encode())
        if text.startswith("die"):
            os._exit(139)
        while text.startswith("hold") and not (folder / "release").exists():  # noqa: ASYNC110 -- a file is the only signal here
            await asyncio.sleep(0.01)
        return text.upper()

    return PythonModel(call, name="echo", timeout_s=60, max_threads=4)


async def main(given: dict[str, Any]) -> None:
    """Serve until SIGTERM."""
    limits = LimitsConfig(**given.get("limits", {}))
    tasks = echo_tasks(model(Path(given["folder"])), shared=limits)
    worker = Worker(given["url"], tasks, WorkerConfig(**given["worker"]), shards=given["shards"])
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
    async with worker.running():
        print("ready", flush=True)  # noqa: T201
        await worker._stop.wait()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(main(json.loads(sys.argv[1])))
