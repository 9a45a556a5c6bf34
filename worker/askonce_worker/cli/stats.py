"""`askonce stats`: what the fleet has done, what it cost, and what waits."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import anyio
import msgspec
import typer
from redis.exceptions import RedisError
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from askonce_worker.cli import loop
from askonce_worker.cli.budgets_shown import budgets
from askonce_worker.cli.loop import Failed, Signals
from askonce_worker.cli.opened import opened
from askonce_worker.cli.stats_checks import ChecksReader, Everything, checks, reviews
from askonce_worker.cli.stats_money import accounts, money
from askonce_worker.cli.stats_numbers import now, tasks, verdict, windows
from askonce_worker.cli.stats_view import Section, View
from askonce_worker.config import Settings, TaskConfig, load_settings
from askonce_worker.observe.totals import Terms

EVERY_S = 1.0
SECTIONS: tuple[tuple[Section, ...], ...] = (
    (windows, money),
    (verdict,),
    (checks, reviews),
    (tasks, accounts),
    (budgets,),
    (now,),
)
"""What is shown, from top to bottom; side by side where there is room.

A new section is one more function of the view, here."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line, parsed."""

    config: Path
    json: bool
    watch: bool = False
    window: str = "24h"
    task: str | None = None


def main(options: Options) -> int:
    """Run the command; return the exit code."""
    return loop.run(functools.partial(_run, options))


async def _run(options: Options, _signals: Signals) -> int:
    settings = load_settings(options.config)
    async with opened(settings) as store:
        reader = ChecksReader(store, settings, terms_of(settings))
        if options.watch:
            await _watch(options, settings, reader)
        else:
            state = await reader.read()
            _check_task(options, settings, state)
            if options.json:
                typer.echo(msgspec.json.format(msgspec.json.encode(state)))
            else:
                Console().print(_shown(options, settings, state))
    return loop.OK


async def _watch(options: Options, settings: Settings, reader: ChecksReader) -> None:
    """Show the state once a second, until Ctrl-C."""
    state = await reader.read()
    _check_task(options, settings, state)
    if options.json:
        while True:
            typer.echo(msgspec.json.encode(state))
            await anyio.sleep(EVERY_S)
            state = await reader.read()
    console = Console()
    view: RenderableType = _shown(options, settings, state)
    try:
        with Live(view, console=console, screen=console.is_terminal, auto_refresh=False) as live:
            while True:
                live.update(view, refresh=True)
                await anyio.sleep(EVERY_S)
                try:
                    state = await reader.read()
                except (RedisError, OSError) as error:
                    view = Group(Text(f"The store cannot be read: {error}", "bold red"), view)
                    live.update(view, refresh=True)
                    await anyio.sleep(EVERY_S)
                view = _shown(options, settings, state)
    finally:
        if console.is_terminal:  # what was on its own screen is gone with that
            console.print(view)


def terms_of(settings: Settings) -> Terms:
    """What the configuration knows of lives and costs."""
    return Terms(
        lives_s={name: _life_s(task) for name, task in settings.tasks.items()},
        store_per_hour=settings.costs.store_per_hour,
        currency=settings.costs.currency,
        budgets={
            name: (per_day, task.budget.warn_at)
            for name, task in settings.tasks.items()
            if (per_day := task.budget.per_day) is not None
        },
    )


def _life_s(task: TaskConfig) -> float:
    cache = task.cache
    stale_s = max(cache.stale_while_revalidate_s, cache.stale_if_error_s)
    return max(cache.ttl_s, *cache.ttl_by_label_s.values(), 0.0) + stale_s


def _check_task(options: Options, settings: Settings, state: Everything) -> None:
    """Refuse a task that nobody knows."""
    known = {*settings.tasks, *state.tasks}
    if options.task is not None and options.task not in known:
        there = ", ".join(sorted(known)) or "none"
        raise Failed(f"no task {options.task!r} is configured or was ever counted; tasks: {there}")


def shown(view: View) -> RenderableType:
    """All sections that have something to say."""
    rows = [[part for section in row if (part := section(view))] for row in SECTIONS]
    return Group(*(Columns(row, padding=(0, 4)) if len(row) > 1 else row[0] for row in rows if row))


def _shown(options: Options, settings: Settings, state: Everything) -> RenderableType:
    prompts = {name: task.system or "" for name, task in settings.tasks.items()}
    return shown(View(state, options.window, options.task, prompts, state.checks, state.reviews))
