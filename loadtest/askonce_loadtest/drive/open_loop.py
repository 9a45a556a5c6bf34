"""The loop itself: sends what is due, in batches, and times each reply from the due time."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import anyio
from anyio.abc import TaskGroup

from askonce_loadtest.drive.trial import Counts, Pace, Trial, make_trial
from askonce_loadtest.workloads.request import Lane, Request
from askonce_queue.client import Client
from askonce_queue.errors import QueueFull, StoreUnavailable
from askonce_queue.job import Job
from askonce_queue.ledger import Limits
from askonce_queue.reply import Reply
from askonce_queue.scripts import CHUNK

TICK_S = 0.001
"""Requests go out at most this often; what is due in between goes together."""
LEAD_S = 0.05
MAX_SENDS = 4
"""Enqueues under way at once. While all of them wait for the store, what is due gathers."""
MAX_OUTSTANDING = Limits().max_unread
"""Requests that were sent, or wait to be; further ones count as errors (`not_sent`)."""
LOOK_EVERY_S = 0.02


class OpenLoop:
    """Plays requests through a client, one run after the other. `listen` must be running.

    Nothing here waits for a reply, or for the store, before the next request is sent.
    """

    def __init__(
        self, client: Client, *, shards: int = 1, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._client = client
        self._shards = shards
        self._clock = clock
        self._token = secrets.token_hex(4)
        self._number = 0
        self._sends = 0
        self._waiting: dict[Lane, deque[tuple[float, Request]]] = {}
        self._pending: dict[str, float] = {}
        """When each request under way was due, in the order they were sent."""
        self._counts = Counts()
        self._measured_from = self._measured_to = 0.0
        self._stopped = False

    async def listen(self) -> None:
        """Take replies, for ever."""
        clock, pending = self._clock, self._pending
        async for reply in self._client.replies():
            due = pending.pop(reply.id, None)
            if due is not None and due >= self._measured_from:
                self._count(reply, due, clock())

    def stop(self) -> None:
        """End the run under way: what was sent is waited for a moment, and summed up."""
        self._stopped = True

    @property
    def outstanding(self) -> int:
        """Requests that are due and have no reply yet."""
        return len(self._pending) + sum(map(len, self._waiting.values()))

    def progress(self) -> str:
        """How the run is going, in a line."""
        counts = self._counts
        into_s = max(0.0, min(self._clock(), self._measured_to) - self._measured_from)
        return (
            f"{into_s:.1f} of {self._measured_to - self._measured_from:g} s, "
            f"{counts.late.count:,} sent, {self.outstanding:,} under way, "
            f"p99 {counts.latency.percentile_us(99) / 1e3:,.1f} ms"
        )

    async def run(
        self,
        requests: Iterator[tuple[float, Request]],
        pace: Pace,
        rounds: Callable[[], int] = lambda: 0,
    ) -> Trial:
        """Play requests, each with its due time in s from now, for the time that `pace` says."""
        start = self._clock() + LEAD_S
        self._counts = counts = Counts()
        self._measured_from = measured_from = start + pace.warm_up_s
        self._measured_to = measured_from + pace.seconds
        rounds_before, gave_up, seconds = rounds(), False, 0.0
        async with anyio.create_task_group() as tasks:
            gave_up = await self._send_all(requests, start, pace, tasks)
            seconds = min(pace.seconds, max(0.0, self._clock() - measured_from))
            await self._drain(pace.drain_s, tasks)
            tasks.cancel_scope.cancel()
        now = self._clock()
        for due in (*self._pending.values(), *(due for due, _ in self._take_waiting())):
            if due >= measured_from:
                counts.never(int((now - due) * 1e6))
        self._pending.clear()
        return make_trial(
            pace,
            counts,
            began=measured_from,
            seconds=seconds,
            rounds=rounds() - rounds_before,
            gave_up=gave_up,
            interrupted=self._stopped,
        )

    async def _send_all(
        self, requests: Iterator[tuple[float, Request]], start: float, pace: Pace, tasks: TaskGroup
    ) -> bool:
        """Send what falls due, until the end. Returns whether it gave up before."""
        clock, taken = self._clock, 0
        for offset_s, request in requests:
            due = start + offset_s
            if due >= self._measured_to:
                break
            while (now := clock()) < due or taken >= CHUNK:
                taken = 0
                self._flush(tasks)
                if self._stopped or self._too_late(now, pace):
                    return not self._stopped
                await anyio.sleep(min(LOOK_EVERY_S, max(TICK_S, due - now)))
            taken += 1
            self._take(due, now, request)
        return False

    def _take(self, due: float, now: float, request: Request) -> None:
        """A request is due, and this is when the driver got to it."""
        if due >= self._measured_from:
            self._counts.late.record(int((now - due) * 1e6))
            self._counts.last_sent_at = now
        if self.outstanding >= MAX_OUTSTANDING:
            if due >= self._measured_from:
                self._counts.error("not_sent")
            return
        self._waiting.setdefault(request.lane, deque()).append((due, request))

    def _too_late(self, now: float, pace: Pace) -> bool:
        if pace.give_up_after_s is None:
            return False
        oldest = next(iter(self._pending.values()), now)
        return now - oldest > pace.give_up_after_s

    def _flush(self, tasks: TaskGroup) -> None:
        """Begin to send what waits, if there is a free place."""
        for lane, waiting in self._waiting.items():
            while waiting and self._sends < MAX_SENDS:
                part = [waiting.popleft() for _ in range(min(CHUNK, len(waiting)))]
                self._sends += 1
                tasks.start_soon(self._send, lane, part)

    async def _send(self, lane: Lane, part: list[tuple[float, Request]]) -> None:
        # Ids of our own, because the reply may be here before the enqueue has returned. As those
        # that a client makes, they say which shard they are of, and a batch is of one.
        jobs: list[Job] = []
        prefix = f"s{self._number % self._shards}-{self._token}-"
        for due, request in part:
            self._number += 1
            job = Job(id=f"{prefix}{self._number}", task=request.task, text=request.text)
            self._pending[f"{prefix}{self._number}"] = due
            jobs.append(job)
        try:
            await self._client.enqueue_many(jobs, lane=lane)
        except QueueFull as error:
            self._failed(error.job_ids, "queue_full")
        except StoreUnavailable:
            self._failed([job.id or "" for job in jobs], "store_unavailable")
        finally:
            self._sends -= 1

    def _failed(self, ids: Iterable[str], code: str) -> None:
        for job_id in ids:
            due = self._pending.pop(job_id, None)
            if due is not None and due >= self._measured_from:
                self._counts.error(code)

    def _count(self, reply: Reply, due: float, now: float) -> None:
        if reply.error is None:
            self._counts.answer(reply.source, int((now - due) * 1e6), now)
        else:
            self._counts.error(reply.error.code)

    async def _drain(self, drain_s: float, tasks: TaskGroup) -> None:
        """Wait for what is under way; what does not come in time is counted as unanswered."""
        deadline = self._clock() + drain_s
        while self.outstanding and self._clock() < deadline:
            self._flush(tasks)
            if self._stopped:
                deadline = min(deadline, self._clock() + 1.0)
            await anyio.sleep(TICK_S)

    def _take_waiting(self) -> list[tuple[float, Request]]:
        waiting = [one for lane in self._waiting.values() for one in lane]
        self._waiting.clear()
        return waiting
