"""Waiting for servers: until nothing is missing, else an error that says what, with their logs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

POLL_S = 0.02


class ServerFailed(Exception):
    """Servers did not do in time what was asked of them; the message ends with their logs."""


class Logged(Protocol):
    """Something with a log."""

    @property
    def name(self) -> str:
        """What it is called in messages."""
        ...

    def log_tail(self) -> str:
        """The last lines of its log."""
        ...


async def until(
    condition: Callable[[], Awaitable[str]],
    *,
    what: str,
    timeout_s: float,
    servers: Iterable[Logged],
) -> None:
    """Ask `condition` again and again until it returns "": nothing is missing any more.

    Raises `ServerFailed` after `timeout_s` seconds, with `what`, what was missing last and the end
    of the logs of `servers`.
    """
    deadline = time.monotonic() + timeout_s
    while missing := await condition():
        if time.monotonic() > deadline:
            raise ServerFailed(f"{what}: not within {timeout_s:g} s: {missing}{logs(servers)}")
        await asyncio.sleep(POLL_S)


def logs(servers: Iterable[Logged]) -> str:
    """The ends of the logs of `servers`, as the rest of an error message."""
    return "".join(f"\n--- the end of the log of {one.name}:\n{one.log_tail()}" for one in servers)
