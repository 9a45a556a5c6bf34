"""What a worker counts and times, and the loop that adds the counts to the fleet's totals.

Totals are kept per task in one hash of the store (`stats:{tag}`, field `task|name`), and in buckets
of time beside it, from which rolling windows are read (`lua/count.lua`). A flush that fails is
repeated with the next; counts that were flushed twice because a reply was lost are possible and
tolerable (they are numbers to steer by, not the ledger).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress

import anyio
from redis.exceptions import RedisError

from askonce_queue import buckets, queue_scripts
from askonce_queue.scripts import CHUNK
from askonce_queue.store import Store
from askonce_worker.clock import Clock, SystemClock
from askonce_worker.observe.fields import field_of, of_lane, of_tenant, tenant_in
from askonce_worker.observe.first_reads import FirstRead, FirstReads
from askonce_worker.observe.histogram import CALL_BOUNDS_S, Histogram
from askonce_worker.observe.money import Price
from askonce_worker.observe.tally import MOST_TENANTS, KnownTenants, Tally, unpacked

FLUSH_EVERY_S = 1.0
UNCANCELLED_S = 3.0
"""How long a flush under way may outlive the end of its process."""
LAST_S = 1.0
"""How long the end of a process waits for its last counts to be written, and for its last first
reads to be told."""

Counts = Counter[tuple[str, str]]
"""Amounts by task and name."""


class Counters:
    """Counts since the start of this process, and what is not flushed yet."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.totals: Counts = Counter()
        """What was flushed, of tasks."""
        self.call_durations: dict[str, Histogram] = {}
        """How long model calls took, by model."""
        self.first_reads = FirstReads(self._first_of_all)
        self._clock = clock or SystemClock()
        self._unflushed: Counts = Counter()
        self._dated: defaultdict[int, Counts] = defaultdict(Counter)
        """What belongs to another time than that of its flush: server ms → counts."""
        self._tallies: dict[str, Tally] = {}
        self._other_tallies: dict[tuple[str, Price], Tally] = {}
        """Of tasks whose answers come from models with different prices."""
        self._tenants = KnownTenants(MOST_TENANTS, buckets.OTHERS)

    def count(self, task: str, name: str, amount: int = 1) -> None:
        """Add `amount` to counter `name` of `task`."""
        self._unflushed[task, name] += amount

    def count_at(self, task: str, name: str, created_ms: float, age_s: float = 0.0) -> None:
        """Count something about an answer where it belongs: at the time when it was filled.

        `created_ms` is the server's time of that, `age_s` how long it is ago.
        """
        self._dated[buckets.rounded_ms(created_ms, age_s)][task, name] += 1

    def count_tenant(self, tenant: str, name: str, amount: int = 1) -> None:
        """Add to a counter of a tenant; nobody in particular has none."""
        if tenant:
            known = self._tenants.name(tenant, self._clock.monotonic())
            self._unflushed[of_tenant(known), name] += amount

    def tally(self, task: str, price: Price) -> Tally:
        """Where hits of a task are noted. It is emptied, never replaced."""
        tally = self._tallies.get(task)
        if tally is None:
            tally = self._tallies[task] = Tally(price)
        if tally.price is price or tally.price == price:
            return tally
        return self._other_tallies.setdefault((task, price), Tally(price))

    def hit(self, task: str, price: Price, source: str, tenant: str, worth: int) -> None:
        """Count one hit that did not come from memory; `worth`: see `tally.py`."""
        self.count(task, source)
        others = self.tally(task, price).others
        others[tenant] = others.get(tenant, 0) + worth

    def paid(
        self,
        task: str,
        price: Price,
        tenant: str,
        *,
        calls: float,
        tokens: tuple[int, int] = (0, 0),
        lane: str = "",
    ) -> None:
        """Count what calls for a tenant's ask cost, and their tokens of input and output.

        A part of a call, where several questions were asked in one.
        """
        amounts = {
            "input_tokens": tokens[0],
            "output_tokens": tokens[1],
            "spent_nano": price.nano(calls, *tokens),
        }
        self._count_all(task, tenant, amounts)
        if lane:
            for name, amount in amounts.items():
                if amount:
                    self.count(task, of_lane(lane, name), amount)

    def total(self, name: str) -> int:
        """The sum of a counter over all tasks, in this process."""
        return sum(amount for (_, counted), amount in self.since_start().items() if counted == name)

    def since_start(self) -> Counts:
        """All counts of this process, by task and name."""
        self._gather()
        return sum(self._dated.values(), self.totals + _of_tasks(self._unflushed))

    @contextmanager
    def model_call(self, model: str) -> Generator[Callable[[], None]]:
        """Time a call of `model`, whether it succeeds or fails; not one that is cancelled.

        What is yielded is to be called when it begins: until then there is nothing to time.
        """
        began: float | None = None

        def begins() -> None:
            nonlocal began
            began = self._clock.monotonic()

        try:
            yield begins
        except Exception:
            self._time_call(model, began)
            raise
        self._time_call(model, began)

    def _time_call(self, model: str, began: float | None) -> None:
        if began is None:
            return
        durations = self.call_durations.get(model)
        if durations is None:
            durations = self.call_durations[model] = Histogram(CALL_BOUNDS_S)
        durations.observe(self._clock.monotonic() - began)

    async def flush_forever(self, store: Store, shard_tag: str) -> None:
        """Flush every second."""
        while True:
            await anyio.sleep(FLUSH_EVERY_S)
            # Not cut off in the middle when the process ends: nobody would know what was counted.
            with suppress(RedisError, OSError), anyio.move_on_after(UNCANCELLED_S, shield=True):
                await self.flush(store, shard_tag)  # what fails is counted with the next

    async def flush(self, store: Store, shard_tag: str) -> None:
        """Add the unflushed counts to the fleet's totals. Raises redis-py's errors."""
        self._gather()
        parts = list(self._take())
        for _, part in parts:  # at once: what is on its way stays counted here
            self.totals.update(_of_tasks(part))
        calls = [
            queue_scripts.count(
                shard_tag, {field_of(*key): n for key, n in part.items()}, at_ms=at_ms
            )
            for at_ms, part in parts
        ]
        try:
            results = await store.run_many(calls)
        except BaseException:
            for at_ms, part in parts:
                self._take_back(at_ms, part)
            raise
        for (at_ms, part), result in zip(parts, results, strict=True):
            if isinstance(result, Exception):
                self._take_back(at_ms, part)
        for result in results:
            if isinstance(result, Exception):
                raise result

    def _take_back(self, at_ms: int, part: Counts) -> None:
        """Count again, with the next flush, what could not be flushed."""
        self.totals.subtract(_of_tasks(part))
        (self._dated[at_ms] if at_ms else self._unflushed).update(part)

    async def finish(self, store: Store) -> None:
        """Tell and flush all that is left, within a bounded time. Raises redis-py's errors."""

        async def tell(shard: int) -> None:
            with suppress(RedisError, OSError):
                await self.first_reads.tell(store, shard)

        with anyio.move_on_after(LAST_S):
            async with anyio.create_task_group() as tasks:
                for shard in range(len(store.tags)):
                    tasks.start_soon(tell, shard)
        with anyio.move_on_after(LAST_S):
            await self.flush(store, store.tags[0])

    def _take(self) -> Iterable[tuple[int, Counts]]:
        """Everything that is unflushed, in parts that a script may take: time (0: now), counts."""
        batches = [(0, self._unflushed), *self._dated.items()]
        self._unflushed = Counter()
        self._dated = defaultdict(Counter)
        for at_ms, batch in batches:
            items = list(batch.items())
            for start in range(0, len(items), CHUNK):
                yield at_ms, Counter(dict(items[start : start + CHUNK]))

    def _gather(self) -> None:
        """Empty the tallies: hits, what they were worth, and whose they were."""
        others = [(task, tally) for (task, _), tally in self._other_tallies.items()]
        for task, tally in [*self._tallies.items(), *others]:
            for tenant, worth in tally.memory.items():
                hits, *tokens = unpacked(worth)
                self.count(task, "memory", hits)
                self._saved(task, tally.price, tenant, hits, *tokens)
            for tenant, worth in tally.others.items():
                self._saved(task, tally.price, tenant, *unpacked(worth))
            tally.memory.clear()
            tally.others.clear()

    def _saved(
        self, task: str, price: Price, tenant: str, hits: int, input_tokens: int, output_tokens: int
    ) -> None:
        self.count_tenant(tenant, "hits", hits)
        self._count_all(
            task,
            tenant,
            {
                "saved_input_tokens": input_tokens,
                "saved_output_tokens": output_tokens,
                "avoided_nano": price.nano(hits, input_tokens, output_tokens),
            },
        )

    def _count_all(self, task: str, tenant: str, amounts: dict[str, int]) -> None:
        for name, amount in amounts.items():
            if amount:
                self.count(task, name, amount)
                self.count_tenant(tenant, name, amount)

    def _first_of_all(self, read: FirstRead) -> None:
        self.count_at(read.task, "first_reads", read.created_ms, read.age_s)


def _of_tasks(counts: Counts) -> Counts:
    """Those of tasks: tenants come and go, and nobody asks a process for theirs."""
    return Counter({key: n for key, n in counts.items() if tenant_in(key[0]) is None})
