"""The `askonce` command on a terminal, with somebody who reads and types."""

from __future__ import annotations

import codecs
import fcntl
import os
import select
import struct
import termios
import time
from collections.abc import Generator
from contextlib import contextmanager

from tests.support.askonce_command import TIMEOUT_S, Askonce

ROWS, COLUMNS = 40, 120


class Terminal:
    """A pseudo-terminal and the command that runs on it."""

    def __init__(self, askonce: Askonce, *args: str) -> None:
        self.shown = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.process = askonce.on_terminal(args, theirs)
        os.close(theirs)

    def until(self, text: str) -> str:
        """Read until `text` is shown; all that was shown so far."""
        deadline = time.monotonic() + TIMEOUT_S
        while text not in self.shown:
            assert time.monotonic() < deadline, f"never shown: {text!r}\n{self.shown}"
            assert self._read(), f"ended without {text!r}\n{self.shown}"
        return self.shown

    def type(self, text: str) -> None:
        """Type something: `\\x03` is Ctrl-C."""
        os.write(self._ours, text.encode())

    def end(self) -> int:
        """Read to the end; the exit code."""
        while self._read():
            pass
        return self.process.wait(TIMEOUT_S)

    def close(self) -> None:
        """Hang up."""
        os.close(self._ours)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(TIMEOUT_S)

    def _read(self) -> bool:
        """Read what there is, waiting for a second; False at the end."""
        if not select.select([self._ours], [], [], 1.0)[0]:
            return True
        try:
            data = os.read(self._ours, 1 << 16)
        except OSError:
            return False  # how a terminal says that nobody is there any more
        self.shown += self._decoder.decode(data)
        return bool(data)


@contextmanager
def terminal(askonce: Askonce, *args: str) -> Generator[Terminal]:
    """Run the command on a terminal for the length of a block."""
    one = Terminal(askonce, *args)
    try:
        yield one
    finally:
        one.close()
