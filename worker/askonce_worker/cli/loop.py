"""Running a command: its event loop, its signals, its exit code.

0  done                                  1  done, but something was not as it should be
2  usage, configuration, no store        128 + n  ended by signal n (Ctrl-C: 130)
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import cast

import uvloop
from redis.exceptions import RedisError

from askonce_queue.errors import AskonceError, StoreUnavailable

OK = 0
PARTLY = 1
UNUSABLE = 2
UNAVAILABLE = 69
"""The store cannot be reached: worth another try, which a fault of the configuration is not.

Source: `EX_UNAVAILABLE` in sysexits.h."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Failed(Exception):
    """The command cannot go on. The message is one line for people; it ends the command."""

    def __init__(self, message: str, exit_code: int = UNUSABLE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Signals:
    """What Ctrl-C and its kin do: the first stops, the second stops faster, the third at once.

    At first, `stop` cancels the command and `hurry` does nothing; a command may set its own.
    """

    def __init__(self, cancel: Callable[[], object]) -> None:
        self.received = 0
        """The number of the first signal."""
        self.stop = cancel
        self.hurry: Callable[[], object] = lambda: None
        self._count = 0

    def arrived(self, number: int) -> None:
        """Act on a signal."""
        self._count += 1
        if self._count == 1:
            self.received = number
            self.stop()
        elif self._count == 2:  # noqa: PLR2004 -- counted on one hand
            self.hurry()
        else:
            # Nothing is lost: what is under way is taken over, the embedded store found alive.
            os._exit(128 + number)


Command = Callable[[Signals], Awaitable[int]]


def run(command: Command) -> int:
    """Run `command` on a new event loop; return the exit code of the process.

    Errors that askonce raises on purpose become one line on stderr.
    """
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_with_signals(command))
    except Exception as error:
        known = _known(error)
        if known is None:
            raise
        say(str(known))
        if isinstance(known, Failed):
            return known.exit_code
        return UNAVAILABLE if isinstance(known, StoreUnavailable) else UNUSABLE


def say(line: str) -> None:
    """Tell the user something on stderr."""
    # Not typer.echo: a progress bar has put itself in the place of sys.stderr.
    sys.stderr.write(f"askonce: {line}\n")
    sys.stderr.flush()


async def _with_signals(command: Command) -> int:
    task = asyncio.current_task()
    assert task is not None, "called by the runner"
    signals = Signals(task.cancel)
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            loop.add_signal_handler(number, signals.arrived, number)
    try:
        return await command(signals)
    except asyncio.CancelledError:
        if not signals.received:
            raise
        return 128 + signals.received


def _known(error: BaseException) -> AskonceError | Failed | None:
    """The error for people in what was raised, unless there is a fault of ours beside it.

    Task groups wrap errors in groups.
    """
    if isinstance(error, AskonceError | Failed):
        return error
    if isinstance(error, RedisError):
        return StoreUnavailable(f"the store failed: {error}")
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        known = [_known(inner) for inner in group.exceptions]
        return None if None in known else known[0]
    return None
