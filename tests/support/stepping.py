"""Cancels a piece of work at every point where it can be suspended, one after the other.

The work runs in a task of its own. Every suspension of that task, and of all tasks that are started
on its behalf, is counted, so step k is the same await in every run, as far as the work goes the
same way. At step k the work's task is cancelled, in one of three ways:

| how | |
| --- | --- |
| `waiting` | `task.cancel()`, before what is waited for is there |
| `arriving` | `task.cancel()` at the very moment when it is there |
| `scope` | an anyio scope around the work is cancelled, which cancels again and again |
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import anyio
import anyio.lowlevel

How = Literal["waiting", "arriving", "scope"]
EVERY_HOW: tuple[How, ...] = get_args(How)
Work = Callable[[], Coroutine[Any, Any, None]]
LIMIT_S = 15.0
"""Longer than anything may outlive its cancellation."""

_steps: contextvars.ContextVar[Steps | None] = contextvars.ContextVar("steps", default=None)


class Ended(NamedTuple):
    """How a run ended: whether step k was `reached` before, and whether by its cancellation."""

    step: int
    reached: bool
    cancelled: bool
    where: str
    """Where the work stood, the outermost await first; and the task that took step k."""
    tasks: list[asyncio.Task[Any]]
    """The tasks that were started on behalf of the work."""

    def __str__(self) -> str:
        return f"step {self.step} ({self.where})"


class Steps:
    """Counts suspensions, and calls `strike` with what is waited for at the `at`-th."""

    def __init__(self, at: int, strike: Callable[[object], None]) -> None:
        self.work: Coroutine[Any, Any, Any] | None = None
        self.where = ""
        self.tasks: list[asyncio.Task[Any]] = []
        self._left = at
        self._strike = strike

    def suspended(self, work: Coroutine[Any, Any, Any], waits_for: object) -> None:
        self._left -= 1
        if self._left == 0:
            self.where = awaits(self.work)
            if work is not self.work:
                self.where += f"; a task of it: {awaits(work)}"
            self._strike(waits_for)


def awaits(work: Any) -> str:
    """Where a suspended coroutine stands, the outermost await first."""
    places: list[str] = []
    while inspect.iscoroutine(work) or inspect.isgenerator(work):
        frame = work.cr_frame if inspect.iscoroutine(work) else work.gi_frame
        if frame is not None:
            code = frame.f_code
            places.append(f"{code.co_name} ({Path(code.co_filename).name}:{frame.f_lineno})")
        work = work.cr_await if inspect.iscoroutine(work) else work.gi_yieldfrom
    return " > ".join(places)


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
            self._steps.suspended(self._work, waits_for)
            error = None
            try:
                yield waits_for
            except BaseException as raised:  # noqa: BLE001 -- it is thrown into the work
                error = raised


async def _step(work: Coroutine[Any, Any, Any], steps: Steps) -> Any:
    return await _Stepped(work, steps)


def _task_factory(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
    steps = _steps.get()
    if steps is None or not asyncio.iscoroutine(work):
        return asyncio.Task(work, loop=loop, **options)
    task = asyncio.Task(_step(work, steps), loop=loop, **options)
    steps.tasks.append(task)
    task.add_done_callback(lambda _: work.close())  # it may have been cancelled before it began
    return task


@contextmanager
def _counting() -> Generator[None]:
    """Count the steps of tasks on whose behalf that is wanted."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(_task_factory)
    try:
        yield
    finally:
        loop.set_task_factory(None)


async def run_cancelled_at(work: Work, step: int, how: How) -> Ended:
    """Run `work` and cancel it at its `step`-th suspension; raises what else it raises.

    Fails when it has not ended `LIMIT_S` after it was cancelled.
    """
    loop = asyncio.get_running_loop()
    struck: asyncio.Future[None] = loop.create_future()
    scope = anyio.CancelScope()

    def cancel() -> None:
        if how == "scope":
            scope.cancel()
        else:
            task.cancel()
        if not struck.done():
            struck.set_result(None)

    def strike(waits_for: object) -> None:
        if how == "arriving" and asyncio.isfuture(waits_for):
            waits_for.add_done_callback(lambda _: cancel())
        else:
            loop.call_soon(cancel)

    async def scoped() -> bool:
        with scope:
            await work()
            await anyio.lowlevel.checkpoint()  # where a scope that was cancelled in a shield shows
            return False
        return True

    steps = Steps(step, strike)
    with _counting():
        token = _steps.set(steps)
        steps.work = scoped()
        task = asyncio.create_task(steps.work)
        _steps.reset(token)
        ends: list[asyncio.Future[Any]] = [task, struck]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        done, _ = await asyncio.wait([task], timeout=LIMIT_S)
    if not done:
        task.cancel()
        raise AssertionError(f"cancelled at step {step} ({steps.where}), it did not end")
    cancelled = task.cancelled() or task.result()
    return Ended(step, struck.done(), cancelled, steps.where, steps.tasks)


async def cancel_everywhere(
    work: Work, how: How, after: Callable[[Ended], Awaitable[None]]
) -> list[Ended]:
    """Cancel `work` at its every step, and call `after` at the end of every run.

    Returns the runs that were not ended by their cancellation.
    """
    deaf: list[Ended] = []
    for step in range(1, 100_000):
        ended = await run_cancelled_at(work, step, how)
        await after(ended)
        if not ended.reached:
            return deaf
        if not ended.cancelled:
            deaf.append(ended)
    raise AssertionError("it never came to its end")
