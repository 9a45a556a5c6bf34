"""What waits in the store: the jobs and dead letters of one pool, read shard by shard.

The figures are of the whole fleet, so every worker finds the same. A loop reads them, a shard each,
so that no scrape asks the store and a dead shard holds up no other.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import anyio
import msgspec
from redis.exceptions import RedisError, ResponseError

from askonce_queue import names
from askonce_queue.envelope import read_envelope
from askonce_queue.queue_scripts import LANES, Lane
from askonce_queue.store import Store

READ_EVERY_S = 5.0


class LaneState(msgspec.Struct):
    """The jobs of one lane that are not settled.

    `backlog` has those that were not deferred, `deferred` the others; `pending` are those of both
    that are in the hands of workers. `oldest_s` is the age of the oldest of all, by the store's
    clock, since it was enqueued.
    """

    backlog: int = 0
    deferred: int = 0
    pending: int = 0
    oldest_s: float = 0.0


class ShardState(NamedTuple):
    """What waits on one shard."""

    lanes: dict[str, LaneState]
    dead_letters: int


async def read_shard(store: Store, tag: str, pool: str) -> ShardState:
    """Read what waits on a shard, in one round trip. Raises redis-py's errors."""
    dead = names.dead(tag, pool)
    commands: list[tuple[bytes, tuple[Any, ...]]] = [(dead, ("TIME",)), (dead, ("XLEN", dead))]
    for name in LANES:
        lane = Lane(tag, pool, name)
        for stream in (lane.stream, lane.deferred.stream):
            commands += [
                (stream, ("XLEN", stream)),
                (stream, ("XRANGE", stream, "-", "+", "COUNT", 1)),
                (stream, ("XPENDING", stream, names.GROUP)),
            ]
    time, dead_letters, *replies = await store.send_many(commands)
    seconds, micros = _unless_error(time)
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    streams = [_read_stream(replies[i : i + 3], now_ms) for i in range(0, len(replies), 3)]
    lanes = {
        name: LaneState(
            backlog=own.jobs,
            deferred=deferred.jobs,
            pending=own.pending + deferred.pending,
            oldest_s=max(own.oldest_s, deferred.oldest_s),
        )
        for name, own, deferred in zip(LANES, streams[::2], streams[1::2], strict=True)
    }
    return ShardState(lanes, int(_unless_error(dead_letters)))


class _Stream(NamedTuple):
    jobs: int
    pending: int
    oldest_s: float


def _read_stream(replies: Sequence[Any], now_ms: int) -> _Stream:
    """What the three replies say of one stream. Raises the error among them."""
    jobs, first, pending = replies
    in_hand = 0
    # Without a group, no worker has ever served it.
    if not (isinstance(pending, ResponseError) and str(pending).startswith("NOGROUP")):
        in_hand = int(_unless_error(pending)[0])
    oldest_s = 0.0
    for entry in _unless_error(first):
        envelope = read_envelope(bytes(entry[0]), entry[1])
        enqueued_ms = envelope.origin_ms or int(envelope.entry_id.partition(b"-")[0])
        oldest_s = max(0.0, (now_ms - enqueued_ms) / 1000)
    return _Stream(int(_unless_error(jobs)), in_hand, oldest_s)


def _unless_error(reply: Any) -> Any:
    """`reply`, or the exception in its place raised."""
    if isinstance(reply, Exception):
        raise reply
    return reply


class Backlog:
    """What waits, as it was a few seconds ago. `states` has no shard that could not be read."""

    def __init__(self, store: Store, pool: str) -> None:
        self.states: dict[str, ShardState] = {}
        self.pool = pool
        self._store = store
        self._rng = random.Random()

    async def run(self, tag: str) -> None:
        """Read a shard every few seconds, at times that differ between workers."""
        while True:
            try:
                self.states[tag] = await read_shard(self._store, tag, self.pool)
            except (RedisError, OSError):
                # An old figure would look like a new one. The other loops report the outage.
                self.states.pop(tag, None)
            await anyio.sleep(READ_EVERY_S * self._rng.uniform(0.75, 1.25))
