"""`askonce dead list` and `askonce dead show`: looking at dead letters."""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console

from askonce_queue.errors import StoreUnavailable
from askonce_queue.store import Store
from askonce_worker.cli import dead_shown, loop
from askonce_worker.cli.counting import counting
from askonce_worker.cli.dead_choice import Filters, letter_id, store_now_ms
from askonce_worker.cli.loop import Signals, say
from askonce_worker.cli.opened import opened
from askonce_worker.config import load_settings
from askonce_worker.dead_letters import DeadLetter, DeadLetters, Search

TABLE_ROWS = 100
"""How many letters a table has, unless --limit says so."""


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """The command line of `list`, parsed."""

    config: Path
    filters: Filters
    limit: int | None
    json: bool


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """The command line of `show`, parsed."""

    config: Path
    letter: str
    json: bool


def main_list(options: ListOptions) -> int:
    """Run `list`; return the exit code."""
    _write_anything()
    return loop.run(functools.partial(_list, options))


def main_show(options: ShowOptions) -> int:
    """Run `show`; return the exit code."""
    _write_anything()
    return loop.run(functools.partial(_show, options))


def _write_anything() -> None:
    """Have characters that the locale lacks escaped instead of raised."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


async def _list(options: ListOptions, _signals: Signals) -> int:
    settings = load_settings(options.config)
    console = Console(highlight=False)
    as_table = console.is_terminal and not options.json
    async with opened(settings) as store:
        letters = DeadLetters(store, settings.worker.pool)
        now_ms = await store_now_ms(store)
        search = letters.search(options.filters.wanted(now_ms))
        if as_table:
            limit = options.limit or TABLE_ROWS
            async with counting("read", lambda: search.looked_at, await letters.total()):
                rows = [letter async for letter in _first(search, limit + 1)]
            if rows:
                console.print(dead_shown.as_table(rows[:limit], now_ms))
            else:
                say("no such dead letters" if options.filters.given else "no dead letters")
            if len(rows) > limit:
                say(f"the newest {limit:,}; --limit shows more")
        else:
            async for letter in _first(search, options.limit):
                if options.json:
                    typer.echo(dead_shown.as_json(letter, now_ms))
                else:
                    typer.echo(dead_shown.as_line(letter, now_ms))
        return report_failures(search, store)


async def _show(options: ShowOptions, _signals: Signals) -> int:
    settings = load_settings(options.config)
    wanted = letter_id(options.letter)
    async with opened(settings) as store:
        (letter,) = await DeadLetters(store, settings.worker.pool).get([wanted])
        now_ms = await store_now_ms(store)
    if letter is None:
        say(f"there is no dead letter {wanted}: retried, dropped, or never there")
        return loop.PARTLY
    if options.json:
        typer.echo(dead_shown.as_json(letter, now_ms))
        return loop.OK
    for name, value in dead_shown.as_page(letter, now_ms):
        typer.echo(f"{typer.style(f'{name:<10}', dim=True)}  {value}" if name else value)
    return loop.OK


async def _first(search: Search, most: int | None) -> AsyncIterator[DeadLetter]:
    """The first letters of a search, all without a limit."""
    async with aclosing(aiter(search)) as found:
        count = 0
        async for letter in found:
            yield letter
            count += 1
            if count == most:
                return


def report_failures(search: Search, store: Store) -> int:
    """Say which shards could not be read, and return the exit code.

    Raises `StoreUnavailable` when none could.
    """
    if len(search.failures) == len(store.tags):
        error = next(iter(search.failures.values()))
        raise StoreUnavailable(f"the store cannot be reached: {error}")
    for shard, error in search.failures.items():
        say(f"shard {shard} could not be read: {error}")
    return loop.PARTLY if search.failures else loop.OK
