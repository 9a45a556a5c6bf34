"""`askonce doctor`: is everything in place? Looks, and changes nothing."""

from __future__ import annotations

import functools
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import aiohttp
import anyio
import msgspec
import typer
from redis.exceptions import RedisError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from askonce_queue import names, queue_scripts
from askonce_queue.checks import check_store, parse_info, recorded_shards
from askonce_queue.errors import AskonceError, ConfigError
from askonce_queue.pressure import STOP_FILLS_AT, Memory, read_memory
from askonce_queue.store import Store
from askonce_worker.build import build_model, open_store
from askonce_worker.cli import loop
from askonce_worker.cli.budgets_shown import described, standing
from askonce_worker.cli.loop import Signals
from askonce_worker.cli.prompts import volatile_parts
from askonce_worker.cli.stats import terms_of
from askonce_worker.config import Settings, load_settings
from askonce_worker.models.protocol import ModelFailure
from askonce_worker.observe.log import without_password
from askonce_worker.observe.totals import FleetReader

Status = Literal["ok", "warn", "fail"]

PINGS = 21
SLOW_MS = 5.0
"""A round trip above this makes the store the slowest part of a hit."""
_SIGNS: dict[Status, tuple[str, str]] = {
    "ok": ("ok  ", "green"),
    "warn": ("warn", "yellow"),
    "fail": ("FAIL", "bold red"),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line, parsed."""

    config: Path
    json: bool


class Check(msgspec.Struct, frozen=True):
    """One thing looked at; `message` says what was found and, unless it is ok, what to do."""

    name: str
    status: Status
    message: str


class Report(msgspec.Struct):
    """What `askonce doctor --json` prints; `ok` when nothing failed."""

    ok: bool
    checks: list[Check]


def main(options: Options) -> int:
    """Run the command; return the exit code."""
    return loop.run(functools.partial(_run, options))


async def _run(options: Options, _signals: Signals) -> int:
    try:
        settings = load_settings(options.config)
    except ConfigError as error:
        if options.json:
            _show([Check("configuration", "fail", str(error))], as_json=True)
        raise
    tasks, models = len(settings.tasks), len(settings.models)
    checks = [_configuration(options.config, tasks, models)]
    checks += await _check_the_store(settings)
    checks += await _check_models(settings)
    checks += _check_prompts(settings)
    _show(checks, as_json=options.json)
    return loop.PARTLY if any(check.status == "fail" for check in checks) else loop.OK


def _configuration(path: Path, tasks: int, models: int) -> Check:
    found = f"{path}: tasks: {tasks}, models: {models}"
    if tasks == 0:
        return Check("configuration", "warn", f"{found}; add [tasks.NAME] to have something to ask")
    return Check("configuration", "ok", found)


def _show(checks: list[Check], *, as_json: bool) -> None:
    if as_json:
        report = Report(all(check.status != "fail" for check in checks), checks)
        typer.echo(msgspec.json.format(msgspec.json.encode(report)))
        return
    console = Console(highlight=False)
    table = Table.grid(padding=(0, 2, 0, 0))
    width = max(len(check.name) for check in checks)
    for check in checks:
        sign, style = _SIGNS[check.status]
        table.add_row(Text(sign, style), check.name, Text(check.message))
        if not console.is_terminal:  # a line each, for grep
            typer.echo(f"{sign}  {check.name:<{width}}  {check.message}")
    if console.is_terminal:
        console.print(table)


# The store


async def _check_the_store(settings: Settings) -> list[Check]:
    try:
        async with open_store(settings) as config:
            store = Store(config, max_connections=1)
            try:
                await check_store(store)
                return await _look_at(store, settings)
            finally:
                await store.aclose()
    except (AskonceError, RedisError, OSError) as error:
        return [Check("store", "fail", without_password(str(error)))]


async def _look_at(store: Store, settings: Settings) -> list[Check]:
    """Check a store that answers, every server of it. Raises redis-py's errors."""
    checks: list[Check] = []
    servers = await store.ask_servers("INFO")
    for address, reply in servers.items():
        where = without_password(store.config.url)
        if len(servers) > 1:
            where = f"{address[0]}:{address[1]}"
        if isinstance(reply, Exception):
            checks.append(Check("store", "fail", f"{where} does not answer: {reply}"))
            continue
        checks += _look_at_server(parse_info(reply), where)
    return [
        *checks,
        await _held(store, settings.worker.max_memory_share),
        await _shards(store, settings),
        await _latency(store),
        *await _budgets(store, settings),
    ]


async def _budgets(store: Store, settings: Settings) -> list[Check]:
    """How each task with a budget stands today. Raises redis-py's errors."""
    terms = terms_of(settings)
    if not terms.budgets:
        return []
    now_s, _ = await store.send(names.META, "TIME")
    reader = FleetReader(store, settings.worker.pool, terms)
    return [
        Check(
            f"budget {task}",
            "ok" if standing(budget) == "ok" else "warn",
            described(budget, settings.costs.currency),
        )
        for task, budget in (await reader.budgets(int(now_s) * 1000)).items()
    ]


def _look_at_server(info: dict[str, str], where: str) -> list[Check]:
    valkey = info.get("valkey_version")
    version = f"Valkey {valkey}" if valkey else f"Redis {info['redis_version']}"
    return [
        Check("store", "ok", f"{version} at {where}"),
        _persistence(info),
        _eviction(info["maxmemory_policy"]),
        _memory(int(info["used_memory"]), int(info["maxmemory"])),
    ]


async def _shards(store: Store, settings: Settings) -> Check:
    recorded = await recorded_shards(store)
    if recorded in (None, settings.shards):
        new = "" if recorded else " (the store is new)"
        return Check("store shards", "ok", f"{settings.shards}{new}")
    return Check(
        "store shards",
        "fail",
        f"the store was set up with {recorded}, [redis] shards is {settings.shards}: use "
        "that number, or an empty database",
    )


def _persistence(info: dict[str, str]) -> Check:
    name = "store persistence"
    if not int(info.get("aof_enabled", 0)):
        return Check(
            name,
            "warn",
            "AOF is off: a restart of the store loses accepted jobs; set 'appendonly yes'",
        )
    if info.get("aof_last_write_status", "ok") != "ok":
        return Check(name, "fail", "the last write to the AOF failed: look at the store's disk")
    return Check(name, "ok", "AOF is on")


def _eviction(policy: str) -> Check:
    name = "store eviction"
    if policy == "volatile-lfu":
        return Check(name, "ok", f"{policy}: only answers are evicted, the coldest first")
    if policy == "noeviction":
        return Check(name, "ok", f"{policy}: when memory is full, answers are not kept any more")
    return Check(name, "warn", f"{policy}: set maxmemory-policy to volatile-lfu, for more hits")


def _memory(used: int, most: int) -> Check:
    name, used_mb = "store memory", used / 2**20
    if most == 0:
        return Check(
            name, "warn", f"{used_mb:,.1f} MB used, no limit: set maxmemory, so that answers are "
            "evicted before the system runs out"
        )  # fmt: skip
    return Check(name, "ok", f"{used_mb:,.1f} of {most / 2**20:,.0f} MB used")


async def _held(store: Store, max_share: float) -> Check:
    """How near the store is to refusing jobs; of several servers, the one that is nearest.

    A full store is none that refuses: answers give way to jobs, where they can be evicted.
    """
    name = "store memory held"
    memories: list[Memory] = []
    for result in await store.run_many([queue_scripts.measure(tag) for tag in store.tags]):
        if isinstance(result, Exception):
            raise result
        memories.append(read_memory(result))
    fullest = max(memories, key=lambda memory: memory.held_share)
    found = f"{fullest.held_bytes / 2**20:,.1f} MB cannot be evicted"
    if fullest.held_share > max_share:
        return Check(
            name,
            "warn",
            f"{found}: jobs are refused. Read replies, add workers, drop dead letters, or raise "
            "maxmemory",
        )
    if not fullest.evicts and fullest.held_share > STOP_FILLS_AT:
        return Check(
            name,
            "warn",
            f"{found}: answers are not kept. Set maxmemory-policy to volatile-lfu, or raise "
            "maxmemory",
        )
    return Check(name, "ok", found)


async def _latency(store: Store) -> Check:
    await store.send(names.META, "PING")
    times_ms: list[float] = []
    for _ in range(PINGS):
        began = time.perf_counter()
        await store.send(names.META, "PING")
        times_ms.append((time.perf_counter() - began) * 1000)
    median_ms = statistics.median(times_ms)
    found = f"{median_ms:.2f} ms a round trip (median of {PINGS})"
    if median_ms > SLOW_MS:
        return Check("store latency", "warn", f"{found}: move the store closer to the workers")
    return Check("store latency", "ok", found)


# Models and prompts


async def _check_models(settings: Settings) -> list[Check]:
    """Ask all models at once; each has its own time limit."""
    found: dict[str, Check] = {}
    async with aiohttp.ClientSession(trust_env=False) as session:

        async def look_at(name: str) -> None:
            found[name] = await _check_model(settings, name, session)

        async with anyio.create_task_group() as tasks:
            for name in settings.models:
                tasks.start_soon(look_at, name)
    return [found[name] for name in settings.models]


async def _check_model(settings: Settings, name: str, session: aiohttp.ClientSession) -> Check:
    title = f"model {name}"
    try:
        model = build_model(settings, name, session)
    except ConfigError as error:
        return Check(title, "fail", str(error))
    try:
        return Check(title, "ok", await model.check())
    except ModelFailure as failure:
        return Check(title, "fail", f"{failure.message} ({failure.code})")
    finally:
        await model.aclose()


def _check_prompts(settings: Settings) -> list[Check]:
    """Look for what would ruin the hit rate."""
    checks: list[Check] = []
    for name, task in settings.tasks.items():
        if task.system is None:
            continue
        findings = volatile_parts(task.system)
        if not findings:
            checks.append(Check(f"prompt {name}", "ok", "nothing that changes with time or user"))
        for what, text in findings:
            message = f"has {what} ({text!r}): each time that changes, all is asked again"
            checks.append(Check(f"prompt {name}", "warn", message))
    return checks
