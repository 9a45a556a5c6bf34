"""Child processes: started with their output in a log, signalled and ended by their own pid.

Every child has a session of its own, so that Ctrl-C reaches the driver alone, and a pipe as
standard input that the driver holds: when the driver is gone, so is its end, and children end too.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import anyio
import msgspec

T = TypeVar("T")

POLL_S = 0.02
KILL_S = 5.0
ANSWER_S = 20.0
"""How long a process that we command may take to answer."""


class ChaosError(Exception):
    """The run itself failed: what it needs did not work. Says nothing about askonce."""


async def until(condition: Callable[[], object], timeout_s: float) -> bool:
    """Wait until `condition()` is true; False when it was not so in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        await anyio.sleep(POLL_S)
    return True


class Process:
    """A child `python -P -m …`; output goes to `log`. It runs when the constructor returns."""

    def __init__(
        self,
        arguments: Sequence[str],
        log: Path,
        *,
        cwd: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        self.began = time.monotonic()
        self.signalled: list[signal.Signals] = []
        """What the driver has sent it, in order."""
        with log.open("ab") as output:
            # -P: what lies in the working directory does not come before installed packages.
            self._process = subprocess.Popen(  # noqa: S603 -- no shell, and all arguments are ours
                [sys.executable, "-P", "-m", *arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=cwd,
                env=None if environment is None else dict(environment),
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """How it ended; None while it runs. Negative: by that signal."""
        return self._process.poll()

    @property
    def running(self) -> bool:
        """Whether it exists, stopped or not."""
        return self.returncode is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if self.running:
            self.signalled.append(number)
            self._process.send_signal(number)

    def say(self, line: str) -> None:
        """Write a line to its standard input, if it still listens."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return

    async def wait(self, timeout_s: float) -> bool:
        """Wait for its end; False when it still runs then."""
        return await until(lambda: not self.running, timeout_s)

    def close(self) -> None:
        """End it now if it runs, and reap it."""
        if self.running:
            self._process.kill()
            self._process.wait()
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            return


class Commanded:
    """A child that answers each line of JSON with one line of JSON."""

    def __init__(self, module: str, process: asyncio.subprocess.Process) -> None:
        self._module = module
        self._process = process
        self._turn = asyncio.Lock()

    @classmethod
    async def start(cls, module: str, log: Path) -> Commanded:
        """Run `python -P -m module`."""
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", module),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,
            )
        return cls(module, process)

    async def ask(self, message: msgspec.Struct, answer: type[T]) -> T:
        """Send a message; return the answer. Raises `ChaosError` when there is none."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            async with self._turn, asyncio.timeout(ANSWER_S):
                self._process.stdin.write(msgspec.json.encode(message) + b"\n")
                await self._process.stdin.drain()
                line = await self._process.stdout.readline()
                return msgspec.json.decode(line, type=answer)
        except (OSError, TimeoutError, msgspec.DecodeError) as error:
            raise ChaosError(f"{self._module} does not answer: {error!r}. See its log") from error

    async def close(self) -> None:
        """End it: by the end of its input, or by its pid."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(KILL_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
