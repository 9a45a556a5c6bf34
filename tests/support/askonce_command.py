"""The `askonce` command in processes of its own, on a configuration and a store of its own.

The model is a Python file beside the configuration. It writes each text it is asked to `calls`; a
text that begins with "wait" is answered once `go` exists, one that begins with "fail" never.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from askonce_queue.embedded import EmbeddedStore
from tests.support.embedded_server import is_running
from tests.support.waiting import eventually_sync

TIMEOUT_S = 60
NOT_INHERITED = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "COLUMNS", "LINES"}
"""Not about the command: who runs the tests is not its service manager, nor its terminal."""

MODEL = """
import asyncio
import os
from pathlib import Path

HERE = Path(__file__).parent


async def classify(text):
    with (HERE / "calls").open("a") as calls:
        calls.write(text + "\\n")
    while text.startswith("wait") and not (HERE / "go").exists():
        await asyncio.sleep(0.01)
    if text.startswith("fail"):
        raise ValueError("cannot say")
    return {"label": "long" if len(text) > 10 else "short", "score": 0.75}
"""
CONFIG = """
[models.sizes]
kind = "python"
call = "sizes_model:classify"
max_concurrency = 64

[tasks.size]
model = "sizes"
labels = ["long", "short"]

[worker]
max_attempts = 1
heartbeat_ttl_s = 1.0
"""


class Askonce:
    """Runs the command in `folder`; everything it started is gone when the block ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / ".askonce"
        self._started: list[subprocess.Popen[str]] = []
        (folder / "sizes_model.py").write_text(MODEL)
        self.configure(CONFIG)

    def configure(self, text: str) -> None:
        """Write the configuration, `askonce.toml`."""
        (self.folder / "askonce.toml").write_text(text)

    def write(self, name: str, lines: Iterable[object]) -> Path:
        """Write JSON lines; texts are written as they are."""
        path = self.folder / name
        shown = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("".join(f"{line}\n" for line in shown))
        return path

    def read(self, name: str) -> list[dict[str, Any]]:
        """Read JSON lines."""
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]

    def calls(self) -> list[str]:
        """What the model was asked, in order."""
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def go(self) -> None:
        """Let what waits be answered."""
        (self.folder / "go").touch()

    def __call__(
        self, *args: str, code: int = 0, stdin: str | bytes = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run the command to its end, with the exit code that is expected."""
        data = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            self._command(args),
            cwd=self.folder,
            env=_environment(),
            input=data,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        assert done.returncode == code, f"exit code {done.returncode}\n{out}\n{err}"
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def run(
        self, name: str, *args: str, task: str = "size", code: int = 0
    ) -> subprocess.CompletedProcess[str]:
        """`askonce run` of a file, to out.jsonl, with the summary in summary.json."""
        return self(*self.run_args(name, *args, task=task), code=code)

    @staticmethod
    def run_args(name: str, *args: str, task: str = "size") -> list[str]:
        given = ["run", "askonce.toml", name, "--task", task]
        return [*given, "--out", "out.jsonl", "--summary", "summary.json", *args]

    def summary(self) -> dict[str, Any]:
        """What the last run summed up."""
        summary: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return summary

    def start(
        self, *args: str, env: Mapping[str, str] | None = None, stdin: int = subprocess.DEVNULL
    ) -> subprocess.Popen[str]:
        """Start the command; what it says on stderr goes to the file `stderr`."""
        with (self.folder / "stderr").open("ab") as stderr:
            process = subprocess.Popen(
                self._command(args),
                cwd=self.folder,
                env=_environment() | dict(env or {}),
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self._started.append(process)
        return process

    def on_terminal(self, args: Iterable[str], terminal: int) -> subprocess.Popen[bytes]:
        """Start the command on a terminal, given by its file descriptor."""
        return subprocess.Popen(
            self._command(args),
            cwd=self.folder,
            env=_environment() | {"TERM": "xterm-256color"},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )

    def said(self) -> str:
        """What started processes have said on stderr."""
        return (self.folder / "stderr").read_text()

    def until_said(self, text: str, count: int = 1) -> None:
        """Wait until started processes have said something."""
        eventually_sync(lambda: self.said().count(text) >= count, timeout_s=TIMEOUT_S)

    def store_is_up(self) -> bool:
        """Whether the server of the embedded store is alive."""
        return bool(_processes_with(str(self.store / "store.sock")))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.go()
        for process in self._started:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait(TIMEOUT_S)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        for pid in _processes_with(str(self.folder / "askonce.toml")):
            os.kill(pid, signal.SIGKILL)  # orphaned workers
        if self.store_is_up():
            with EmbeddedStore(self.store):
                pass

    @staticmethod
    def _command(args: Iterable[str]) -> list[str]:
        return [sys.executable, "-m", "askonce_worker", *args]


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> int:
    """Send a signal and return the exit code."""
    process.send_signal(number)
    return process.wait(TIMEOUT_S)


def children_of(process: subprocess.Popen[str]) -> list[int]:
    """The worker processes of a supervisor."""
    folder = Path(f"/proc/{process.pid}/task/{process.pid}")
    pids = [int(pid) for pid in (folder / "children").read_text().split()]
    return [pid for pid in pids if is_running(pid) and "--supervised" in _command_line(pid)]


def _environment() -> dict[str, str]:
    paths = os.pathsep.join(str(Path(path).absolute()) for path in sys.path if path)
    plain = {k: v for k, v in os.environ.items() if k not in NOT_INHERITED}
    return plain | {"PYTHONPATH": paths}


def _processes_with(argument: str) -> list[int]:
    """Processes whose command line has `argument` in it."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if pid != os.getpid() and argument in _command_line(pid)]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""
