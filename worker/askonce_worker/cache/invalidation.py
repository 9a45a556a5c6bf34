"""Invalidation: answers built before now are never served again, by tag or altogether.

Runs on every answer shard and is confirmed by each, with its replicas where it has any: a failover
must not bring answers back. Until all have confirmed it is incomplete; repeating it is harmless.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple, cast

from redis.exceptions import RedisError

from askonce_queue import answer_scripts
from askonce_queue.scripts import CHUNK, AsyncStore

REPLICA_WAIT_MS = 2_000
"""How long replicas may take to confirm; below the time limit of a command."""


class Invalidation(NamedTuple):
    """What was done: shard tag → its new stamp, or why it has not confirmed."""

    stamps: dict[str, int]
    failures: dict[str, str]

    @property
    def complete(self) -> bool:
        """Whether every shard has confirmed."""
        return not self.failures


async def invalidate(
    store: AsyncStore,
    shard_tags: Sequence[str],
    tags: Sequence[str] = (),
    *,
    everything: bool = False,
) -> Invalidation:
    """Make all answers with one of `tags`, or `everything`, invalid on all shards.

    Never raises for a store that fails: what is not known to be done is in `failures`.
    """
    result = Invalidation({}, {})
    try:
        replicas = await _replicas(store)
        for shard in shard_tags:
            failure = ""
            for start in range(0, max(1, len(tags)), CHUNK):
                part = tags[start : start + CHUNK]
                call = answer_scripts.invalidate(shard, everything=everything, tags=part)
                stamp, failure = await _confirmed(store, call.command("EVAL"), replicas)
                if failure:
                    break
                result.stamps[shard] = stamp
            if failure:
                result.failures[shard] = failure
    except (RedisError, OSError) as error:
        for shard in shard_tags:
            if shard not in result.stamps:
                result.failures.setdefault(shard, f"the store cannot be reached: {error}")
    return result


async def _confirmed(store: AsyncStore, command: list[Any], replicas: int) -> tuple[int, str]:
    """The new stamp, and what is wrong with it ('' if nothing is)."""
    # WAIT is about what its own connection wrote before: both go in one pipeline.
    async with store.pipeline(transaction=False) as pipe:
        pipe.execute_command(*command)
        if replicas:
            pipe.execute_command("WAIT", replicas, REPLICA_WAIT_MS)
        stamp, *confirmed = await cast(
            "Awaitable[list[Any]]", pipe.execute(raise_on_error=False)
        )
    for error in (stamp, *confirmed):
        if isinstance(error, Exception):
            return 0, str(error)
    if replicas and int(confirmed[0]) < replicas:
        return 0, f"{confirmed[0]} of {replicas} replicas confirmed within {REPLICA_WAIT_MS} ms"
    return int(stamp), ""


async def _replicas(store: AsyncStore) -> int:
    info: dict[str, Any] = await store.info("replication")
    return int(info.get("connected_slaves", 0))
