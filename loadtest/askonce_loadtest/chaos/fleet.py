"""The workers and producers of a run: one slot each, always filled again, struck one at a time."""

from __future__ import annotations

import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import anyio
import msgspec

from askonce_loadtest.chaos import deadly, producer
from askonce_loadtest.chaos.plan import DRAIN_S
from askonce_loadtest.chaos.processes import ChaosError, Process, until

START_S = 30.0
"""How long a worker may take until it serves, in a calm moment."""
RESTART_S = 0.2
"""The least time between two processes of one slot."""
DRAINED_S = 2 * DRAIN_S + 10.0
"""How long a drain may take altogether."""
FIRST_BYTES = 65_536
"""A worker says that it serves among the first things it says."""
UNAVAILABLE = 69
"""The exit code of a command that could not reach the store at its start."""

How = Literal["killed", "drained", "poison", "no store", "unexpected", "ended"]


class Life(NamedTuple):
    """One process of a slot, from its start to its end, in monotonic seconds."""

    name: str
    pid: int
    log: Path
    began: float
    ended: float
    how: How
    returncode: int | None
    drain_began: float | None


class Slots(ABC):
    """Processes of one sort, by name. `watch()` fills slots again whose process has ended."""

    def __init__(self, names: Sequence[str]) -> None:
        self.lives: list[Life] = []
        """Processes that have ended."""
        self._slots: dict[str, Process | None] = dict.fromkeys(names)
        self._counts = dict.fromkeys(names, 0)
        self._locks = {name: anyio.Lock() for name in names}
        self._paused_until = dict.fromkeys(names, 0.0)
        self._drains: dict[int, float] = {}
        self.closing = False
        """Set when processes are meant to end, and to stay so."""

    @property
    def names(self) -> list[str]:
        """The slots' names."""
        return list(self._slots)

    @property
    def running(self) -> dict[str, Process]:
        """The processes that run, by slot."""
        return {n: p for n, p in self._slots.items() if p is not None and p.running}

    @abstractmethod
    def _spawn(self, name: str, number: int) -> Process:
        """Start process `number` of a slot."""

    def _how(self, process: Process) -> How:
        """What became of a process that has ended."""
        if signal.SIGKILL in process.signalled and process.returncode == -signal.SIGKILL:
            return "killed"
        if process.returncode == 0 and self.closing:
            return "ended"
        return "unexpected"

    async def watch(self) -> None:
        """Keep every slot filled, until closing."""
        while not self.closing:
            for name, process in self._slots.items():
                ready = time.monotonic() >= self._paused_until[name]
                if ready and (process is None or not process.running):
                    self._fill(name)
            await anyio.sleep(0.02)

    def _fill(self, name: str) -> None:
        self.bury(name)
        self._counts[name] += 1
        self._slots[name] = self._spawn(name, self._counts[name])
        self._paused_until[name] = time.monotonic() + RESTART_S

    def bury(self, name: str) -> None:
        """Note how the process of a slot has ended, if it has."""
        process = self._slots[name]
        if process is None or process.running:
            return
        now = time.monotonic()
        self.lives.append(
            Life(
                f"{name}.{self._counts[name]}",
                process.pid,
                process.log,
                process.began,
                now,
                self._how(process),
                process.returncode,
                self._drains.get(process.pid),
            )
        )
        process.close()
        self._slots[name] = None

    @asynccontextmanager
    async def _held(self, name: str) -> AsyncGenerator[Process]:
        """The running process of a slot, and nobody else strikes it meanwhile."""
        async with self._locks[name]:
            if not await until(lambda: name in self.running, START_S):
                raise ChaosError(f"{name} does not come back")
            yield self.running[name]

    async def kill(self, name: str, away_s: float) -> str:
        """End a process by SIGKILL; its slot stays empty for `away_s`."""
        async with self._held(name) as process:
            self._paused_until[name] = time.monotonic() + away_s
            process.send(signal.SIGKILL)
            await process.wait(START_S)
            return f"pid {process.pid} killed"

    async def stop(self, name: str, for_s: float) -> str:
        """Stop a process (SIGSTOP) for a while."""
        async with self._held(name) as process:
            process.send(signal.SIGSTOP)
            try:
                await anyio.sleep(for_s)
            finally:
                process.send(signal.SIGCONT)
            return f"pid {process.pid} stopped, and continued"

    def wake(self) -> None:
        """Continue all processes."""
        for process in self.running.values():
            process.send(signal.SIGCONT)

    def close(self) -> None:
        """End everything that still runs, at once."""
        self.closing = True
        for process in self._slots.values():
            if process is not None:
                process.close()


class Workers(Slots):
    """Worker processes: the real command."""

    def __init__(self, count: int, folder: Path, config: Path) -> None:
        super().__init__([f"worker-{i}" for i in range(count)])
        self._folder = folder
        self._config = config
        self._deaths = folder / "deaths"

    def _spawn(self, name: str, number: int) -> Process:
        return Process(
            # Supervised: it drains when the driver is gone.
            ["askonce_worker", "worker", str(self._config), "--log", "json", "--supervised"],
            self._folder / f"{name}.{number}.log",
            cwd=self._folder,
            environment=os.environ | {deadly.DEATHS: str(self._deaths)},
        )

    def _how(self, process: Process) -> How:
        if process.pid in self._poisoned():
            return "poison"
        if process.returncode == UNAVAILABLE and not serves(process.log):
            return "no store"
        if process.returncode == 0 and signal.SIGTERM in process.signalled:
            return "drained"
        return super()._how(process)

    def _poisoned(self) -> set[int]:
        """The processes that a poisonous job has ended."""
        try:
            lines = self._deaths.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return set()
        return {int(line.partition(" ")[0]) for line in lines}

    async def until_ready(self) -> None:
        """Wait until all serve. Raises `ChaosError`."""

        def all_serve() -> bool:
            running = self.running
            return len(running) == len(self.names) and all(
                serves(process.log) for process in running.values()
            )

        if not await until(all_serve, START_S):
            raise ChaosError(f"the workers do not start within {START_S:g} s: see {self._folder}")

    async def drain(self, name: str, away_s: float) -> str:
        """End a worker by SIGTERM; it hands back what it has, and its slot is filled again."""
        async with self._held(name) as process:
            # Before it serves it has nothing to drain, and may not have its handlers yet.
            await until(lambda: not process.running or serves(process.log), START_S)
            began = time.monotonic()
            self._drains[process.pid] = began
            process.send(signal.SIGTERM)
            ended = await process.wait(DRAINED_S)
            self._paused_until[name] = time.monotonic() + away_s
            if not ended:
                process.send(signal.SIGKILL)
                await process.wait(START_S)
                return f"pid {process.pid} did not drain within {DRAINED_S:g} s"
            return f"pid {process.pid} drained in {time.monotonic() - began:.1f} s"

    async def drain_all(self) -> list[str]:
        """Drain all at once, for good; the names of those that did not end."""
        self.closing = True
        running = self.running
        for process in running.values():
            self._drains[process.pid] = time.monotonic()
            process.send(signal.SIGTERM)
        await until(lambda: not self.running, DRAINED_S)
        left = list(self.running)
        for name in self.names:
            self.bury(name)
        return left


class Producers(Slots):
    """Producer processes of ours. `order` is what one of that name is told."""

    def __init__(self, count: int, folder: Path, order: Callable[[str], producer.Order]) -> None:
        super().__init__([f"producer-{i}" for i in range(count)])
        self._folder = folder
        self._order = order

    def _spawn(self, name: str, number: int) -> Process:
        order = msgspec.json.encode(self._order(name)).decode()
        return Process(
            ["askonce_loadtest.chaos.producer", order],
            self._folder / f"{name}.{number}.log",
            cwd=self._folder,
        )

    def journals(self) -> Mapping[str, Path]:
        """The journal of every producer."""
        return {name: Path(self._order(name).journal) for name in self.names}

    async def poison(self, number: int) -> str:
        """Have one of them make a poisonous job, whose number is new."""
        if not await until(lambda: self.running, START_S):
            raise ChaosError("no producer runs")
        name, process = next(iter(self.running.items()))
        process.say(f"poison {number}")
        return f"job 'die {number}' given to {name}"

    def tell(self, line: str) -> None:
        """Say the same to all."""
        for process in self.running.values():
            process.say(line)


def serves(log: Path) -> bool:
    """Whether a worker has said that it serves."""
    try:
        with log.open("rb") as lines:
            return b'"worker started"' in lines.read(FIRST_BYTES)
    except FileNotFoundError:
        return False
