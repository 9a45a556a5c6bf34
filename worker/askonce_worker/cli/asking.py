"""Asking the records of an input and writing their answers in its order, with bounded memory.

Batches are asked side by side, at most `window` records at once; the writer goes through them in
order and waits for each reply. Enqueueing a job again is harmless, so a store that is away for a
while delays a run and does not end it.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import anyio
from anyio.abc import TaskGroup
from redis.exceptions import RedisError

from askonce_queue.client import Client
from askonce_queue.errors import StoreUnavailable
from askonce_queue.reply import Reply
from askonce_queue.store import Store
from askonce_worker.cli.output import Output, encode_line
from askonce_worker.cli.source import Batch, Source
from askonce_worker.cli.summary import Tally

LANE = "bulk"
STORE_PATIENCE_S = 60.0
"""How long the store may be away before a run gives up."""
STORE_RETRY_S = 1.0
PULSE_S = 2.0
"""How often a run without any reply looks whether the store is there."""


class _Part:
    """One batch under way: the replies that are here and not yet written."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.replies: dict[str, Reply] = {}
        self._bell = anyio.Event()

    def put(self, reply: Reply) -> None:
        self.replies[reply.id] = reply
        self._bell.set()

    async def wait(self) -> None:
        """Wait for another reply."""
        self._bell = anyio.Event()
        await self._bell.wait()


class _Patience:
    """Bears with a store that fails, for a while."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._failing_since: float | None = None

    def worked(self) -> None:
        """Forget what was before."""
        self._failing_since = None

    def failed(self, error: StoreUnavailable) -> None:
        """Warn of the first failure in a row; raise the one that is too much."""
        now = anyio.current_time()
        if self._failing_since is None:
            self._failing_since = now
            self._warn(f"{error}; trying again for {STORE_PATIENCE_S:.0f} s")
        elif now - self._failing_since > STORE_PATIENCE_S:
            raise error


class Asking:
    """One run from its first record to its last."""

    def __init__(
        self,
        client: Client,
        store: Store,
        source: Source,
        output: Output,
        tally: Tally,
        *,
        window: int,
        warn: Callable[[str], None],
    ) -> None:
        self._client = client
        self._store = store
        self._source = source
        self._output = output
        self._tally = tally
        self._window = window
        self._patience = _Patience(warn)
        self._pulse = _Patience(warn)
        self._rng = random.Random()
        self._under_way = 0
        self._all_read = False
        self._parts: deque[_Part] = deque()
        self._changed = anyio.Event()

    async def run(self) -> None:
        """Ask and write everything. Raises `Failed`, and what the client raises, in groups."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._write_all, tasks)
            tasks.start_soon(self._feel_pulse)
            async for batch in self._source:
                while self._under_way and self._under_way + len(batch.records) > self._window:
                    await self._wait()
                self._begin(batch, tasks)
            self._all_read = True
            self._ring()

    def _begin(self, batch: Batch, tasks: TaskGroup) -> None:
        part = _Part(batch)
        self._under_way += len(batch.records)
        self._parts.append(part)
        self._ring()
        tasks.start_soon(self._ask, part)

    def _ring(self) -> None:
        """Wake all who `_wait` for something to change."""
        self._changed.set()
        self._changed = anyio.Event()

    async def _wait(self) -> None:
        await self._changed.wait()

    async def _ask(self, part: _Part) -> None:
        """Ask the jobs of a part until each has its reply."""
        left = {record.job.id: record.job for record in part.batch.records if record.job}
        while left:
            try:
                replies = self._client.ask_many(list(left.values()), lane=LANE, window=len(left))
                async for reply in replies:
                    del left[reply.id]
                    self._tally.reply(reply)
                    part.put(reply)
                    self._patience.worked()
            except StoreUnavailable as error:
                self._patience.failed(error)
                await anyio.sleep(STORE_RETRY_S * self._rng.uniform(0.5, 1.5))

    async def _feel_pulse(self) -> None:
        """Notice a store that is gone while everything waits for replies: a client reads on."""
        while True:
            before = self._tally.jobs
            await anyio.sleep(PULSE_S)
            if self._tally.jobs > before:
                continue
            try:
                replies = (await self._store.ask_servers("PING")).values()
                failures = [reply for reply in replies if isinstance(reply, Exception)]
            except (RedisError, OSError) as error:
                failures = [error]
            if failures:
                self._pulse.failed(StoreUnavailable(f"the store cannot be reached: {failures[0]}"))
            else:
                self._pulse.worked()

    async def _write_all(self, tasks: TaskGroup) -> None:
        while True:
            while self._parts:
                part = self._parts.popleft()
                await self._write(part)
                self._under_way -= len(part.batch.records)
                self._ring()
            if self._all_read:
                tasks.cancel_scope.cancel()  # only the pulse is left
                return
            self._output.flush()
            await self._wait()

    async def _write(self, part: _Part) -> None:
        for record in part.batch.records:
            reply = None
            if record.error is not None:
                self._tally.bad_line(record.error)
            elif record.job is not None and record.job.id is not None:
                while (reply := part.replies.pop(record.job.id, None)) is None:
                    self._output.flush()
                    await part.wait()
            self._output.write(encode_line(record, reply))
        self._tally.offset = part.batch.offset
