"""A thin synchronous twin of `Client`, for scripts and for locust, whose gevent runs no asyncio.

No thread and no loop of its own: replies are read, and its name is renewed, while it is called.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from types import TracebackType
from typing import Any, Self

from redis.exceptions import RedisError

from askonce_queue import queue_scripts
from askonce_queue.checks import check_shards_sync
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
    nameless,
    read_results,
)
from askonce_queue.positions import Positions
from askonce_queue.reply import Reply
from askonce_queue.scripts import CHUNK, Call
from askonce_queue.store_config import StoreConfig
from askonce_queue.sync_store import SyncStore

BLOCK_S = 0.5
TURN_S = 0.02
"""In a cluster, how long it waits at one shard before it looks at the next."""


class Client:
    """`askonce_queue.Client` without asyncio. One thread (or greenlet) at a time uses it.

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
        self._commands = SyncStore(store, shards=shards)
        self._blocking = SyncStore(store, shards=shards, role="blocking", block_s=BLOCK_S)
        self._ledger = Ledger(
            name, pool=pool, shards=len(self._commands.tags), limits=limits or Limits()
        )
        self._positions = Positions(self._ledger)
        self._turns = itertools.cycle(self._blocking.groups)
        self._renew_at = 0.0
        self._inbox: deque[Delivered] = deque()

    @property
    def name(self) -> str:
        """The client's name: the scope of its job ids."""
        return self._ledger.name

    def __enter__(self) -> Self:
        try:
            check_shards_sync(self._commands)
            self._claim_name(self._ledger.tags)
            for tags in self._blocking.groups:
                while self._read_once(tags, 0.0):
                    pass
        except BaseException as error:
            # On some shards it may have the name: kept, it would keep the next client out as well.
            self._give_name_back()
            self._disconnect()
            if isinstance(error, RedisError | OSError):
                raise StoreUnavailable(f"the store cannot be reached: {error}") from error
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
            self._give_name_back()
        finally:
            self._disconnect()

    def enqueue(self, job: Job, *, lane: str = "interactive", reply_to: str | None = None) -> str:
        """Enqueue one job; return its id. Raises as `enqueue_many`."""
        return self.enqueue_many([job], lane=lane, reply_to=reply_to)[0]

    def enqueue_many(
        self, jobs: Sequence[Job], *, lane: str = "interactive", reply_to: str | None = None
    ) -> list[str]:
        """Enqueue jobs; return their ids, in order. Raises as `Client.enqueue_many`."""
        ids = self._ledger.assign_ids(jobs, self._down())
        calls = self._ledger.prepare(ids, jobs, lane=lane, reply_to=reply_to)
        new = self._ledger.expect(ids, self._inbox.append) if reply_to is None else set[str]()
        failed: Collection[str] = new
        try:
            error = self._send(calls)
            failed = self._ledger.not_accepted(error, ids) if error is not None else ()
        finally:
            for job_id in new.intersection(failed):
                self._ledger.forget(job_id)
        if error is not None:
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
        ids = self._ledger.assign_ids(jobs, self._down())
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
        try:
            self._renew_name()
            results = self._enqueue(calls)
            if b"!" in results:  # the name's lease was lost, by the store or by us
                self._claim_name(nameless(calls, results))
                results = self._enqueue(calls)
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"the store cannot be reached: {error}") from error
        return self._ledger.read_verdicts(read_results(calls, results))

    def _enqueue(self, calls: Sequence[Enqueue]) -> list[Any]:
        requests = [enqueue.call for enqueue in calls]
        if not self._commands.confirms:
            return self._commands.run_many(requests)
        # A repeated enqueue may write nothing, and then there would be nothing to confirm.
        claims = self._claims(dict.fromkeys(enqueue.tag for enqueue in calls))
        return self._commands.run_confirmed([*requests, *claims])[: len(calls)]

    def _read(self, deadline: float) -> None:
        """Read what has come, waiting a little if that is nothing."""
        wait_s = max(0.0, min(BLOCK_S, deadline - time.monotonic()))
        groups = self._blocking.groups
        self._renew_name()
        self._hand_over()
        if len(groups) == 1:
            self._read_any(groups, wait_s)
        elif not self._read_any(groups, 0.0):
            self._read_any([next(self._turns)], min(TURN_S, wait_s), patient=True)

    def _read_any(
        self, groups: Sequence[Sequence[str]], block_s: float, *, patient: bool = False
    ) -> int:
        """Read streams one after the other; return how many entries came.

        Raises `StoreUnavailable` when every one of them failed, unless `patient`.
        """
        entries = 0
        failures: list[Exception] = []
        for tags in groups:
            try:
                entries += self._read_once(tags, block_s)
            except (RedisError, OSError) as error:
                self._positions.rewind(tags)
                failures.append(error)
        if len(failures) == len(groups) and not patient:
            raise StoreUnavailable(f"the store cannot be reached: {failures[0]}") from failures[0]
        return entries

    def _read_once(self, tags: Sequence[str], block_s: float) -> int:
        key, words = self._positions.read(tags, block_s)
        entries = self._positions.take(self._blocking.send(key, *words))
        self._positions.served_by(tags, self._blocking.server_of(key))
        return entries

    def _down(self) -> set[str]:
        """The shards that cannot be reached just now."""
        return {*self._commands.down(), *self._blocking.down()}

    def _claims(self, tags: Iterable[str]) -> list[Call]:
        return [
            queue_scripts.claim_name(tag, self.name, self._ledger.token, NAME_TTL_MS)
            for tag in tags
        ]

    def _renew_name(self) -> None:
        """Renew the name when it is time to. Where that fails, the next enqueue is told."""
        if time.monotonic() >= self._renew_at:
            with suppress(RedisError, OSError):
                self._claim_name(self._ledger.tags)

    def _claim_name(self, tags: Iterable[str]) -> None:
        """Take or renew the name on shards. Raises the first failure, after all were tried."""
        self._renew_at = time.monotonic() + NAME_TTL_MS / 3000
        results = self._commands.run_many(self._claims(tags))
        if any(result == 0 for result in results):
            raise ClientNameInUse(f"another live client is named {self.name!r}")
        for result in results:
            if isinstance(result, Exception):
                raise result

    def _give_name_back(self) -> None:
        """Give the name back where we have it; where that fails, it runs out by itself."""
        self._commands.run_many(
            [
                queue_scripts.release_name(tag, self.name, self._ledger.token)
                for tag in self._ledger.tags
            ]
        )

    def _hand_over(self) -> None:
        """Delete what was handed to callers; what fails goes with the next."""
        handed = self._ledger.take_handed()
        results = self._commands.run_many([call for _, _, call in handed])
        for (entries, tag, _), result in zip(handed, results, strict=True):
            if isinstance(result, Exception):
                self._ledger.put_back_handed(tag, entries)
            else:
                self._ledger.deleted(tag, entries)

    def _disconnect(self) -> None:
        self._commands.close()
        self._blocking.close()


def _deadline(timeout_s: float | None) -> float:
    return float("inf") if timeout_s is None else time.monotonic() + timeout_s
