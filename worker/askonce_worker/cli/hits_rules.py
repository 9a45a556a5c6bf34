"""`askonce hits rules list | add | remove`: inputs that are kept from the cache."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import msgspec
import typer
from rich.console import Console

from askonce_worker.cli import hits_shown, loop
from askonce_worker.cli.dead_choice import store_now_ms
from askonce_worker.cli.hits_look import write_anything
from askonce_worker.cli.inputs import known_task
from askonce_worker.cli.loop import Failed, Signals, say
from askonce_worker.cli.opened import opened
from askonce_worker.cli.times import iso
from askonce_worker.config import load_settings
from askonce_worker.hits.rulebook import READ_EVERY_S, RuleBook, TooManyRules
from askonce_worker.hits.rules import Rule


class RuleJson(msgspec.Struct):
    """A rule for programs. A stable interface: extend, don't rename."""

    id: str
    task: str
    pattern: str
    at: str | None
    key: str


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """The command line of `list`, parsed."""

    config: Path
    json: bool


@dataclass(frozen=True, kw_only=True)
class AddOptions:
    """The command line of `add`, parsed."""

    config: Path
    task: str
    pattern: str


@dataclass(frozen=True, kw_only=True)
class RemoveOptions:
    """The command line of `remove`, parsed."""

    config: Path
    ids: list[str]


def main_list(options: ListOptions) -> int:
    """Run `list`; return the exit code."""
    write_anything()
    return loop.run(functools.partial(_list, options))


def main_add(options: AddOptions) -> int:
    """Run `add`; return the exit code."""
    return loop.run(functools.partial(_add, options))


def main_remove(options: RemoveOptions) -> int:
    """Run `remove`; return the exit code."""
    return loop.run(functools.partial(_remove, options))


async def _list(options: ListOptions, _signals: Signals) -> int:
    settings = load_settings(options.config)
    console = Console(highlight=False)
    async with opened(settings) as store:
        rules = await RuleBook(store).read()
        now_ms = await store_now_ms(store)
    if options.json:
        for rule in rules:
            line = RuleJson(rule.id, rule.task, rule.pattern, iso(rule.at_ms), rule.key)
            typer.echo(msgspec.json.encode(line))
    elif not console.is_terminal:
        for rule in rules:
            typer.echo("\t".join(hits_shown.rule_columns(rule, now_ms)))
    elif rules:
        console.print(hits_shown.rules_table(rules, now_ms))
    else:
        say("no rules")
    return loop.OK


async def _add(options: AddOptions, _signals: Signals) -> int:
    settings = load_settings(options.config)
    known_task(settings, options.task)
    async with opened(settings) as store:
        try:
            rule = Rule(options.task, options.pattern, at_ms=await store_now_ms(store))
            await RuleBook(store).add(rule)
        except (ValueError, TooManyRules) as error:
            raise Failed(f"--pattern: {error}") from error
    typer.echo(f"{rule.id}: such inputs are kept from the cache; workers follow {FOLLOW}")
    return loop.OK


async def _remove(options: RemoveOptions, _signals: Signals) -> int:
    settings = load_settings(options.config)
    missing: list[str] = []
    async with opened(settings) as store:
        book = RuleBook(store)
        for rule_id in dict.fromkeys(options.ids):
            if not await book.remove(rule_id):
                missing.append(rule_id)
                say(f"there is no rule {rule_id[:60]!r}")
    removed = len(set(options.ids)) - len(missing)
    typer.echo(f"{removed} rule{'' if removed == 1 else 's'} removed; workers follow {FOLLOW}")
    return loop.PARTLY if missing else loop.OK


FOLLOW = f"within {READ_EVERY_S:g} s"
