"""The producer's side: enqueue jobs, ask for answers, read replies.

async with Client("redis://127.0.0.1:6379/0") as client:
    reply = await client.ask(Job(task="intent", text="I lost my card"))
    async for reply in client.ask_many(jobs):
        ...
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import anyio
from redis.exceptions import OutOfMemoryError, RedisError

from askonce_queue import names, queue_scripts
from askonce_queue.ask_many import AskMany
from askonce_queue.errors import (
    ClientNameInUse,
    IdConflict,
    QueueFull,
    ReplyTimeout,
    StoreUnavailable,
)
from askonce_queue.host import Host
from askonce_queue.job import Job
from askonce_queue.ledger import (
    NAME_TTL_MS,
    Delivered,
    Enqueue,
    Ledger,
    Limits,
    reply_lines,
)
from askonce_queue.reply import Reply
from askonce_queue.scripts import Arg, run, run_many, send
from askonce_queue.store import check_shards, connect

BLOCK_S = 0.5
HAND_OVER_EVERY_S = 0.05
READ_COUNT = 200
"""Reply entries a read; each may hold some hundred replies."""


class Client:
    """Enqueues jobs and hands each exactly one reply. Safe for many coroutines of one event loop.

    `name` makes it resumable: a new client of the same name gets the replies that the old one did
    not hand over. One live client holds a name. Without a name it gets a new one.

    Raises on entry: `StoreUnavailable`, `ClientNameInUse`, `ConfigError` (another shard count).
    """

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        pool: str = "default",
        shards: int = 1,
        limits: Limits | None = None,
    ) -> None:
        self._ledger = Ledger(name, pool=pool, shards=shards, limits=limits or Limits())
        self._shards = shards
        self._commands = connect(url, role="commands")
        self._blocking = connect(url, role="blocking", block_s=BLOCK_S, max_connections=2)
        self._last_ids = dict.fromkeys(self._ledger.tags, b"0")
        self._inbox: deque[Delivered] = deque()
        self._arrived = anyio.Event()
        self._rng = random.Random()
        self._host = Host(self._loops())
        self._lost_name = False

    @property
    def name(self) -> str:
        """The client's name: the scope of its job ids."""
        return self._ledger.name

    @property
    def outstanding(self) -> int:
        """Jobs of this client whose reply has not arrived."""
        return self._ledger.outstanding

    async def __aenter__(self) -> Self:
        try:
            await check_shards(self._commands, self._shards)
            await self._claim_name()
            while await self._read_once(block=False):
                pass
        except (RedisError, OSError) as error:
            await self._disconnect()
            raise StoreUnavailable(f"the store cannot be reached: {error}") from error
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._disconnect()
            raise
        await self._host.open()
        return self

    @asynccontextmanager
    async def _loops(self) -> AsyncGenerator[None]:
        async with anyio.create_task_group() as tasks:
            for loop in (self._read_forever, self._renew_forever, self._hand_over_forever):
                tasks.start_soon(loop)
            yield
            tasks.cancel_scope.cancel()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._host.close()
        finally:
            with anyio.CancelScope(shield=True):
                await self._leave()
                await self._disconnect()

    # Enqueue and ask

    async def enqueue(
        self, job: Job, *, lane: str = "interactive", reply_to: str | None = None
    ) -> str:
        """Enqueue one job; return its id. Errors as `enqueue_many`."""
        (job_id,) = await self.enqueue_many([job], lane=lane, reply_to=reply_to)
        return job_id

    async def enqueue_many(
        self, jobs: Sequence[Job], *, lane: str = "interactive", reply_to: str | None = None
    ) -> list[str]:
        """Enqueue jobs; return their ids, in order. Their replies come through `replies()`, or,
        with `reply_to`, go to the named reply stream of that name.

        Enqueueing an unsettled id again with the same content is the same job. Raises `InvalidJob`
        (nothing was enqueued), `QueueFull` and `IdConflict` (they name the jobs that were not
        accepted; the others were), `ClientNameInUse`, `StoreUnavailable` (what was accepted is
        unknown: enqueue the same ids again).
        """
        ids = self._ledger.assign_ids(jobs)
        calls = self._ledger.prepare(ids, jobs, lane=lane, reply_to=reply_to)
        new = self._ledger.expect(ids, self._inbox_put) if reply_to is None else set[str]()
        error = await self._send(calls)
        if error is not None:
            for job_id in self._ledger.not_accepted(error, ids):
                if job_id in new:
                    self._ledger.forget(job_id)
            raise error
        return ids

    async def ask(
        self, job: Job, *, lane: str = "interactive", timeout_s: float | None = None
    ) -> Reply:
        """Enqueue one job and wait for its reply. Raises as `enqueue_many`, and `ReplyTimeout`."""
        ids = self._ledger.assign_ids([job])
        calls = self._ledger.prepare(ids, [job], lane=lane, reply_to=None)
        box: list[Delivered] = []
        arrived = anyio.Event()

        def put(delivered: Delivered) -> None:
            box.append(delivered)
            arrived.set()

        self._ledger.expect(ids, put)
        try:
            if not box:
                error = await self._send(calls)
                if error is not None:
                    raise error
                with anyio.move_on_after(timeout_s):
                    await arrived.wait()
        finally:
            self._ledger.forget(ids[0])
            for delivered in box:  # also when the caller was cancelled as it came
                self._ledger.handed(delivered.source)
        if not box:
            raise ReplyTimeout(
                f"no reply to job {ids[0]} within {timeout_s} s; it stays accepted. Are workers up?"
            )
        return box[0].reply

    async def ask_many(
        self,
        jobs: Iterable[Job],
        *,
        lane: str = "interactive",
        ordered: bool = False,
        window: int = 10_000,
    ) -> AsyncIterator[Reply]:
        """Enqueue jobs and yield their replies as they arrive, or in the jobs' order.

        At most `window` jobs are outstanding at once; `jobs` is read as they are needed. When the
        queue is full it waits. Raises as `enqueue_many`, but for `QueueFull`.
        """
        asking = AskMany(self._ledger, self._send, jobs, lane, window, ordered=ordered)
        try:
            while True:
                await asking.feed()
                while (delivered := asking.take()) is not None:
                    self._ledger.handed(delivered.source)
                    yield delivered.reply
                if asking.done:
                    return
                await asking.wait()
        finally:
            asking.abandon()

    async def replies(self) -> AsyncIterator[Reply]:
        """Yield the replies to jobs of `enqueue` and `enqueue_many`, as they arrive, for ever.

        Begins with those that an earlier client of this name left. A reply counts as handed over
        once the next one is asked for.
        """
        self._ledger.on_early(self._ring)
        while True:
            self._inbox.extend(self._ledger.take_early())
            while self._inbox:
                delivered = self._inbox.popleft()
                yield delivered.reply
                self._ledger.handed(delivered.source)
            if self._arrived.is_set():  # several readers share one event
                self._arrived = anyio.Event()
            await self._arrived.wait()

    def _inbox_put(self, delivered: Delivered) -> None:
        self._inbox.append(delivered)
        self._ring()

    def _ring(self) -> None:
        self._arrived.set()

    async def _send(self, calls: Sequence[Enqueue]) -> QueueFull | IdConflict | None:
        if self._lost_name:
            raise ClientNameInUse(f"client name {self.name!r} was taken by another client")
        try:
            results = await run_many(self._commands, [enqueue.call for enqueue in calls])
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"the store cannot be reached: {error}") from error
        answered: list[tuple[Enqueue, bytes | None]] = []
        for enqueue, result in zip(calls, results, strict=True):
            if isinstance(result, Exception):
                if not isinstance(result, OutOfMemoryError):
                    raise StoreUnavailable(f"the store refused jobs: {result}") from result
                answered.append((enqueue, None))
            else:
                answered.append((enqueue, result))
        return self._ledger.read_verdicts(answered)

    # Loops

    async def _read_forever(self) -> None:
        delay_s = 0.02
        while True:
            try:
                await self._read_once(block=True)
                delay_s = 0.02
            except (RedisError, OSError):
                # Nothing is lost: reading deletes nothing, and goes on from the last entry.
                await anyio.sleep(self._rng.uniform(0.5, 1.0) * delay_s)
                delay_s = min(2.0, 2 * delay_s)

    async def _read_once(self, *, block: bool) -> int:
        streams = {names.replies(tag, self.name): tag for tag in self._ledger.tags}
        wait: tuple[Arg, ...] = ("BLOCK", int(BLOCK_S * 1000)) if block else ()
        rows: list[Any] | None = await send(
            self._blocking,
            "XREAD",
            "COUNT",
            READ_COUNT,
            *wait,
            "STREAMS",
            *streams,
            *self._last_ids.values(),
        )
        entries = 0
        for stream, batch in rows or ():
            tag = streams[stream]
            for entry_id, fields in batch:
                self._ledger.receive(tag, entry_id, reply_lines(fields))
                self._last_ids[tag] = entry_id
                entries += 1
        return entries

    async def _renew_forever(self) -> None:
        while True:
            await anyio.sleep(NAME_TTL_MS / 3000)
            try:
                await self._claim_name()
            except ClientNameInUse:
                self._lost_name = True
                return
            except (RedisError, OSError):
                continue  # the next enqueue tells its caller

    async def _claim_name(self) -> None:
        calls = [
            queue_scripts.claim_name(tag, self.name, self._ledger.token, NAME_TTL_MS)
            for tag in self._ledger.tags
        ]
        for result in await run_many(self._commands, calls):
            if isinstance(result, Exception):
                raise result
            if not result:
                raise ClientNameInUse(
                    f"another live client is named {self.name!r}; choose another name, "
                    "or wait until it has ended"
                )

    async def _hand_over_forever(self) -> None:
        while True:
            await anyio.sleep(HAND_OVER_EVERY_S)
            await self._hand_over()

    async def _hand_over(self) -> None:
        """Delete what was handed to callers; what fails goes with the next."""
        for entries, tag, call in self._ledger.take_handed():
            try:
                await run(self._commands, call)
            except (RedisError, OSError):
                self._ledger.put_back_handed(tag, entries)

    async def _leave(self) -> None:
        await self._hand_over()
        calls = [
            queue_scripts.release_name(tag, self.name, self._ledger.token)
            for tag in self._ledger.tags
        ]
        try:
            await run_many(self._commands, calls)
        except (RedisError, OSError):
            return  # the name's lease runs out by itself

    async def _disconnect(self) -> None:
        await self._commands.aclose()
        await self._blocking.aclose()
