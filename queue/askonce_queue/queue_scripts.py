"""Typed stubs of the scripts that move jobs and replies. Each returns a `Call` for `scripts.run`.

Keys, arguments and results are described in the header of each Lua file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from askonce_queue import buckets, names, pressure
from askonce_queue.scripts import Arg, Call, Script

_ENQUEUE = Script("enqueue", allow_oom=True, prelude=pressure.PRELUDE)
_SETTLE = Script("settle", allow_oom=True)
_BURY = Script("bury", allow_oom=True)
_BEAT = Script("beat", allow_oom=True)
_CLAIM = Script("claim", allow_oom=True)
_DEFER = Script("defer", allow_oom=True)
_TAKE_OVERDUE = Script("take_overdue", allow_oom=True)
_GIVE_BACK = Script("give_back", allow_oom=True)
_LEAVE = Script("leave", allow_oom=True)
_CLAIM_NAME = Script("claim_name", allow_oom=True)
_RELEASE_NAME = Script("release_name", allow_oom=True)
_HAND_OVER = Script("hand_over", allow_oom=True)
_COUNT_SOLO = Script("count_solo", allow_oom=True)
_RECORD_SHARDS = Script("record_shards", allow_oom=True)
_ENSURE_GROUP = Script("ensure_group", allow_oom=True)
_SWEEP_RECORDS = Script("sweep_records", allow_oom=True)
_SWEEP_CLIENTS = Script("sweep_clients", allow_oom=True)
_MEASURE = Script("measure", allow_oom=True, prelude=pressure.PRELUDE)
_COUNT = Script("count", allow_oom=True)
_SWEEP_OWED = Script("sweep_owed", allow_oom=True)
_SWEEP_STATS = Script("sweep_stats", allow_oom=True)
_SWEEP_WINDOWS = Script("sweep_windows", allow_oom=True)
_RETRY_DEAD = Script("retry_dead", allow_oom=False)
_LOG_HITS = Script("log_hits", allow_oom=False)
_SWEEP_HITS = Script("sweep_hits", allow_oom=True)
_SPEND = Script("spend", allow_oom=True)
_SWEEP_BUDGETS = Script("sweep_budgets", allow_oom=True)
_ADD_RULE = Script("add_rule", allow_oom=True)


LaneName = Literal["interactive", "bulk"]
LANES = ("interactive", "bulk")
"""The lanes of every pool; whose jobs are seen to first, first."""
DEFERRED = ".deferred"
"""What the name of a lane's stream of deferred jobs ends in."""


class Lane(NamedTuple):
    """One job stream: shard tag, pool and lane."""

    tag: str
    pool: str
    lane: str

    @property
    def stream(self) -> bytes:
        """The key of the stream."""
        return names.jobs(self.tag, self.pool, self.lane)

    @property
    def deferred(self) -> Lane:
        """The lane in which jobs of this one wait that cannot be asked now."""
        return self._replace(lane=self.home + DEFERRED)

    @property
    def home(self) -> str:
        """The name of the lane that its jobs were enqueued in."""
        return self.lane.removesuffix(DEFERRED)

    @property
    def is_deferred(self) -> bool:
        """Whether the jobs here have been deferred."""
        return self.lane.endswith(DEFERRED)

    @property
    def due(self) -> bytes:
        """The key with the deadlines of the jobs here, in a lane of deferred jobs."""
        return names.due(self.tag, self.pool, self.home)

    @property
    def ids(self) -> bytes:
        """The key of the pool's id records on this shard."""
        return names.ids(self.tag, self.pool)


class SettleGroup(NamedTuple):
    """Replies to one address: NDJSON lines in the order of `jobs` (entry id, id-record field)."""

    address: str
    replies: bytes
    jobs: Sequence[tuple[bytes, str]]


class LoggedHit(NamedTuple):
    """A hit as it is logged, redacted: `key` in hexadecimal, `answer` as JSON.

    `input` and `tenant` are "" where they are not kept.
    """

    key: str
    task: str
    source: str
    age_ms: int
    answer: bytes
    input: str
    tenant: str


def owner_of(address: str) -> str:
    """The client that must still exist for a reply to be kept: none for a named stream."""
    return "" if address.startswith("@") else address


def record_shards(shards: int) -> Call:
    return Call(_RECORD_SHARDS, [names.META], [shards])


def ensure_group(lane: Lane) -> Call:
    return Call(_ENSURE_GROUP, [lane.stream], [names.GROUP])


def enqueue(
    lane: Lane,
    *,
    client: str,
    token: str,
    reply_to: str,
    max_backlog: int,
    max_unread: int,
    max_memory_share: float,
    stride: Literal[2, 3, 5],
    jobs: Sequence[Arg],
) -> Call:
    """`jobs`: id, payload; stride 3: and deadline_ms; stride 5: and tenant, tags, deadline_ms.

    `deadline_ms` is relative to now, '' for none.
    """
    tag = lane.tag
    return Call(
        _ENQUEUE,
        [
            lane.stream,
            lane.ids,
            names.owed(tag),
            names.clients(tag),
            names.replies(tag, reply_to or client),
            names.memory(tag),
        ],
        [
            client,
            token,
            lane.lane,
            reply_to,
            max_backlog,
            max_unread,
            max_memory_share,
            stride,
            *jobs,
        ],
    )


def settle(lane: Lane, groups: Sequence[SettleGroup]) -> Call:
    keys = [lane.stream, lane.ids, names.clients(lane.tag)]
    args: list[Arg] = [names.GROUP]
    for group in groups:
        keys.append(names.replies(lane.tag, group.address))
        args += (owner_of(group.address), len(group.jobs), group.replies)
        for job in group.jobs:
            args += job
    return Call(_SETTLE, keys, args)


def bury(
    lane: Lane,
    *,
    address: str,
    entry_id: bytes,
    record: str,
    reply: bytes,
    max_dead: int,
    code: str,
    message: str,
    fields: Sequence[bytes],
) -> Call:
    return Call(
        _BURY,
        [
            lane.stream,
            lane.ids,
            names.clients(lane.tag),
            names.replies(lane.tag, address),
            names.dead(lane.tag, lane.pool),
        ],
        [
            names.GROUP,
            owner_of(address) if address else "-",
            entry_id,
            record,
            reply,
            max_dead,
            code,
            message,
            *fields,
        ],
    )


def beat(tag: str, pool: str, consumer: str, ttl_ms: int) -> Call:
    return Call(_BEAT, [names.beats(tag, pool)], [consumer, ttl_ms])


def claim(lane: Lane, consumer: str, most: int) -> Call:
    return Call(
        _CLAIM,
        [lane.stream, names.beats(lane.tag, lane.pool)],
        [names.GROUP, consumer, names.RETURNED, most],
    )


def defer(lane: Lane, max_deferred: int, jobs: Sequence[tuple[bytes, str]]) -> Call:
    """`jobs`: entry id, id-record field."""
    args: list[Arg] = [names.GROUP, lane.deferred.lane, max_deferred]
    for job in jobs:
        args += job
    return Call(_DEFER, [lane.stream, lane.deferred.stream, lane.ids, lane.due], args)


def take_overdue(lane: Lane, consumer: str, most: int) -> Call:
    """`lane` is one of deferred jobs."""
    return Call(_TAKE_OVERDUE, [lane.stream, lane.due], [names.GROUP, consumer, most])


def give_back(lane: Lane, consumer: str, entries: Sequence[bytes]) -> Call:
    return Call(_GIVE_BACK, [lane.stream], [names.GROUP, consumer, names.RETURNED, *entries])


def leave(lanes: Sequence[Lane], *consumers: str | bytes, only_if_dead: bool) -> Call:
    """`lanes` are those of one shard and pool."""
    beats = names.beats(lanes[0].tag, lanes[0].pool)
    return Call(
        _LEAVE,
        [beats, *(lane.stream for lane in lanes)],
        [names.GROUP, "1" if only_if_dead else "0", *consumers],
    )


def claim_name(tag: str, client: str, token: str, ttl_ms: int) -> Call:
    return Call(_CLAIM_NAME, [names.clients(tag)], [client, token, ttl_ms])


def release_name(tag: str, client: str, token: str) -> Call:
    return Call(
        _RELEASE_NAME,
        [names.clients(tag), names.owed(tag), names.replies(tag, client)],
        [client, token],
    )


def hand_over(tag: str, client: str, entries: Sequence[tuple[bytes, int]]) -> Call:
    args: list[Arg] = [client]
    for entry in entries:
        args += entry
    return Call(_HAND_OVER, [names.replies(tag, client), names.owed(tag)], args)


def count_solo(lane: Lane, entry_id: bytes, token: str) -> Call:
    key = names.solo(lane.tag, lane.pool)
    return Call(_COUNT_SOLO, [key], [solo_field(lane, entry_id), token])


def count(
    tag: str, counts: Mapping[str, int], *, at_ms: int = 0, most_fields: int = buckets.MOST_FIELDS
) -> Call:
    """`at_ms`: when it happened, server Unix ms; 0: now. `most_fields`: of a bucket."""
    where: list[Arg] = [names.windows(tag), names.window_prefix(tag)]
    bounds: list[Arg] = [most_fields, buckets.OTHERS, buckets.SIZES_TEXT]
    pairs = [word for pair in counts.items() for word in pair]
    return Call(_COUNT, [names.stats(tag)], [at_ms, *where, *bounds, *pairs])


def solo_field(lane: Lane, entry_id: bytes) -> str:
    """The field of an entry in the hash of solo tries."""
    return f"{lane.lane}/{entry_id.decode()}"


def sweep_records(
    key: bytes,
    lanes: Sequence[Lane],
    *,
    cursor: int,
    count: int,
    where: Literal["field", "value"],
    grace_ms: int,
) -> Call:
    return Call(
        _SWEEP_RECORDS,
        [key, *(lane.stream for lane in lanes)],
        [cursor, count, where, grace_ms, *(lane.lane for lane in lanes)],
    )


def sweep_clients(tag: str, *, cursor: int, count: int, retain_ms: int) -> Call:
    return Call(
        _SWEEP_CLIENTS,
        [names.clients(tag), names.owed(tag)],
        [cursor, count, retain_ms, names.replies(tag, "")],
    )


def measure(tag: str) -> Call:
    """Its result is for `pressure.read_memory`."""
    return Call(_MEASURE, [names.memory(tag)], [])


def sweep_owed(tag: str, *, cursor: int, count: int) -> Call:
    keys = [names.owed(tag), names.clients(tag)]
    return Call(_SWEEP_OWED, keys, [cursor, count, names.replies(tag, "")])


def sweep_stats(tag: str, *, cursor: int, count: int, most: int, others: str) -> Call:
    return Call(_SWEEP_STATS, [names.stats(tag)], [cursor, count, most, others])


def sweep_windows(tag: str, *, count: int) -> Call:
    return _sweep_named(names.windows(tag), names.window_prefix(tag), count)


def sweep_quotas(tag: str, *, count: int) -> Call:
    return _sweep_named(names.quotas(tag), names.quota_prefix(tag), count)


def _sweep_named(index: bytes, prefix: bytes, count: int) -> Call:
    return Call(_SWEEP_WINDOWS, [index], [count, prefix])


def retry_dead(
    lane: Lane, letter: bytes, *, record: str, address: str, max_backlog: int, max_unread: int
) -> Call:
    """`record` is the field of the job's id record, `address` that of a named stream (`@…`)."""
    return Call(
        _RETRY_DEAD,
        [
            names.dead(lane.tag, lane.pool),
            lane.stream,
            lane.ids,
            names.replies(lane.tag, address),
        ],
        [letter, lane.lane, record, address, max_backlog, max_unread],
    )


def log_hits(tag: str, max_hits: int, hits: Sequence[LoggedHit]) -> Call:
    args: list[Arg] = [max_hits]
    for hit in hits:
        args += hit
    return Call(_LOG_HITS, [names.hits(tag)], args)


def sweep_hits(tag: str, retain_ms: int) -> Call:
    return Call(_SWEEP_HITS, [names.hits(tag)], [retain_ms])


def spend(tag: str, tasks: Sequence[str], spent: Sequence[tuple[int, str, int]]) -> Call:
    """`tasks`: whose totals of today are told; `spent`: day (0: today), task, billionths."""
    args: list[Arg] = [len(tasks), *tasks]
    for one in spent:
        args += one
    return Call(_SPEND, [names.budgets(tag)], args)


def sweep_budgets(tag: str, *, cursor: int, count: int) -> Call:
    return Call(_SWEEP_BUDGETS, [names.budgets(tag)], [cursor, count])


def add_rule(tag: str, rule_id: str, rule: bytes, most: int) -> Call:
    return Call(_ADD_RULE, [names.rules(tag)], [most, rule_id, rule])
