"""A thin synchronous twin of `Client`, for scripts and for locust, whose gevent runs no asyncio.

No thread and no loop of its own: replies are read, and its name is renewed, while it is called.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from types import TracebackType
from typing import Any, Self

from redis.exceptions import OutOfMemoryError, RedisError

from askonce_queue import names, queue_scripts
from askonce_queue.errors import (
    ClientNameInUse,
    IdConflict,
    QueueFull,
    ReplyTimeout,
    StoreUnavailable,
)
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
from askonce_queue.scripts import CHUNK, Arg, run_sync, send_sync
from askonce_queue.store import check_shards_sync, connect_sync

BLOCK_S = 0.5
READ_COUNT = 200
"""Reply entries a read; each may hold some hundred replies."""


class Client:
    """`askonce_queue.Client` without asyncio. One thread (or greenlet) at a time uses it.

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
        self._commands = connect_sync(url, role="commands", max_connections=2)
        self._blocking = connect_sync(url, role="blocking", block_s=BLOCK_S, max_connections=2)
        self._last_ids = dict.fromkeys(self._ledger.tags, b"0")
        self._renew_at = 0.0
        self._inbox: deque[Delivered] = deque()

    @property
    def name(self) -> str:
        """The client's name: the scope of its job ids."""
        return self._ledger.name

    def __enter__(self) -> Self:
        try:
            check_shards_sync(self._commands, len(self._ledger.tags))
            self._renew_name()
            while self._read_once(0.0):
                pass
        except (RedisError, OSError) as error:
            self._disconnect()
            raise StoreUnavailable(f"the store cannot be reached: {error}") from error
        except BaseException:
            self._disconnect()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._hand_over()
            for tag in self._ledger.tags:
                call = queue_scripts.release_name(tag, self.name, self._ledger.token)
                run_sync(self._commands, call)
        except (RedisError, OSError):
            pass  # the name's lease runs out by itself
        finally:
            self._disconnect()

    def enqueue(self, job: Job, *, lane: str = "interactive", reply_to: str | None = None) -> str:
        """Enqueue one job; return its id. Raises as `enqueue_many`."""
        return self.enqueue_many([job], lane=lane, reply_to=reply_to)[0]

    def enqueue_many(
        self, jobs: Sequence[Job], *, lane: str = "interactive", reply_to: str | None = None
    ) -> list[str]:
        """Enqueue jobs; return their ids, in order. Raises as `Client.enqueue_many`."""
        ids = self._ledger.assign_ids(jobs)
        calls = self._ledger.prepare(ids, jobs, lane=lane, reply_to=reply_to)
        new = self._ledger.expect(ids, self._inbox.append) if reply_to is None else set[str]()
        error = self._send(calls)
        if error is not None:
            for job_id in self._ledger.not_accepted(error, ids):
                if job_id in new:
                    self._ledger.forget(job_id)
            raise error
        return ids

    def ask(self, job: Job, *, lane: str = "interactive", timeout_s: float | None = None) -> Reply:
        """Enqueue one job and wait for its reply. Raises as `enqueue_many`, and `ReplyTimeout`."""
        for reply in self._asked([job], lane, timeout_s):
            return reply
        raise ReplyTimeout(f"no reply within {timeout_s} s; the job stays accepted")

    def ask_many(
        self, jobs: Iterable[Job], *, lane: str = "interactive", timeout_s: float | None = None
    ) -> Iterator[Reply]:
        """Enqueue jobs in parts of 500 and yield their replies as they arrive.

        Raises as `enqueue_many`, and `ReplyTimeout` when no reply arrives for `timeout_s`.
        """
        iterator = iter(jobs)
        while part := list(islice(iterator, CHUNK)):
            yielded = 0
            for reply in self._asked(part, lane, timeout_s):
                yielded += 1
                yield reply
            if yielded < len(part):
                raise ReplyTimeout(
                    f"no reply for {timeout_s} s; the jobs stay accepted. Are workers up?"
                )

    def replies(self, timeout_s: float | None = None) -> Iterator[Reply]:
        """Yield replies to enqueued jobs, and those an earlier client of this name left, until
        none comes for `timeout_s` (None: for ever).
        """
        deadline = _deadline(timeout_s)
        while True:
            self._inbox.extend(self._ledger.take_early())
            while self._inbox:
                delivered = self._inbox.popleft()
                yield delivered.reply
                self._ledger.handed(delivered.source)
                deadline = _deadline(timeout_s)
            if time.monotonic() >= deadline:
                return
            self._read(deadline)

    def _asked(self, jobs: Sequence[Job], lane: str, timeout_s: float | None) -> Iterator[Reply]:
        box: deque[Delivered] = deque()
        ids = self._ledger.assign_ids(jobs)
        calls = self._ledger.prepare(ids, jobs, lane=lane, reply_to=None)
        self._ledger.expect(ids, box.append)
        left = len(ids)
        try:
            if len(box) < left:
                error = self._send(calls)
                if error is not None:
                    raise error
            deadline = _deadline(timeout_s)
            while left:
                while box:
                    delivered = box.popleft()
                    self._ledger.handed(delivered.source)
                    left -= 1
                    yield delivered.reply
                    deadline = _deadline(timeout_s)
                if left:
                    if time.monotonic() >= deadline:
                        return
                    self._read(deadline)
        finally:
            for job_id in ids:
                self._ledger.forget(job_id)
            for delivered in box:
                self._ledger.handed(delivered.source)

    def _send(self, calls: Sequence[Enqueue]) -> QueueFull | IdConflict | None:
        self._renew_name()
        answered: list[tuple[Enqueue, bytes | None]] = []
        try:
            for enqueue in calls:
                try:
                    answered.append((enqueue, run_sync(self._commands, enqueue.call)))
                except OutOfMemoryError:
                    answered.append((enqueue, None))
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"the store cannot be reached: {error}") from error
        return self._ledger.read_verdicts(answered)

    def _read(self, deadline: float) -> None:
        try:
            self._renew_name()
            self._hand_over()
            self._read_once(min(BLOCK_S, deadline - time.monotonic()))
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"the store cannot be reached: {error}") from error

    def _read_once(self, block_s: float) -> int:
        streams = {names.replies(tag, self.name): tag for tag in self._ledger.tags}
        wait: tuple[Arg, ...] = ("BLOCK", max(1, int(block_s * 1000))) if block_s > 0 else ()
        rows: list[Any] | None = send_sync(
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

    def _renew_name(self) -> None:
        now = time.monotonic()
        if now < self._renew_at:
            return
        for tag in self._ledger.tags:
            call = queue_scripts.claim_name(tag, self.name, self._ledger.token, NAME_TTL_MS)
            if not run_sync(self._commands, call):
                raise ClientNameInUse(f"another live client is named {self.name!r}")
        self._renew_at = now + NAME_TTL_MS / 3000

    def _hand_over(self) -> None:
        for entries, tag, call in self._ledger.take_handed():
            try:
                run_sync(self._commands, call)
            except (RedisError, OSError):
                self._ledger.put_back_handed(tag, entries)
                raise

    def _disconnect(self) -> None:
        self._commands.close()
        self._blocking.close()


def _deadline(timeout_s: float | None) -> float:
    return float("inf") if timeout_s is None else time.monotonic() + timeout_s
