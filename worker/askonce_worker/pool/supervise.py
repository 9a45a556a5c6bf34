"""The supervisor: keeps N worker processes running, each with an event loop and a core of its own.

A process that ends is replaced, later each time it dies young, for ever. The supervisor is the
service manager of its workers: they tell it by sd_notify when they are ready and, where systemd
asked for signs of life, that they live; one that hangs is killed and replaced. A worker holds the
other end of a pipe, and drains when its supervisor is gone; it is told which of them it is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import anyio
import structlog
from anyio.abc import Process, UNIXDatagramSocket

from askonce_worker.clock import Clock, SystemClock
from askonce_worker.observe.notify import READY, WATCHDOG

RESTART_S = (0.5, 30.0)
"""The first pause before a replacement, and the longest; it doubles."""
STEADY_S = 60.0
"""A process that lived for so long is replaced after the shortest pause again."""
PROCESS_INDEX = "ASKONCE_PROCESS_INDEX"
"""The variable that tells a worker process which of them it is, from 0."""
CANNOT_START = (2, 69)
"""Exit codes of a worker that cannot run with this configuration (2), or finds no store (69)."""

log = structlog.get_logger("askonce.supervisor")


class _Slot:
    """The place of one worker process; processes come and go."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.process: Process | None = None
        self.ready = False
        self.seen_at = 0.0

    def send(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.returncode is None:
            try:
                self.process.send_signal(number)
            except ProcessLookupError:
                return  # it has just ended


class Supervisor:
    """Runs `command` in `processes` processes until `stop()`.

    With `burst` a process that ends well is not replaced, and the supervisor ends with the last.
    `silence_s`: a process that gives no sign of life for so long is killed (None: nobody minds).
    """

    def __init__(
        self,
        command: Sequence[str],
        processes: int,
        *,
        burst: bool = False,
        silence_s: float | None = None,
        on_ready: Callable[[], object] = lambda: None,
        clock: Clock | None = None,
    ) -> None:
        self._command = list(command)
        self._burst = burst
        self._silence_s = silence_s
        self._on_ready = on_ready
        self._clock = clock or SystemClock()
        self._slots = [_Slot(index) for index in range(processes)]
        self._stop = anyio.Event()
        self._piloted = anyio.Event()
        self._once_ready = False
        self.exit_code = 0
        """2 or 69 when no worker could ever start, and why."""

    def stop(self) -> None:
        """Have every worker drain; called again: faster (each call sends one SIGTERM)."""
        self._stop.set()
        self._piloted.set()
        for slot in self._slots:
            slot.send(signal.SIGTERM)

    async def run(self) -> None:
        """Supervise until the end."""
        with tempfile.TemporaryDirectory(prefix="askonce-") as folder:
            async with anyio.create_task_group() as tasks:
                for slot in self._slots:
                    tasks.start_soon(self._keep, slot, Path(folder, str(slot.index)))

    async def _keep(self, slot: _Slot, address: Path) -> None:
        """Keep one slot filled, and listen to what its processes say."""
        async with (
            await anyio.create_unix_datagram_socket(local_path=address) as messages,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(self._listen, slot, messages)
            await self._fill(slot, str(address))
            tasks.cancel_scope.cancel()

    async def _fill(self, slot: _Slot, address: str) -> None:
        if slot.index > 0:
            await self._piloted.wait()  # the first finds out whether it can be done at all
        pause_s = RESTART_S[0]
        while not self._stop.is_set():
            began = self._clock.monotonic()
            code = await self._live(slot, address)
            if self._burst and code == 0:
                self._piloted.set()
                return
            if self._stop.is_set():
                return
            if code in CANNOT_START and not self._piloted.is_set():
                self.exit_code = code  # it has said why
                self.stop()
                return
            if self._clock.monotonic() - began >= STEADY_S:
                pause_s = RESTART_S[0]
            log.error(
                "worker process ended; it will be replaced",
                process=slot.index,
                how=_how(code),
                pause_s=pause_s,
            )
            with anyio.move_on_after(pause_s):
                await self._stop.wait()
            pause_s = min(RESTART_S[1], 2 * pause_s)

    async def _live(self, slot: _Slot, address: str) -> int:
        """Start one process and return its exit code; it never outlives this call."""
        environment = {**os.environ, "NOTIFY_SOCKET": address, PROCESS_INDEX: str(slot.index)}
        environment.pop("WATCHDOG_PID", None)  # it is meant for us
        process = await anyio.open_process(
            self._command,
            stdin=subprocess.PIPE,
            stdout=None,
            stderr=None,
            env=environment,
            start_new_session=True,  # Ctrl-C in the terminal is for us; we send SIGTERM
        )
        slot.process, slot.ready, slot.seen_at = process, False, self._clock.monotonic()
        log.debug("worker process started", process=slot.index, pid=process.pid)
        if self._stop.is_set():
            slot.send(signal.SIGTERM)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch, slot)
                await process.wait()
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await process.aclose()
        assert process.returncode is not None, "it has ended"
        return process.returncode

    async def _watch(self, slot: _Slot) -> None:
        """Kill a process that was ready and has fallen silent."""
        if self._silence_s is None:
            return
        while True:
            await anyio.sleep(self._silence_s / 4)
            silent_s = self._clock.monotonic() - slot.seen_at
            if slot.ready and silent_s > self._silence_s:
                log.error("worker process hangs; killed", process=slot.index, silent_s=silent_s)
                slot.send(signal.SIGKILL)
                return

    async def _listen(self, slot: _Slot, messages: UNIXDatagramSocket) -> None:
        """Take what the process of a slot says of itself."""
        while True:
            message, _ = await messages.receive()
            said = message.decode(errors="replace").splitlines()
            if READY in said:
                slot.ready = True
                self._piloted.set()
            if READY in said or WATCHDOG in said:
                slot.seen_at = self._clock.monotonic()
            if not self._once_ready and all(one.ready for one in self._slots):
                self._once_ready = True
                self._on_ready()


def _how(code: int) -> str:
    """How a process ended, for people."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
