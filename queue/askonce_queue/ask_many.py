"""One `ask_many` in progress: what is to be sent, what is awaited, what has arrived."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice

import anyio

from askonce_queue.errors import IdConflict, QueueFull
from askonce_queue.job import Job
from askonce_queue.ledger import Delivered, Enqueue, Ledger
from askonce_queue.scripts import CHUNK

FULL_BACKOFF_S = (0.02, 0.5)

Send = Callable[[Sequence[Enqueue]], Awaitable[QueueFull | IdConflict | None]]


class AskMany:
    """The window of one caller: at most `window` jobs between `jobs` and the caller.

    `avoid` says to which shards jobs without ids should not go just now.
    """

    def __init__(
        self,
        ledger: Ledger,
        send: Send,
        jobs: Iterable[Job],
        lane: str,
        window: int,
        *,
        ordered: bool,
        avoid: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._ledger = ledger
        self._avoid = avoid
        self._send = send
        self._jobs: Iterator[Job] = iter(jobs)
        self._lane = lane
        self._window = max(1, window)
        self._part = min(CHUNK, self._window)
        self._exhausted = False
        self._refused: list[tuple[str, Job]] = []
        self._backoff_s = 0.0
        self._awaited: set[str] = set()
        self._order: deque[str] | None = deque() if ordered else None
        self._arrived: dict[str, Delivered] = {}
        self._bell = anyio.Event()

    @property
    def done(self) -> bool:
        """Whether every job was sent and every reply taken."""
        return self._exhausted and not (self._awaited or self._arrived)

    @property
    def _has_room(self) -> bool:
        """Whether a part of the window is free; refused jobs are awaited too."""
        return self._window - len(self._awaited) - len(self._arrived) >= self._part

    def _put(self, delivered: Delivered) -> None:
        self._awaited.discard(delivered.reply.id)
        self._arrived[delivered.reply.id] = delivered
        self._bell.set()

    def take(self) -> Delivered | None:
        """The next reply that may be handed to the caller now."""
        if not self._arrived:
            return None
        if self._order is None:
            return self._arrived.pop(next(iter(self._arrived)))
        delivered = self._arrived.pop(self._order[0], None)
        if delivered is not None:
            self._order.popleft()
        return delivered

    async def feed(self) -> None:
        """Enqueue the next jobs, when a part of the window is free. Raises as `enqueue_many`."""
        if self._refused:
            refused, self._refused = self._refused, []
            await self._enqueue([job_id for job_id, _ in refused], [job for _, job in refused])
        elif self._has_room and not self._exhausted:
            jobs = list(islice(self._jobs, self._part))
            self._exhausted = len(jobs) < self._part
            ids = self._ledger.assign_ids(jobs, self._avoid())
            again = [i for i in ids if i in self._awaited or i in self._arrived]
            if again or len(set(ids)) < len(ids):
                raise IdConflict(again or [i for i, n in Counter(ids).items() if n > 1])
            self._ledger.expect(ids, self._put)
            self._awaited.update(job_id for job_id in ids if job_id not in self._arrived)
            if self._order is not None:
                self._order.extend(ids)
            await self._enqueue(ids, jobs)

    async def _enqueue(self, ids: list[str], jobs: list[Job]) -> None:
        """Send jobs that are awaited; those that did not fit are kept for later."""
        # A resumed client may have the replies of some already.
        waiting = [(i, job) for i, job in zip(ids, jobs, strict=True) if i in self._awaited]
        if not waiting:
            return
        calls = self._ledger.prepare(
            [job_id for job_id, _ in waiting],
            [job for _, job in waiting],
            lane=self._lane,
            reply_to=None,
        )
        error = await self._send(calls)
        if error is None:
            self._backoff_s = 0.0
            return
        if not isinstance(error, QueueFull):
            raise error
        refused = set(error.job_ids)
        self._refused.extend(pair for pair in waiting if pair[0] in refused)
        least, most = FULL_BACKOFF_S
        self._backoff_s = min(most, max(least, 2 * self._backoff_s))

    async def wait(self) -> None:
        """Wait for a reply, or for the time to try refused jobs again."""
        if self._has_room and not (self._exhausted or self._refused):
            return
        self._bell = anyio.Event()
        with anyio.move_on_after(self._backoff_s if self._refused else None):
            await self._bell.wait()

    def abandon(self) -> None:
        """The caller reads no more: what it has not taken is done with."""
        for job_id in self._awaited:
            self._ledger.forget(job_id)
        for delivered in self._arrived.values():
            self._ledger.handed(delivered.source)
        self._arrived.clear()
