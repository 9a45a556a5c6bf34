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
    """Make all answers with one of `tags` (at most 500), or `everything`, invalid on all shards.

    Never raises for a store that fails: what is not known to be done is in `failures`.
    """
    if len(tags) > CHUNK:
        raise ValueError(f"at most {CHUNK} tags at once, not {len(tags)}")
    calls = [
        answer_scripts.invalidate(shard, everything=everything, tags=tags) for shard in shard_tags
    ]
    try:
        replicas = int((await store.info("replication")).get("connected_slaves", 0))
        # WAIT is about what its own connection wrote before: all goes in one pipeline.
        async with store.pipeline(transaction=False) as pipe:
            for call in calls:
                pipe.execute_command(*call.command("EVAL"))
            if replicas:
                pipe.execute_command("WAIT", replicas, REPLICA_WAIT_MS)
            raw = await cast("Awaitable[list[Any]]", pipe.execute(raise_on_error=False))
    except (RedisError, OSError) as error:
        return Invalidation({}, dict.fromkeys(shard_tags, f"the store failed: {error}"))
    unconfirmed = _unconfirmed(raw[-1], replicas) if replicas else ""
    result = Invalidation({}, {})
    for shard, stamp in zip(shard_tags, raw, strict=False):
        if isinstance(stamp, Exception):
            result.failures[shard] = str(stamp)
        elif unconfirmed:
            result.failures[shard] = unconfirmed
        else:
            result.stamps[shard] = int(stamp)
    return result


def _unconfirmed(confirmed: object, replicas: int) -> str:
    """What is wrong with the replicas' answer to WAIT; '' if nothing is."""
    if isinstance(confirmed, int) and confirmed >= replicas:
        return ""
    return f"{confirmed} of {replicas} replicas confirmed within {REPLICA_WAIT_MS} ms"
