"""The state of the fleet, read from the store and nothing else: totals, backlog, workers.

Reads only. Totals are the counters that workers flush (see `counters.py`).
"""

from __future__ import annotations

import re
from collections import Counter

import msgspec

from askonce_queue import names
from askonce_queue.checks import parse_info
from askonce_queue.queue_scripts import LANES
from askonce_queue.store import Store
from askonce_worker.observe.backlog import LaneState, read_shard

HIT_SOURCES = ("memory", "store", "semantic", "coalesced", "stale")
"""Where an answer can come from without a model call of its own."""
WORKER = "*"
"""The task under which workers count what belongs to no task."""


class TaskTotals(msgspec.Struct):
    """What became of the jobs of one task, or of all, since the store was set up.

    `hits` by source; `misses` were answered by a model call of their own; `errors` got no answer.
    `model_calls` by reason and `failures` by code count calls, retries included. `hit_rate` is the
    share of hits in all answers, None without any.
    """

    hits: dict[str, int]
    misses: int
    errors: int
    model_calls: dict[str, int]
    failures: dict[str, int]
    hit_rate: float | None

    @property
    def answered(self) -> int:
        """Jobs that got an answer."""
        return sum(self.hits.values()) + self.misses


class FleetState(msgspec.Struct, kw_only=True):
    """Everything `askonce stats` shows.

    `jobs` counts how deliveries ended. `dead_letters_dropped` made room for newer ones, as
    `max_dead` wants it. `answers` are those the store keeps, expired ones included until the server
    notices.
    """

    pool: str
    workers: list[str]
    total: TaskTotals
    tasks: dict[str, TaskTotals]
    jobs: dict[str, int]
    lanes: dict[str, LaneState]
    dead_letters: int
    dead_letters_dropped: int
    answers: int
    store_bytes: int
    store_max_bytes: int


Counts = Counter[tuple[str, str]]


async def read_fleet(store: Store, pool: str) -> FleetState:
    """Read the state of one pool. Raises redis-py's errors."""
    now_s, micros = await store.send(names.META, "TIME")
    now_ms = int(now_s) * 1000 + int(micros) // 1000
    counts: Counts = Counter()
    lanes = {lane: LaneState() for lane in LANES}
    workers: set[str] = set()
    dead_letters = 0
    for tag in store.tags:
        counts += await _counts(store, tag)
        workers |= await _alive(store, tag, pool, now_ms)
        shard = await read_shard(store, tag, pool)
        dead_letters += shard.dead_letters
        for lane, state in shard.lanes.items():
            lanes[lane].backlog += state.backlog
            lanes[lane].deferred += state.deferred
            lanes[lane].pending += state.pending
            lanes[lane].oldest_s = max(lanes[lane].oldest_s, round(state.oldest_s, 1))
    servers = await _servers(store)
    return FleetState(
        pool=pool,
        workers=sorted(workers),
        total=_totals(counts),
        tasks={
            task: _totals(Counter({key: n for key, n in counts.items() if key[0] == task}))
            for task in sorted({task for task, _ in counts} - {WORKER})
        },
        jobs=_by_prefix(Counter({k: n for k, n in counts.items() if k[0] == WORKER}), "jobs_"),
        lanes=lanes,
        dead_letters=dead_letters,
        dead_letters_dropped=counts[WORKER, "dead_letters_dropped"],
        answers=sum(map(_answers, servers)),
        store_bytes=sum(int(server["used_memory"]) for server in servers),
        store_max_bytes=sum(int(server["maxmemory"]) for server in servers),
    )


async def _counts(store: Store, tag: str) -> Counts:
    key = names.stats(tag)
    flat: list[bytes] = await store.send(key, "HGETALL", key)
    counts: Counts = Counter()
    for field, amount in zip(flat[::2], flat[1::2], strict=True):
        task, _, name = field.decode(errors="replace").rpartition("|")
        counts[task, name] += int(amount)
    return counts


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


def _answers(info: dict[str, str]) -> int:
    """How many keys have a TTL in the databases of a server: only answers do."""
    keyspaces = [value for name, value in info.items() if re.fullmatch(r"db\d+", name)]
    found = [re.search(r"expires=(\d+)", keyspace) for keyspace in keyspaces]
    return sum(int(match[1]) for match in found if match)


def _totals(counts: Counts) -> TaskTotals:
    sums: Counter[str] = Counter()
    for (task, name), amount in counts.items():
        if task != WORKER:
            sums[name] += amount
    hits = {source: sums[source] for source in HIT_SOURCES}
    answered = sum(hits.values()) + sums["model"]
    return TaskTotals(
        hits=hits,
        misses=sums["model"],
        errors=sums["errors"],
        model_calls=_by_prefix(counts, "calls_"),
        failures=_by_prefix(counts, "failures_"),
        hit_rate=round(sum(hits.values()) / answered, 4) if answered else None,
    )


def _by_prefix(counts: Counts, prefix: str) -> dict[str, int]:
    found: Counter[str] = Counter()
    for (_, name), amount in counts.items():
        if name.startswith(prefix):
            found[name.removeprefix(prefix)] += amount
    return dict(found)
