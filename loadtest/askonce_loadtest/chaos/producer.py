"""A producer process: makes jobs at its rate under a stable name, and notes what becomes of them.

    python -m askonce_loadtest.chaos.producer '{"name": …, …}'

Killed and started again it goes on where its journal ends: jobs that may or may not have been
accepted are enqueued again under the same ids, replies that the old one did not hand over come to
the new one. On standard input it takes lines: `poison N` makes a poisonous job among others,
`finish` no new ones from then on, `close` closes the client. End of input ends it.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections import deque
from pathlib import Path

import anyio
import msgspec
import uvloop

from askonce_loadtest.chaos.books import Books
from askonce_loadtest.chaos.journal import (
    Accepted,
    AskedJob,
    Attempted,
    Began,
    Ended,
    Idle,
    Journal,
    Refused,
    Replied,
    Unknown,
)
from askonce_loadtest.chaos.workload import Asked, choose, lane_of, unique
from askonce_queue import Client, ClientNameInUse, IdConflict, QueueFull, Reply, StoreUnavailable
from askonce_queue.store_config import StoreConfig

TICK_S = 0.02
MOST_TOGETHER = 200
MOST_WAITING = 3_000
"""Jobs without a reply at which a producer makes no more: an outage is no reason to pile up."""
RETRY_S = (0.05, 0.3)
"""How long to wait before jobs are tried again that were not accepted."""
ASK_SHARE = 0.1
"""Jobs that are asked one by one (`Client.ask`) instead of enqueued many at once."""
MOST_ASKS = 50
NEIGHBOURS = 40
"""Cold questions that are enqueued together with a poisonous job."""


class Order(msgspec.Struct):
    """Who the producer is and what it does. `store` is the `[redis]` table of its side."""

    name: str
    seed: int
    store: StoreConfig
    rate_per_s: float
    began: float
    journal: str


class Producer:
    """One process; it opens a new client whenever it loses its name."""

    def __init__(self, order: Order, journal: Journal, books: Books) -> None:
        self._order = order
        self._journal = journal
        self._books = books
        self._rng = random.Random()
        self._poison: deque[int] = deque()
        self._finishing = False
        self._closing = anyio.Event()
        self._busy: set[str] = set()
        """Jobs that a call is dealing with at this moment."""

    async def run(self) -> None:
        """Make jobs until told to finish; return when the client was closed after `close`."""
        ours = asyncio.all_tasks()
        while True:
            try:
                await self._with_a_client()
            except* (ClientNameInUse, StoreUnavailable):
                await anyio.sleep(self._rng.uniform(0.1, 0.3))
            else:
                break
        left = asyncio.all_tasks() - ours
        self._journal.write(Ended(time.monotonic(), [repr(task) for task in left]))

    async def obey(self, reader: asyncio.StreamReader) -> None:
        """Take what the driver says; return at the end of input."""
        while line := (await reader.readline()).decode():
            match line.split():
                case ["poison", number]:
                    self._poison.append(int(number))
                case ["finish"]:
                    self._finishing = True
                case ["close"]:
                    self._closing.set()
                case _:
                    raise ValueError(f"not a command: {line!r}")

    async def _with_a_client(self) -> None:
        order, books = self._order, self._books
        async with Client(order.store, name=order.name) as client:
            books.incarnation += 1
            self._busy.clear()
            self._rng.seed(f"{order.seed}:{order.name}:{books.incarnation}")
            self._journal.write(Began(time.monotonic(), books.incarnation, os.getpid()))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._read, client)
                tasks.start_soon(self._feed, client, tasks)
                await self._closing.wait()
                tasks.cancel_scope.cancel()

    # Asking

    async def _feed(self, client: Client, tasks: anyio.abc.TaskGroup) -> None:
        """Enqueue what is due: new jobs, and those of which nobody knows."""
        due, last, idle = 0.0, time.monotonic(), False
        enqueuing: set[str] = set()
        while True:
            await anyio.sleep(TICK_S)
            if self._finishing and not idle and not self._books.waiting and not self._poison:
                self._journal.write(Idle(time.monotonic()))
                idle = True
            now = time.monotonic()
            due = min(MOST_TOGETHER, due + (now - last) * self._order.rate_per_s)
            last = now
            asks = len(self._busy) < MOST_ASKS
            for job_id in self._make(int(due)):
                if asks and self._rng.random() < ASK_SHARE:
                    self._busy.add(job_id)
                    tasks.start_soon(self._ask, client, job_id)
            due -= int(due)
            for lane in {"interactive", "bulk"} - enqueuing:
                ids = self._next_batch(lane)
                if ids:
                    enqueuing.add(lane)
                    self._busy.update(ids)
                    tasks.start_soon(self._enqueue, client, lane, ids, enqueuing)

    def _make(self, count: int) -> list[str]:
        """New jobs, noted before anything is done with them."""
        since_start_s = time.monotonic() - self._order.began
        asked: list[Asked] = []
        while self._poison:
            # In company that is under way when it strikes: innocents that may not be condemned.
            asked += [unique(self._rng) for _ in range(NEIGHBOURS)]
            asked.append(Asked("die", self._poison.popleft()))
        if not self._finishing and self._books.waiting < MOST_WAITING:
            asked += [choose(self._rng, since_start_s) for _ in range(count)]
        made: list[str] = []
        for one in asked:
            job_id = f"{self._order.name}-{self._books.made + 1}"
            self._books.add(job_id, one)
            made.append(job_id)
        if made:
            jobs = [AskedJob(i, one.kind, one.number) for i, one in zip(made, asked, strict=True)]
            self._journal.write(Attempted(time.monotonic(), jobs))
        return made

    def _next_batch(self, lane: str) -> list[str]:
        unsure = [i for i in self._books.unsure if i not in self._busy and lane_of(i) == lane]
        return unsure[:MOST_TOGETHER]

    async def _enqueue(
        self, client: Client, lane: str, ids: list[str], enqueuing: set[str]
    ) -> None:
        # What was replied meanwhile must not be enqueued again: that would be a new job.
        jobs = [self._books.asked[i].job(i) for i in ids if i in self._books.asked]
        try:
            await client.enqueue_many(jobs, lane=lane)
        except (QueueFull, IdConflict) as error:
            refused = list(error.job_ids)
            self._journal.write(Refused(time.monotonic(), refused, str(error)))
            self._note_accepted([i for i in ids if i not in set(refused)])
            await anyio.sleep(self._rng.uniform(*RETRY_S))
        except StoreUnavailable as error:
            self._journal.write(Unknown(time.monotonic(), ids, str(error)))
            await anyio.sleep(self._rng.uniform(*RETRY_S))
        else:
            self._note_accepted(ids)
        self._busy.difference_update(ids)
        enqueuing.discard(lane)

    async def _ask(self, client: Client, job_id: str) -> None:
        """Ask for one job; its reply comes here, and not to `_read`."""
        try:
            reply = await client.ask(self._books.asked[job_id].job(job_id), lane=lane_of(job_id))
        except (QueueFull, IdConflict) as error:
            self._journal.write(Refused(time.monotonic(), [job_id], str(error)))
        except StoreUnavailable as error:
            self._journal.write(Unknown(time.monotonic(), [job_id], str(error)))
        else:
            self._note_reply(reply)
        self._busy.discard(job_id)

    def _note_accepted(self, ids: list[str]) -> None:
        if ids:
            self._journal.write(Accepted(time.monotonic(), ids))
            self._books.accepted(ids)

    # Replies

    async def _read(self, client: Client) -> None:
        async for reply in client.replies():
            self._note_reply(reply)

    def _note_reply(self, reply: Reply) -> None:
        self._journal.write(
            Replied(
                time.monotonic(),
                reply.id,
                reply.answer.label if reply.answer else None,
                reply.error.code if reply.error else None,
                reply.source,
            )
        )
        self._books.replied(reply.id)


async def _main(order: Order) -> None:
    path = Path(order.journal)
    books = Books.read(path)
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    try:
        with Journal(path) as journal:
            producer = Producer(order, journal, books)
            async with anyio.create_task_group() as tasks:

                async def obey() -> None:
                    await producer.obey(reader)
                    tasks.cancel_scope.cancel()

                tasks.start_soon(obey)
                await producer.run()
                tasks.cancel_scope.cancel()
    finally:
        transport.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(msgspec.json.decode(sys.argv[1], type=Order)))
