"""Run a command until standard input ends, then end it and all that it started.

    python guard.py COMMAND …

Workers of other projects do not know that their parent was killed; this process does. The command
gets a session of its own, so that its whole process group can be ended: first by SIGTERM, and what
is left after a few seconds by SIGKILL. SIGTERM to the guard ends all at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

END_S = 5.0


def main() -> int:
    """Be the guard; its exit code is the command's."""
    command = subprocess.Popen(  # noqa: S603 -- the comparison's own command, no shell
        sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True
    )

    def end() -> None:
        while os.read(0, 4_096):  # not sys.stdin, whose lock would be held at exit
            pass
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(command.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                command.wait(END_S)
                break

    def end_now(*_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end_now)
    ending = threading.Thread(target=end, daemon=True)
    ending.start()
    code = command.wait()
    # Whatever the command has left running in its group.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(command.pid, signal.SIGKILL)
    return code


if __name__ == "__main__":
    sys.exit(main())
