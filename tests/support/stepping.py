"""Cancels a piece of work at every point where it can be suspended, one after the other.

The work runs in a task of its own. Every suspension of that task, and of all tasks that are started
on its behalf, is counted, so point k is the same await in every run, as far as the work itself
takes the same way. At point k the work's task is cancelled, in one of three ways:

| how | |
| --- | --- |
| `waiting` | `task.cancel()` while it waits |
| `arriving` | `task.cancel()` at the very moment when what is waited for is there |
| `scope` | an anyio scope around it is cancelled, which cancels again and again |
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, get_args

import anyio

How = Literal["waiting", "arriving", "scope"]
EVERY_HOW: tuple[How, ...] = get_args(How)
Work = Callable[[], Coroutine[Any, Any, None]]

_steps: contextvars.ContextVar[Steps | None] = contextvars.ContextVar("steps", default=None)


class Ended(NamedTuple):
    """How a run ended. `reached`: there was a point k; else the work was over before."""

    reached: bool
    cancelled: bool


class Steps:
    """Counts suspensions, and calls `strike` with what is waited for at the `at`-th."""

    def __init__(self, at: int, strike: Callable[[object], None]) -> None:
        self.count = 0
        self._at = at
        self._strike = strike

    def suspended(self, waits_for: object) -> None:
        self.count += 1
        if self.count == self._at:
            self._strike(waits_for)


class _Stepped:
    """Awaits a coroutine, and reports each of its suspensions."""

    def __init__(self, work: Coroutine[Any, Any, Any], steps: Steps) -> None:
        self._work = work
        self._steps = steps

    def __await__(self) -> Generator[Any, Any, Any]:
        error: BaseException | None = None
        while True:
            try:
                waits_for = self._work.send(None) if error is None else self._work.throw(error)
            except StopIteration as stop:
                return stop.value
            self._steps.suspended(waits_for)
            error = None
            try:
                yield waits_for
            except BaseException as raised:  # noqa: BLE001 -- it is thrown into the work
                error = raised


async def _step(work: Coroutine[Any, Any, Any], steps: Steps) -> Any:
    return await _Stepped(work, steps)


def _task_factory(
    loop: asyncio.AbstractEventLoop, work: Any, **options: Any
) -> asyncio.Task[Any]:
    steps = _steps.get()
    if steps is None or not asyncio.iscoroutine(work):
        return asyncio.Task(work, loop=loop, **options)
    task = asyncio.Task(_step(work, steps), loop=loop, **options)
    task.add_done_callback(lambda _: work.close())  # it may have been cancelled before it began
    return task


@contextmanager
def _counting() -> Generator[None]:
    """Count the steps of tasks on whose behalf it is wanted."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(_task_factory)
    try:
        yield
    finally:
        loop.set_task_factory(None)


async def run_cancelled_at(work: Work, at: int, how: How, limit_s: float) -> Ended:
    """Run `work` and cancel it at its `at`-th suspension; raises what else it raises.

    Fails when it has not ended `limit_s` after it was cancelled.
    """
    struck: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    scope = anyio.CancelScope()

    def cancel() -> None:
        if how == "scope":
            scope.cancel()
        else:
            task.cancel()
        if not struck.done():
            struck.set_result(None)

    def strike(waits_for: object) -> None:
        if how == "arriving" and isinstance(waits_for, asyncio.Future):
            waits_for.add_done_callback(lambda _: cancel())
        else:
            asyncio.get_running_loop().call_soon(cancel)

    async def scoped() -> bool:
        with scope:
            await work()
            return False
        return True

    with _counting():
        token = _steps.set(Steps(at, strike))
        task = asyncio.create_task(scoped())
        _steps.reset(token)
        await asyncio.wait([task, struck], return_when=asyncio.FIRST_COMPLETED)
        done, _ = await asyncio.wait([task], timeout=limit_s)
    if not done:
        stack = "\n".join(map(str, task.get_stack()))
        task.cancel()
        raise AssertionError(f"cancelled at step {at} ({how}), it did not end: {task} {stack}")
    if task.cancelled():
        return Ended(reached=True, cancelled=True)
    return Ended(struck.done(), task.result())


async def cancel_everywhere(
    work: Work, how: How, after: Callable[[int], Awaitable[None]], *, limit_s: float
) -> list[int]:
    """Cancel `work` at its every step; call `after` when a run has ended, with the step.

    Returns the steps at which a cancellation was without effect.
    """
    swallowed: list[int] = []
    for at in range(1, 100_000):
        ended = await run_cancelled_at(work, at, how, limit_s)
        await after(at)
        if not ended.reached:
            return swallowed
        if not ended.cancelled:
            swallowed.append(at)
    raise AssertionError("it never came to its end")
