"""Invalidation: answers built before now are never served again; by tag, key or glob, or all.

Runs on every answer shard and is confirmed by each, with its replicas where it has any: a failover
must not bring answers back. Until all have confirmed it is incomplete; repeating it is harmless.
The answers themselves stay where they are until their TTL ends or they are replaced.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import msgspec
from redis.exceptions import RedisError

from askonce_queue import answer_scripts
from askonce_queue.answer_scripts import GLOB_MARK, KEY_MARK
from askonce_queue.names import DIGEST_BYTES
from askonce_queue.scripts import CHUNK, Call
from askonce_queue.shards import shard_of_digest
from askonce_queue.store import Store
from askonce_worker.cache.globs import any_matcher, check_glob
from askonce_worker.cache.survey import Before, Found, Limits, Progress, Survey, Tally


class Target(NamedTuple):
    """What to invalidate: answers with one of `tags`, or one that matches `globs`, or `keys`.

    `keys` are cache keys (32 bytes each). At most 500 tags, keys and globs together.
    """

    tags: Collection[str] = ()
    keys: Collection[bytes] = ()
    globs: Collection[str] = ()
    everything: bool = False

    def check(self) -> None:
        """Raise `ValueError` for what cannot be invalidated."""
        count = len(self.tags) + len(self.keys) + len(self.globs)
        if count > CHUNK:
            raise ValueError(f"at most {CHUNK} tags, keys and patterns at once, not {count}")
        for key in self.keys:
            if len(key) != DIGEST_BYTES:
                raise ValueError(f"a cache key has {DIGEST_BYTES} bytes, not {len(key)}")
        for glob in self.globs:
            check_glob(glob)

    @property
    def only_keys(self) -> bool:
        """Whether it names answers one by one."""
        return not (self.everything or self.tags or self.globs)


class Invalidation(msgspec.Struct, frozen=True):
    """What was done: shard tag → its new stamp, or why it has not confirmed.

    After a dry run both are empty. `tally`: how many valid answers it took, or would take; `None`
    if they were not counted.
    """

    stamps: dict[str, int]
    failures: dict[str, str]
    tally: Tally | None = None

    @property
    def complete(self) -> bool:
        """Whether every shard has confirmed."""
        return not self.failures

    @property
    def count(self) -> int | None:
        """How many answers it took, or would take; `None`: unknown, and `tally` says why."""
        return self.tally.answers if self.tally is not None and self.tally.exact else None


async def invalidate(
    store: Store,
    tags: Collection[str] = (),
    *,
    keys: Collection[bytes] = (),
    globs: Collection[str] = (),
    everything: bool = False,
    dry_run: bool = False,
    count: Limits | None = None,
    progress: Progress | None = None,
) -> Invalidation:
    """Make all answers with one of `tags`, of `keys`, matching `globs`, or `everything`, invalid.

    On all shards; of keys, on those that hold them. With `count` it is then counted, within these
    limits, how many answers that took: valid ones that are stored and carry such a tag themselves.
    With `dry_run` they are only counted. `progress` is told how many keys of the store were walked.
    Never raises for a store that fails: what is not known to be done is in `failures`. Raises
    `ValueError` for what cannot be invalidated, see `Target`.
    """
    target = Target(tags, keys, globs, everything)
    target.check()
    if dry_run:
        tally = await _count(store, target, count or Limits(), None, {}, progress)
        return Invalidation({}, {}, tally)
    members = _members(store, target)
    before = await _before(store, members) if count is not None else None
    result = Invalidation({}, {})
    calls = [
        answer_scripts.invalidate(shard, everything=everything, tags=some)
        for shard, some in members.items()
    ]
    stamps = await store.run_confirmed(calls, every_replica=True)
    for shard, stamp in zip(members, stamps, strict=True):
        if isinstance(stamp, Exception):
            result.failures[shard] = str(stamp)
        else:
            result.stamps[shard] = int(stamp)
    if count is None:
        return result
    if before is None or result.failures:
        unknown = Tally(0, 0, "not every shard could be asked")
        return msgspec.structs.replace(result, tally=unknown)
    tally = await _count(store, target, count, result.stamps, before, progress)
    return msgspec.structs.replace(result, tally=tally)


def _members(store: Store, target: Target) -> dict[str, list[bytes | str]]:
    """What each shard that is concerned is told: shard tag → tags, keys and globs."""
    rest: list[bytes | str] = [*target.tags, *(GLOB_MARK + glob.encode() for glob in target.globs)]
    members = {} if target.only_keys and target.keys else {tag: [*rest] for tag in store.tags}
    for tag, some in _by_shard(store, target.keys).items():
        members.setdefault(tag, []).extend(KEY_MARK + key for key in some)
    return members


def _by_shard(store: Store, keys: Collection[bytes]) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for key in keys:
        found.setdefault(store.tags[shard_of_digest(key, len(store.tags))], []).append(key)
    return found


async def _before(
    store: Store, members: Mapping[str, Sequence[bytes | str]]
) -> dict[str, Before] | None:
    """The stamps as they are. A call of its own, because the one that changes them may be re-sent.

    None if a shard does not tell.
    """
    calls: list[Call] = [answer_scripts.peek_stamps(tag, some) for tag, some in members.items()]
    told = await store.run_many(calls)
    if any(isinstance(one, RedisError | OSError) for one in told):
        return None
    return {
        tag: Before(one[0], list(zip(some, one[1:], strict=True)))
        for (tag, some), one in zip(members.items(), told, strict=True)
    }


async def _count(
    store: Store,
    target: Target,
    limits: Limits,
    stamps: Mapping[str, int] | None,
    before: Mapping[str, Before],
    progress: Progress | None,
) -> Tally:
    """Count what `target` takes: of what was valid `before`, what was built before `stamps`."""
    tags, keys = frozenset(target.tags), frozenset(target.keys)
    matches = any_matcher(target.globs)

    def wanted(shard: str, found: Found) -> bool:
        if stamps is not None and found.built >= stamps.get(shard, 0):
            return False
        return (
            target.everything
            or not tags.isdisjoint(found.tags)
            or found.digest in keys
            or (bool(target.globs) and any(map(matches, found.tags)))
        )

    survey = Survey(store, wanted, limits, before=before, progress=progress)
    if target.only_keys:
        return await survey.look_at(_by_shard(store, target.keys))
    return await survey.run()
