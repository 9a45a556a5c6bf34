"""The embedded store seen from outside: its server's process, and users in other processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import cast

from askonce_queue.connections import connect_sync

USER = Path(__file__).with_name("embedded_user.py")


def server_pid(url: str) -> int:
    client = connect_sync(url, role="commands")
    try:
        return cast("dict[str, int]", client.info("server"))["process_id"]
    finally:
        client.close()


def is_running(pid: int) -> bool:
    """Whether a process exists. A zombie does if we should have reaped it."""
    try:
        os.kill(pid, 0)
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return not Path("/proc/self").exists()
    return state != "Z" or int(parent) == os.getpid()


class User:
    """Another process that uses the embedded store of `folder`."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(USER), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def server_pid(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def leave(self) -> None:
        self.process.communicate(timeout=30)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=30)
