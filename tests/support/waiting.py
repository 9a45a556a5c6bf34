"""Waiting for conditions: the only way a test waits."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")

POLL_S = 0.005


@overload
async def eventually(predicate: Callable[[], Awaitable[T]], timeout_s: float = 10.0) -> T: ...
@overload
async def eventually(predicate: Callable[[], T], timeout_s: float = 10.0) -> T: ...
async def eventually(predicate: Callable[[], object], timeout_s: float = 10.0) -> object:
    """Await until `predicate` (a function or a coroutine function) returns something true.

    Returns that. Raises `AssertionError` with the last result after `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = predicate()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(_complaint(predicate, timeout_s, value))
        await asyncio.sleep(POLL_S)


def eventually_sync(predicate: Callable[[], T], timeout_s: float = 10.0) -> T:
    """`eventually` for tests without an event loop."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(_complaint(predicate, timeout_s, value))
        time.sleep(POLL_S)


def _complaint(predicate: Callable[[], object], timeout_s: float, value: object) -> str:
    try:
        text = inspect.getsource(predicate).strip()
    except (OSError, TypeError):
        text = repr(predicate)
    return f"not within {timeout_s:g} s (last result {value!r}): {text}"
