"""Bounded daemon threads for calls that may hang.

Python cannot stop a thread. anyio's `to_thread` frees the slot of an abandoned call at once, so
hung calls would pile up threads without bound; `ThreadPoolExecutor` joins its threads at exit, so
one hung call would keep the worker from ending. Hence these.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import anyio

from askonce_worker.models.protocol import TransientFailure


@dataclass(eq=False, slots=True)
class _Work:
    """One call on its way through a thread. `returned` and `given_up` change on the loop only."""

    call: Callable[[Any], Any]
    given: Any
    loop: asyncio.AbstractEventLoop
    outcome: asyncio.Future[tuple[Any, BaseException | None]]
    context: contextvars.Context
    returned: bool = False
    given_up: bool = False

    def carry_out(self) -> tuple[Any, BaseException | None]:
        try:
            return self.context.run(self.call, self.given), None
        except BaseException as error:  # noqa: BLE001 - raised again in the task that asked
            return None, error


class DaemonThreads:
    """At most `max_threads` threads; a call takes a slot until it *returns*, given up or not.

    `hung` counts the calls that nobody waits for any more (timed out or cancelled) and that still
    run. Once every slot is hung, those who wait for one fail, and so does whoever comes, until a
    hung call returns. Belongs to one event loop; all state changes there.
    """

    def __init__(self, name: str, max_threads: int) -> None:
        self.hung = 0
        self._name = name
        self._max_threads = max_threads
        self._slots = anyio.CapacityLimiter(max_threads)
        self._waiting: set[anyio.CancelScope] = set()
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._started = 0

    async def run(
        self,
        call: Callable[[Any], Any],
        given: Any,
        bounded: Callable[[Awaitable[Any]], Awaitable[Any]],
    ) -> Any:
        """Return or raise what `call(given)` does; `bounded` gives up waiting for it."""
        loop = asyncio.get_running_loop()
        work = _Work(call, given, loop, loop.create_future(), contextvars.copy_context())
        await self._take_slot(work)
        self._start(work)
        try:
            result, error = await bounded(work.outcome)
        finally:
            if not work.returned:
                self._give_up(work)
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """Let each thread end as soon as it is idle."""
        for _ in range(self._started):
            self._queue.put(None)
        self._started = 0

    async def _take_slot(self, work: _Work) -> None:
        """Wait for a free slot; raises `TransientFailure` while every slot is hung."""
        if self.hung < self._max_threads:
            with anyio.CancelScope() as scope:
                self._waiting.add(scope)
                try:
                    await self._slots.acquire_on_behalf_of(work)
                finally:
                    self._waiting.discard(scope)
                return
        raise TransientFailure(
            "timeout", f"all {self._max_threads} threads of {self._name} hang in earlier calls"
        )

    def _start(self, work: _Work) -> None:
        # Every slot in use is a call that is queued or running, so this many threads serve them.
        if self._started < self._slots.borrowed_tokens:
            thread = threading.Thread(target=self._serve, name=f"model {self._name}", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                self._slots.release_on_behalf_of(work)
                raise
            self._started += 1
        self._queue.put(work)

    def _serve(self) -> None:
        while (work := self._queue.get()) is not None:
            outcome = work.carry_out()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                work.loop.call_soon_threadsafe(self._finish, work, outcome)
            del work, outcome

    def _finish(self, work: _Work, outcome: tuple[Any, BaseException | None]) -> None:
        self._slots.release_on_behalf_of(work)
        work.returned = True
        if work.given_up:
            self.hung -= 1
        if not work.outcome.done():
            work.outcome.set_result(outcome)

    def _give_up(self, work: _Work) -> None:
        work.given_up = True
        self.hung += 1
        if self.hung >= self._max_threads:
            for scope in self._waiting:
                scope.cancel()
