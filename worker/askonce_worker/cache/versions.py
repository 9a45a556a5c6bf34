"""Versions of tasks: which answers the prompt, model or labels of before have left.

The prompt is in the cache key, so a changed one finds nothing of before, and what that has left
dies with its TTL. Until then it takes memory; `purge_old_versions` deletes it. Every entry carries
the tag of its task and that of its version: `v:` and the first 4 bytes of the task digest, in hex.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from askonce_queue import names
from askonce_queue.store import Store
from askonce_worker.cache.survey import Found, Limits, Progress, Survey, Tally
from askonce_worker.cache.tags import VERSION_BYTES, VERSION_PREFIX, task_tag

_VERSION = re.compile(VERSION_PREFIX + f"[0-9a-f]{{{2 * VERSION_BYTES}}}")


async def purge_old_versions(
    store: Store,
    versions: Mapping[str, str | None],
    *,
    current: Sequence[str] = (),
    limits: Limits | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Tally:
    """Delete the stored answers of tasks that were built by another version of them.

    `versions`: task → the tag of its version (`Task.version`), or `None` if there is no such task
    any more. An entry goes if it is of one of these tasks and of none of these versions, nor of one
    that is `current` elsewhere: tasks that ask the same share their answers. Entries without a
    version stay. With `dry_run` they are only counted. Nobody is told: who still runs the old
    version asks again. Never raises for a store that fails: see `Tally.unfinished`.
    """
    kept = {version for version in versions.values() if version is not None} | {*current}
    tasks = set(map(task_tag, versions))

    def is_old(_shard: str, found: Found) -> bool:
        built_by = [tag for tag in found.tags if _VERSION.fullmatch(tag)]
        return bool(built_by) and kept.isdisjoint(built_by) and not tasks.isdisjoint(found.tags)

    async def delete(shard: str, digests: Sequence[bytes]) -> None:
        prefix = names.answer_prefix(shard)
        await store.send(prefix, "UNLINK", *[prefix + digest for digest in digests])

    survey = Survey(
        store,
        is_old,
        limits or Limits(),
        act=None if dry_run else delete,
        progress=progress,
    )
    return await survey.run()
