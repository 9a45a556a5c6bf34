"""Invalidation: answers built before now are never served again, by tag or altogether.

Runs on every answer shard and is confirmed by each, with its replicas where it has any: a failover
must not bring answers back. Until all have confirmed it is incomplete; repeating it is harmless.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from askonce_queue import answer_scripts
from askonce_queue.scripts import CHUNK
from askonce_queue.store import Store


class Invalidation(NamedTuple):
    """What was done: shard tag → its new stamp, or why it has not confirmed."""

    stamps: dict[str, int]
    failures: dict[str, str]

    @property
    def complete(self) -> bool:
        """Whether every shard has confirmed."""
        return not self.failures


async def invalidate(
    store: Store,
    tags: Sequence[str] = (),
    *,
    keys: Collection[bytes] = (),
    everything: bool = False,
) -> Invalidation:
    """Make all answers with one of `tags`, of `keys`, or `everything`, invalid on all shards.

    At most 500 tags and keys together; a key has 32 bytes.

    Never raises for a store that fails: what is not known to be done is in `failures`.
    """
    named: list[bytes | str] = [*tags, *(b"\0" + key for key in keys)]
    if len(named) > CHUNK:
        raise ValueError(f"at most {CHUNK} tags and keys at once, not {len(named)}")
    calls = [
        answer_scripts.invalidate(shard, everything=everything, tags=named) for shard in store.tags
    ]
    result = Invalidation({}, {})
    stamps = await store.run_confirmed(calls, every_replica=True)
    for shard, stamp in zip(store.tags, stamps, strict=True):
        if isinstance(stamp, Exception):
            result.failures[shard] = str(stamp)
        else:
            result.stamps[shard] = int(stamp)
    return result
