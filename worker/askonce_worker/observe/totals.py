"""The state of the fleet, read from the store and nothing else: totals, windows, backlog, workers.

Reads only. Totals and windows are the counters that workers flush (see `counters.py`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from askonce_queue import names
from askonce_queue.checks import parse_info
from askonce_queue.queue_scripts import LANES
from askonce_queue.store import Store
from askonce_worker.observe.backlog import LaneState, read_shard
from askonce_worker.observe.budget import read_spent
from askonce_worker.observe.counters import Counts
from askonce_worker.observe.fields import WORKER
from askonce_worker.observe.figures import (
    NeverRead,
    TaskTotals,
    TenantTotals,
    by_prefix,
    by_task,
    by_tenant,
    never_read_of,
    tenant_totals_of,
    totals_of,
)
from askonce_worker.observe.money import store_share
from askonce_worker.observe.windows import (
    WINDOWS,
    Cohort,
    Timeline,
    Window,
    WindowReader,
    read_counts,
)


class WindowState(msgspec.Struct, kw_only=True):
    """The figures of a rolling window; `span_s` is how much time it covers, in whole buckets."""

    span_s: float
    total: TaskTotals
    tasks: dict[str, TaskTotals]
    tenants: dict[str, TenantTotals]


class BudgetState(msgspec.Struct, frozen=True, kw_only=True):
    """What a task may spend a day, and has spent today (UTC); `share` is their ratio."""

    per_day: float
    warn_at: float
    spent: float
    share: float


class FleetState(msgspec.Struct, kw_only=True):
    """Everything `askonce stats` shows.

    `jobs` counts how deliveries ended. `dead_letters_dropped` made room for newer ones, as
    `max_dead` wants it. `answers` are those the store keeps, expired ones included until the server
    notices; `answers_evicted` and `answers_expired` are what its servers dropped since their start.
    """

    pool: str
    workers: list[str]
    currency: str
    windows: dict[str, WindowState]
    total: TaskTotals
    tasks: dict[str, TaskTotals]
    tenants: dict[str, TenantTotals]
    budgets: dict[str, BudgetState]
    jobs: dict[str, int]
    lanes: dict[str, LaneState]
    dead_letters: int
    dead_letters_dropped: int
    answers: int
    answers_evicted: int
    answers_expired: int
    store_bytes: int
    store_max_bytes: int


class Terms(NamedTuple):
    """What the configuration knows and the store does not.

    `lives_s`: task → how long its answers are kept at most; of others, the longest that any is.
    `store_per_hour`: what the store costs, if that is known. `budgets`: task → what may be spent a
    day, and the share of it from which on that is said.
    """

    lives_s: Mapping[str, float] = {}
    store_per_hour: float | None = None
    currency: str = "USD"
    budgets: Mapping[str, tuple[float, float]] = {}


NO_TERMS = Terms()


class FleetReader:
    """Reads the state of one pool, again and again."""

    def __init__(self, store: Store, pool: str, terms: Terms = NO_TERMS) -> None:
        self._store = store
        self._pool = pool
        self._terms = terms
        self._windows = WindowReader(store)

    async def read(self) -> FleetState:
        """Read it now. Raises redis-py's errors."""
        store, pool = self._store, self._pool
        now_s, micros = await store.send(names.META, "TIME")
        now_ms = int(now_s) * 1000 + int(micros) // 1000
        counts: Counts = Counter()
        lanes = {lane: LaneState() for lane in LANES}
        workers: set[str] = set()
        dead_letters = 0
        for tag in store.tags:
            key = names.stats(tag)
            counts.update(read_counts(await store.send(key, "HGETALL", key)))
            workers |= await _alive(store, tag, pool, now_ms)
            shard = await read_shard(store, tag, pool)
            dead_letters += shard.dead_letters
            for lane, state in shard.lanes.items():
                lanes[lane].backlog += state.backlog
                lanes[lane].deferred += state.deferred
                lanes[lane].pending += state.pending
                lanes[lane].oldest_s = max(lanes[lane].oldest_s, round(state.oldest_s, 1))
        servers = await _servers(store)
        worker = Counter({name: n for (task, name), n in counts.items() if task == WORKER})
        return FleetState(
            pool=pool,
            workers=sorted(workers),
            currency=self._terms.currency,
            windows=await self.windows(now_ms),
            total=totals_of(counts),
            tasks={task: totals_of(own) for task, own in by_task(counts).items()},
            tenants={name: tenant_totals_of(own) for name, own in by_tenant(counts).items()},
            budgets=await self.budgets(now_ms),
            jobs=by_prefix(worker, "jobs_"),
            lanes=lanes,
            dead_letters=dead_letters,
            dead_letters_dropped=worker["dead_letters_dropped"],
            answers=sum(map(_answers, servers)),
            answers_evicted=_sum(servers, "evicted_keys"),
            answers_expired=_sum(servers, "expired_keys"),
            store_bytes=_sum(servers, "used_memory"),
            store_max_bytes=_sum(servers, "maxmemory"),
        )

    async def budgets(self, now_ms: float) -> dict[str, BudgetState]:
        """What was spent on the day of server time `now_ms`. Raises redis-py's errors."""
        spent = await read_spent(self._store, now_ms)
        return {
            task: BudgetState(
                per_day=per_day,
                warn_at=warn_at,
                spent=spent.get(task, 0.0),
                share=round(spent.get(task, 0.0) / per_day, 4),
            )
            for task, (per_day, warn_at) in self._terms.budgets.items()
        }

    async def windows(self, now_ms: float) -> dict[str, WindowState]:
        """The rolling windows that end at server time `now_ms`. Raises redis-py's errors."""
        timeline = await self._windows.timeline(now_ms)
        longest_s = await _longest_life_s(self._store)
        return {window.name: self._window(timeline, window, longest_s) for window in WINDOWS}

    def _window(self, timeline: Timeline, window: Window, longest_s: float) -> WindowState:
        counts, span_s = timeline.counts(window), timeline.span_s(window)
        per_hour = self._terms.store_per_hour
        share: float | None = None
        if per_hour is not None:
            share = store_share(per_hour, span_s, totals_of(counts).answered)
        own = by_task(counts)
        # What ended in this window may be of a task that nobody asks any more.
        filled = sorted({*timeline.tasks, *self._terms.lives_s})

        def never_read(of: Sequence[str]) -> NeverRead:
            lives = [(task, self._terms.lives_s.get(task, longest_s)) for task in of]
            return never_read_of(
                [timeline.over(task, window, life_s) for task, life_s in lives],
                [Cohort(counts[task, "fills"], counts[task, "first_reads"]) for task in of],
            )

        return WindowState(
            span_s=round(span_s, 1),
            total=totals_of(counts, never_read=never_read(filled), store_per_answer=share),
            tasks={
                task: totals_of(
                    own.get(task, Counter()), never_read=never_read([task]), store_per_answer=share
                )
                for task in sorted({*own, *timeline.tasks})
            },
            tenants={name: tenant_totals_of(own, share) for name, own in by_tenant(counts).items()},
        )


async def read_fleet(store: Store, pool: str, terms: Terms = NO_TERMS) -> FleetState:
    """Read the state of one pool, once. Raises redis-py's errors."""
    return await FleetReader(store, pool, terms).read()


async def _longest_life_s(store: Store) -> float:
    """The longest time for which any answer was ever kept; a day, if there was none."""
    keys = [names.stamps(tag) for tag in store.tags]
    longest_ms = 0.0
    for found in await store.send_many([(key, ("HGET", key, "max_ttl_ms")) for key in keys]):
        if isinstance(found, Exception):
            raise found
        longest_ms = max(longest_ms, float(found or 0))
    return longest_ms / 1000 or 86_400.0


async def _alive(store: Store, tag: str, pool: str, now_ms: int) -> set[str]:
    """The workers whose heartbeat on a shard is not over."""
    key = names.beats(tag, pool)
    beats: list[bytes] = await store.send(key, "HGETALL", key)
    return {
        consumer.decode(errors="replace")
        for consumer, deadline in zip(beats[::2], beats[1::2], strict=True)
        if int(deadline) >= now_ms
    }


async def _servers(store: Store) -> list[dict[str, str]]:
    """INFO of every primary. Raises redis-py's errors when one does not answer."""
    found: list[dict[str, str]] = []
    for reply in (await store.ask_servers("INFO")).values():
        if isinstance(reply, Exception):
            raise reply
        found.append(parse_info(reply))
    return found


def _sum(servers: Sequence[Mapping[str, str]], name: str) -> int:
    return sum(int(server[name]) for server in servers)


def _answers(info: dict[str, str]) -> int:
    """How many keys have a TTL in the databases of a server: only answers do."""
    keyspaces = [value for name, value in info.items() if re.fullmatch(r"db\d+", name)]
    found = [re.search(r"expires=(\d+)", keyspace) for keyspace in keyspaces]
    return sum(int(match[1]) for match in found if match)
