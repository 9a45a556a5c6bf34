"""`askonce invalidate`: forget answers, by key, task, model, tag, source, pattern, or all of them.

What it is about stands in `invalidate_target.py`, how it is told in `invalidate_shown.py`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from redis.exceptions import RedisError

from askonce_queue.store import Store
from askonce_worker.build import digest_of, fallback_of
from askonce_worker.cache.invalidation import invalidate
from askonce_worker.cache.survey import Limits, Progress
from askonce_worker.cache.tags import version_tag
from askonce_worker.cache.versions import purge_old_versions
from askonce_worker.cli import invalidate_shown as shown
from askonce_worker.cli import loop
from askonce_worker.cli.counting import counting
from askonce_worker.cli.invalidate_target import Chosen, described, target_of, tasks_of
from askonce_worker.cli.loop import Failed, Signals
from askonce_worker.cli.opened import opened
from askonce_worker.config import Settings, load_settings


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line, parsed. `scan_limit` 0: count nothing."""

    config: Path
    chosen: Chosen
    force: bool
    dry_run: bool
    scan_limit: int
    scan_s: float
    json: bool

    @property
    def limits(self) -> Limits | None:
        """How far to count; None: not at all."""
        return Limits(self.scan_limit, self.scan_s) if self.scan_limit else None


def main(options: Options) -> int:
    """Run the command; return the exit code."""
    return loop.run(functools.partial(_run, options))


async def _run(options: Options, _signals: Signals) -> int:
    options.chosen.check()
    settings = load_settings(options.config)
    if options.limits is None and (options.dry_run or options.chosen.old_versions):
        raise Failed("--scan-limit 0 looks at nothing: give --dry-run or --old-versions a limit")
    async with opened(settings) as store:
        if options.chosen.old_versions:
            return await _purge(options, settings, store)
        return await _invalidate(options, settings, store)


async def _invalidate(options: Options, settings: Settings, store: Store) -> int:
    target = await target_of(options.chosen, settings, store, force=options.force)
    async with _walking(
        store, counted=options.limits is not None and not target.only_keys
    ) as walked:
        done = await invalidate(
            store,
            target.tags,
            keys=target.keys,
            globs=target.globs,
            everything=target.everything,
            dry_run=options.dry_run,
            count=options.limits,
            progress=walked,
        )
    report = shown.Report(
        what=described(options.chosen, target),
        dry_run=options.dry_run,
        shards=len(done.stamps) + len(done.failures),
        confirmed=len(done.stamps),
        failures=done.failures,
        tally=done.tally,
        bound_s=settings.worker.stamp_bound_s,
    )
    shown.show(report, as_json=options.json)
    if options.dry_run:
        return loop.OK if done.count is not None else loop.PARTLY
    return loop.OK if done.complete else loop.PARTLY


async def _purge(options: Options, settings: Settings, store: Store) -> int:
    current = {
        name: version_tag(digest_of(settings, config)) for name, config in settings.tasks.items()
    }
    fallbacks = [fallback for one in settings.tasks.values() if (fallback := fallback_of(one))]
    tasks, globs = tasks_of(options.chosen, settings, force=options.force)
    if globs:
        raise Failed("--old-versions takes no pattern with --force: name the tasks that are gone")
    chosen = tasks or list(current)
    async with _walking(store, counted=True) as walked:
        tally = await purge_old_versions(
            store,
            {name: current.get(name) for name in chosen},
            current=[
                *current.values(),
                *(version_tag(digest_of(settings, fallback)) for fallback in fallbacks),
            ],
            limits=options.limits,
            dry_run=options.dry_run,
            progress=walked,
        )
    shown.show_purge(chosen, tally, dry_run=options.dry_run, as_json=options.json)
    return loop.OK if tally.exact else loop.PARTLY


@asynccontextmanager
async def _walking(store: Store, *, counted: bool) -> AsyncGenerator[Progress]:
    """Show how far the walk over the store is, on a terminal, when it takes long."""
    walked = 0

    def more(keys: int) -> None:
        nonlocal walked
        walked += keys

    if not counted:
        yield more
        return
    total = await _keys(store)
    async with counting("looking at keys of the store", lambda: min(walked, total), total):
        yield more


async def _keys(store: Store) -> int:
    """About how many keys there are to walk; every shard of a cluster walks its whole server."""
    try:
        told = await store.ask_servers("INFO", "keyspace")
    except (RedisError, OSError):
        return 0
    replies = [reply for reply in told.values() if isinstance(reply, bytes)]
    found = [int(keys) for reply in replies for keys in re.findall(rb"keys=(\d+)", reply)]
    return sum(found) * (len(store.groups) // len(replies) or 1 if replies else 1)
