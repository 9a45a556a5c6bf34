"""The producer's side: enqueue jobs, ask for answers, read replies.

async with Client("redis://127.0.0.1:6379/0") as client:
    reply = await client.ask(Job(task="intent", text="I lost my card"))
    async for reply in client.ask_many(jobs):
        ...
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import anyio
from redis.exceptions import RedisError

from askonce_queue import queue_scripts
from askonce_queue.ask_many import AskMany
from askonce_queue.checks import check_shards
from askonce_queue.errors import (
    ClientNameInUse,
    IdConflict,
    QueueFull,
    ReplyTimeout,
    StoreUnavailable,
)
from askonce_queue.host import Host
from askonce_queue.inbox import Inbox
from askonce_queue.job import Job
from askonce_queue.ledger import (
    NAME_TTL_MS,
    Delivered,
    Enqueue,
    Ledger,
    Limits,
    nameless,
    read_results,
)
from askonce_queue.positions import Positions
from askonce_queue.reply import Reply
from askonce_queue.scripts import Call
from askonce_queue.store import Store
from askonce_queue.store_config import StoreConfig

BLOCK_S = 0.5
LEAVE_S = 2.0
"""How long a client that could not open may take to give its name back."""
HAND_OVER_EVERY_S = 0.05


class Client:
    """Enqueues jobs and hands each exactly one reply. Safe for many coroutines of one event loop.

    `name` makes it resumable: a new client of the same name gets the replies that the old one did
    not hand over. One live client holds a name. Without a name it gets a new one.

    Raises on entry: `StoreUnavailable`, `ClientNameInUse`, `ConfigError` (another shard count).
    """

    def __init__(
        self,
        store: str | StoreConfig,
        *,
        name: str | None = None,
        pool: str = "default",
        shards: int = 1,
        limits: Limits | None = None,
    ) -> None:
        self._commands = Store(store, shards=shards)
        self._blocking = Store(store, shards=shards, role="blocking", block_s=BLOCK_S)
        self._ledger = Ledger(
            name, pool=pool, shards=len(self._commands.tags), limits=limits or Limits()
        )
        self._positions = Positions(self._ledger)
        self._inbox = Inbox(self._ledger, self._ring)
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
            await check_shards(self._commands)
            await self._claim_name(self._ledger.tags)
            for tags in self._blocking.groups:
                while await self._read_once(tags, block_s=0.0):
                    pass
        except BaseException as error:
            # On some shards it may have the name: kept, it would keep the next client out as well.
            with anyio.move_on_after(LEAVE_S, shield=True):
                await self._give_name_back()
            with anyio.CancelScope(shield=True):
                await self._disconnect()
            if isinstance(error, RedisError | OSError):
                raise StoreUnavailable(f"the store cannot be reached: {error}") from error
            raise
        await self._host.open()
        return self

    @asynccontextmanager
    async def _loops(self) -> AsyncGenerator[None]:
        async with anyio.create_task_group() as tasks:
            for tags in self._blocking.groups:
                tasks.start_soon(self._read_forever, tags)
            tasks.start_soon(self._renew_forever)
            tasks.start_soon(self._hand_over_forever)
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
        unknown: enqueue the same ids again; until that succeeds, no reply to them is handed over).
        """
        ids = self._ledger.assign_ids(jobs, self._down())
        calls = self._ledger.prepare(ids, jobs, lane=lane, reply_to=reply_to)
        new = self._inbox.begin(ids) if reply_to is None else set[str]()
        failed: Collection[str] = ids
        try:
            error = await self._send(calls)
            failed = self._ledger.not_accepted(error, ids) if error is not None else ()
        finally:
            if reply_to is None:
                self._inbox.end(new, ids, failed)
        if error is not None:
            raise error
        return ids

    async def ask(
        self, job: Job, *, lane: str = "interactive", timeout_s: float | None = None
    ) -> Reply:
        """Enqueue one job and wait for its reply. Raises as `enqueue_many`, and `ReplyTimeout`."""
        ids = self._ledger.assign_ids([job], self._down())
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
        asking = AskMany(
            self._ledger,
            self._send,
            jobs,
            lane,
            window,
            ordered=ordered,
            avoid=self._down,
        )
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
        arrived = self._inbox.arrived
        while True:
            arrived.extend(self._ledger.take_early())
            while arrived:
                delivered = arrived.popleft()
                yield delivered.reply
                self._ledger.handed(delivered.source)
            if self._arrived.is_set():  # several readers share one event
                self._arrived = anyio.Event()
            await self._arrived.wait()

    def _down(self) -> set[str]:
        """The shards that cannot be reached just now: the readers are the first to notice."""
        return {*self._commands.down(), *self._blocking.down()}

    def _ring(self) -> None:
        self._arrived.set()

    async def _send(self, calls: Sequence[Enqueue]) -> QueueFull | IdConflict | None:
        if self._lost_name:
            raise ClientNameInUse(f"client name {self.name!r} was taken by another client")
        results = await self._enqueue(calls)
        if b"!" in results:
            # The name's lease was lost: by the store with its data, or by us with the time. Whoever
            # holds the name now is asked by the script.
            await self._claim_name(nameless(calls, results))
            results = await self._enqueue(calls)
        return self._ledger.read_verdicts(read_results(calls, results))

    async def _enqueue(self, calls: Sequence[Enqueue]) -> list[Any]:
        requests = [enqueue.call for enqueue in calls]
        if not self._commands.confirms:
            return await self._commands.run_many(requests)
        # A repeated enqueue may write nothing, and then there would be nothing to confirm.
        claims = self._claims(dict.fromkeys(enqueue.tag for enqueue in calls))
        results = await self._commands.run_confirmed([*requests, *claims])
        return results[: len(calls)]

    # Loops

    async def _read_forever(self, tags: Sequence[str]) -> None:
        delay_s = 0.02
        while True:
            try:
                await self._read_once(tags, block_s=BLOCK_S)
                delay_s = 0.02
            except (RedisError, OSError):
                # Nothing is lost: reading deletes nothing.
                self._positions.rewind(tags)
                await anyio.sleep(self._rng.uniform(0.5, 1.0) * delay_s)
                delay_s = min(2.0, 2 * delay_s)

    async def _read_once(self, tags: Sequence[str], *, block_s: float) -> int:
        key, words = self._positions.read(tags, block_s)
        entries = self._positions.take(await self._blocking.send(key, *words))
        self._positions.served_by(tags, self._blocking.server_of(key))
        return entries

    async def _renew_forever(self) -> None:
        while True:
            await anyio.sleep(NAME_TTL_MS / 3000)
            try:
                await self._claim_name(self._ledger.tags)
            except ClientNameInUse:
                self._lost_name = True
                return
            except (RedisError, OSError):
                continue  # the next enqueue tells its caller

    def _claims(self, tags: Iterable[str]) -> list[Call]:
        return [
            queue_scripts.claim_name(tag, self.name, self._ledger.token, NAME_TTL_MS)
            for tag in tags
        ]

    async def _claim_name(self, tags: Iterable[str]) -> None:
        """Take or renew the name on shards. Raises the first failure, after all were tried."""
        results = await self._commands.run_many(self._claims(tags))
        if any(result == 0 for result in results):
            raise ClientNameInUse(
                f"another live client is named {self.name!r}; choose another name, "
                "or wait until it has ended"
            )
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _hand_over_forever(self) -> None:
        while True:
            await anyio.sleep(HAND_OVER_EVERY_S)
            await self._hand_over()

    async def _hand_over(self) -> None:
        """Delete what was handed to callers; what fails goes with the next."""
        handed = self._ledger.take_handed()
        results = await self._commands.run_many([call for _, _, call in handed])
        for (entries, tag, _), result in zip(handed, results, strict=True):
            if isinstance(result, Exception):
                self._ledger.put_back_handed(tag, entries)
            else:
                self._ledger.deleted(tag, entries)

    async def _leave(self) -> None:
        await self._hand_over()
        await self._give_name_back()

    async def _give_name_back(self) -> None:
        """Give the name back where we have it; where that fails, it runs out by itself."""
        await self._commands.run_many(
            [
                queue_scripts.release_name(tag, self.name, self._ledger.token)
                for tag in self._ledger.tags
            ]
        )

    async def _disconnect(self) -> None:
        await self._commands.aclose()
        await self._blocking.aclose()
