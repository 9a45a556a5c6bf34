"""`askonce invalidate`: forget answers, by task, by tag, or all of them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import typer

from askonce_queue.job import MAX_TAG_CHARS, valid_name
from askonce_worker.cache.invalidation import Invalidation, invalidate
from askonce_worker.cli import loop
from askonce_worker.cli.inputs import known_task
from askonce_worker.cli.loop import Failed, Signals, say
from askonce_worker.cli.opened import opened
from askonce_worker.config import Settings, load_settings


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line, parsed."""

    config: Path
    tasks: list[str]
    tags: list[str]
    everything: bool
    force: bool


def main(options: Options) -> int:
    """Run the command; return the exit code."""
    return loop.run(functools.partial(_run, options))


async def _run(options: Options, _signals: Signals) -> int:
    settings = load_settings(options.config)
    tags = _tags(options, settings)
    async with opened(settings) as store:
        done = await invalidate(store, tags, everything=options.everything)
    _report("all answers" if options.everything else ", ".join(tags), settings, done)
    return loop.OK if done.complete else loop.PARTLY


def _tags(options: Options, settings: Settings) -> list[str]:
    """The tags to invalidate. Raises `Failed` for what would do nothing, or too much."""
    if options.everything == bool(options.tasks or options.tags):
        raise Failed("say what to invalidate: --task NAME or --tag NAME (or several), or --all")
    if not options.force:
        for task in options.tasks:
            known_task(settings, task)
    for tag in options.tags:
        if not valid_name(tag, MAX_TAG_CHARS):
            raise Failed(f"tags are 1 to {MAX_TAG_CHARS} printable characters, not {tag[:40]!r}")
    return [f"task:{task}" for task in options.tasks] + options.tags


def _report(what: str, settings: Settings, done: Invalidation) -> None:
    shards = len(done.stamps) + len(done.failures)
    if done.complete:
        bound_s = settings.worker.stamp_bound_s
        typer.echo(f"invalidated: {what} ({shards} of {shards} shards confirmed)")
        typer.echo(f"running workers follow within {bound_s:g} s")
        return
    typer.echo(f"incomplete: {what} ({len(done.stamps)} of {shards} shards confirmed)")
    for shard, reason in done.failures.items():
        say(f"shard {shard}: {reason}")
    say("run it again until it is complete; repeating it is harmless")
