"""`askonce hits list` and `askonce hits export`: looking at what was reused."""

from __future__ import annotations

import functools
import io
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console

from askonce_queue.errors import StoreUnavailable
from askonce_queue.store import Store
from askonce_worker.cli import hits_shown, loop
from askonce_worker.cli.dead_choice import store_now_ms
from askonce_worker.cli.inputs import known_task
from askonce_worker.cli.loop import Failed, Signals, say
from askonce_worker.cli.opened import opened
from askonce_worker.cli.times import moment
from askonce_worker.config import Settings, load_settings
from askonce_worker.hits.search import Found, Hit, Wanted, find_hits

TABLE_ROWS = 100
"""How many hits a table has, unless --limit says so."""


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """The command line of `list`, parsed."""

    config: Path
    task: str | None
    since: str | None
    unreviewed: bool
    limit: int | None
    json: bool


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The command line of `export`, parsed."""

    config: Path
    task: str | None
    since: str | None
    out: Path


def main_list(options: ListOptions) -> int:
    """Run `list`; return the exit code."""
    write_anything()
    return loop.run(functools.partial(_list, options))


def main_export(options: ExportOptions) -> int:
    """Run `export`; return the exit code."""
    return loop.run(functools.partial(_export, options))


def write_anything() -> None:
    """Have characters that the locale lacks escaped instead of raised."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


async def _list(options: ListOptions, _signals: Signals) -> int:
    settings = load_settings(options.config)
    console = Console(highlight=False)
    as_table = console.is_terminal and not options.json
    async with opened(settings) as store:
        now_ms = await store_now_ms(store)
        found = await find(settings, store, options.task, options.since, options.unreviewed, now_ms)
    limit = options.limit or (TABLE_ROWS if as_table else len(found.hits))
    shown = found.hits[:limit]
    if not shown and not found.failures:
        say(nothing(settings))
    elif options.json:
        for hit in shown:
            typer.echo(hits_shown.as_json(hit))
    elif not as_table:
        for hit in shown:
            typer.echo(hits_shown.as_line(hit, now_ms))
    else:
        console.print(hits_shown.as_table(shown, now_ms))
        if len(found.hits) > limit:
            say(f"the newest {limit:,} of {len(found.hits):,}; --limit shows more")
    return failures_reported(found)


async def _export(options: ExportOptions, _signals: Signals) -> int:
    settings = load_settings(options.config)
    async with opened(settings) as store:
        now_ms = await store_now_ms(store)
        found = await find(settings, store, options.task, options.since, False, now_ms)
    if str(options.out) == "-":
        for hit in found.hits:
            typer.echo(hits_shown.as_json(hit))
    else:
        _write(options.out, found.hits)
        say(f"{len(found.hits):,} hits in {options.out}")
    return failures_reported(found)


def _write(path: Path, hits: Sequence[Hit]) -> None:
    """Write a file that appears under its name when it is whole. Raises `Failed`."""
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.resolve().parent, prefix=f".{path.name}.", delete=False
        ) as file:
            partial = Path(file.name)
            try:
                file.writelines(hits_shown.as_json(hit) + b"\n" for hit in hits)
                file.flush()
                os.fsync(file.fileno())
                partial.replace(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise Failed(f"cannot write {path}: {error.strerror}") from error


async def find(
    settings: Settings,
    store: Store,
    task: str | None,
    since: str | None,
    unreviewed: bool,
    now_ms: int,
) -> Found:
    """The hits that the options choose.

    Raises `Failed`, and `StoreUnavailable` when no shard can be read.
    """
    if task is not None:
        known_task(settings, task)
    found = await find_hits(store, Wanted(task, moment("--since", since, now_ms), unreviewed))
    if len(found.failures) == len(store.tags):
        error = next(iter(found.failures.values()))
        raise StoreUnavailable(f"the store cannot be reached: {error}")
    return found


def nothing(settings: Settings) -> str:
    """Why there may be no hits."""
    if all(task.hit_log.share == 0 for task in settings.tasks.values()):
        return "no such hits: no task has a hit log (hit_log.share is 0)"
    return "no such hits: workers log a share of the questions that hit, see hit_log.share"


def failures_reported(found: Found) -> int:
    """Say which shards could not be read; return the exit code."""
    for shard, error in found.failures.items():
        say(f"shard {shard} could not be read: {error}")
    return loop.PARTLY if found.failures else loop.OK
