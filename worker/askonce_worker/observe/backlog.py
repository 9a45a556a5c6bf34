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
from askonce_queue.queue_scripts import LANES, Lane
from askonce_queue.store import Store

READ_EVERY_S = 5.0
COMMANDS_PER_LANE = 3


class LaneState(msgspec.Struct):
    """The jobs of one lane that are not settled. `pending` are in the hands of workers.

    `oldest_s` is the age of the first of them, by the store's clock.
    """

    backlog: int = 0
    pending: int = 0
    oldest_s: float = 0.0


class ShardState(NamedTuple):
    """What waits on one shard."""

    lanes: dict[str, LaneState]
    dead_letters: int


async def read_shard(store: Store, tag: str, pool: str) -> ShardState:
    """Read what waits on a shard, in one round trip. Raises redis-py's errors."""
    dead = names.dead(tag, pool)
    # Jobs that are put off until later will wait in a stream of their own: one more to read here.
    streams = [Lane(tag, pool, lane).stream for lane in LANES]
    commands: list[tuple[bytes, tuple[Any, ...]]] = [(dead, ("TIME",)), (dead, ("XLEN", dead))]
    for stream in streams:
        commands += [
            (stream, ("XLEN", stream)),
            (stream, ("XRANGE", stream, "-", "+", "COUNT", 1)),
            (stream, ("XPENDING", stream, names.GROUP)),
        ]
    time, dead_letters, *replies = await store.send_many(commands)
    seconds, micros = _unless_error(time)
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    states = [
        _lane_state(replies[start : start + COMMANDS_PER_LANE], now_ms)
        for start in range(0, len(replies), COMMANDS_PER_LANE)
    ]
    return ShardState(dict(zip(LANES, states, strict=True)), int(_unless_error(dead_letters)))


def _lane_state(replies: Sequence[Any], now_ms: int) -> LaneState:
    backlog, first, pending = replies
    state = LaneState(int(_unless_error(backlog)))
    # Without a group, no worker has ever served this lane.
    if not (isinstance(pending, ResponseError) and str(pending).startswith("NOGROUP")):
        state.pending = int(_unless_error(pending)[0])
    if _unless_error(first):
        enqueued_ms = int(bytes(first[0][0]).partition(b"-")[0])
        state.oldest_s = max(0.0, (now_ms - enqueued_ms) / 1000)
    return state


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
