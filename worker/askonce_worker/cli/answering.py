"""Somebody who answers questions of a command: single keys on a terminal, else lines of stdin."""

from __future__ import annotations

import os
import re
import sys
import termios
import tty
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol

import anyio

END = ""
"""What is answered when nobody is there any more."""
_CTRL_D = "\x04"
_ARROW = re.compile(r"\x1b(?:\[[0-9;]*[A-Za-z~]|O.)?")
"""What keys like the arrows send: several characters, none of which was meant."""


class Person(Protocol):
    """Who answers."""

    interactive: bool
    """Whether it is worth asking again, and showing what may be answered."""

    async def choice(self) -> str:
        """What is chosen: a key, or a whole line where there are no keys; `END` at the end."""
        ...

    async def line(self) -> str:
        """A line of text, without its end; `END` at the end, and for an empty one."""
        ...


@contextmanager
def person() -> Generator[Person]:
    """Who sits at stdin, for the length of a block; the terminal is left as it was."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield _Lines()
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    try:
        yield _Keys(terminal, before)
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


class _Lines:
    """A file or a pipe: a line for each choice."""

    interactive = False

    async def choice(self) -> str:
        # In a thread: a file cannot be waited for, and a pipe may keep Ctrl-C waiting.
        line = await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
        if line == "":
            return END
        return line.strip() or " "

    async def line(self) -> str:
        return END


class _Keys:
    """A terminal: a key for each choice. What is typed ahead is kept."""

    interactive = True

    def __init__(self, terminal: int, cooked: list[object]) -> None:
        self._terminal = terminal
        self._cooked = cooked
        self._typed = ""

    async def choice(self) -> str:
        tty.setcbreak(self._terminal, termios.TCSADRAIN)  # Ctrl-C stays a signal
        while not self._typed:
            data = await self._read()
            if data == "" or _CTRL_D in data:
                return END
            self._typed = _ARROW.sub("", data)
        key, self._typed = self._typed[0], self._typed[1:]
        return key

    async def line(self) -> str:
        termios.tcsetattr(self._terminal, termios.TCSADRAIN, self._cooked)  # type: ignore[arg-type]
        while "\n" not in self._typed:
            data = await self._read()
            if data == "":
                return END
            self._typed += data
        line, _, self._typed = self._typed.partition("\n")
        return line.strip()

    async def _read(self) -> str:
        await anyio.wait_readable(self._terminal)  # so that Ctrl-C is heard
        return os.read(self._terminal, 4096).decode(errors="replace")
