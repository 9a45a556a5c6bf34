"""`python -m askonce_loadtest plan`: how large, how much, and what is scarce."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from askonce_loadtest.planning.constants import packaged_constants, read_constants
from askonce_loadtest.planning.sizing import Line, Sizing, size
from askonce_loadtest.planning.target import Target
from askonce_queue.errors import AskonceError
from askonce_worker.config_units import parse_bytes, parse_seconds

_D = Target(rate=1, distinct=1)
_FEW = 100
_NO_DIGITS = 10_000


def plan(
    *,
    rate: Annotated[float, typer.Option(min=0.001, help="Requests a second, at the peak.")],
    distinct: Annotated[int, typer.Option(min=1, help="Distinct questions within a TTL.")],
    ttl: Annotated[str, typer.Option(help="How long answers are kept.")] = "24h",
    model_latency: Annotated[str, typer.Option(help="Of one call, on average.")] = "500ms",
    exponent: Annotated[
        float, typer.Option(min=0, max=5, help="Of the questions' Zipf distribution.")
    ] = _D.exponent,
    hit_rate: Annotated[
        float | None,
        typer.Option(min=0, max=1, show_default="from Zipf and TTL", help="If you know it."),
    ] = None,
    text_size: Annotated[str, typer.Option(help="Of a request's text, on average.")] = "90",
    price_per_call: Annotated[float, typer.Option(min=0, help="Of the model.")] = 0.0,
    store_price: Annotated[float, typer.Option(min=0, help="A store process, per hour.")] = 0.0,
    worker_price: Annotated[float, typer.Option(min=0, help="A worker process, per hour.")] = 0.0,
    replicas: Annotated[int, typer.Option(min=0, max=10, help="Of each primary.")] = _D.replicas,
    headroom: Annotated[
        float, typer.Option(min=0, max=0.95, help="Share of each process left idle at the peak.")
    ] = _D.headroom,
    memory_ttl: Annotated[str, typer.Option(help="How long workers' memories keep one.")] = "5m",
    worker_memory: Annotated[str, typer.Option(help="A worker's memory tier.")] = "64mb",
    primary_memory: Annotated[str, typer.Option(help="maxmemory of a primary.")] = "16gb",
    max_concurrency: Annotated[
        int, typer.Option(min=1, help="Model calls at once of a worker process.")
    ] = _D.model_slots,
    calls_per_minute: Annotated[
        float | None, typer.Option(min=1, show_default="no limit", help="What the model allows.")
    ] = None,
    network_gbit: Annotated[
        float, typer.Option(min=0.01, help="Of one store server.")
    ] = _D.network_gbit,
    backlog: Annotated[str, typer.Option(help="Of requests that the store can hold.")] = "10s",
    constants: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            show_default="a 2-core machine's",
            help="What `bench --json` printed on your machine.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Compute workers, connections, store memory, primaries and money, and name the bottleneck.

    From measured constants (µs of CPU a job in each tier) by formulae that docs/LOADTEST.md has.
    Durations are like 30s or 24h, sizes like 64mb; prices are in a currency of your choice.

    For example:

        python -m askonce_loadtest plan --rate 1000000 --distinct 50000000 --ttl 24h
        --model-latency 400ms --price-per-call 0.0002

        python -m askonce_loadtest bench --json > bench.json

        python -m askonce_loadtest plan --rate 5000 --distinct 1000000 --constants bench.json

    Exit code: 0; 2 wrong usage.
    """
    try:
        target = Target(
            rate=rate,
            distinct=distinct,
            ttl_s=_seconds("--ttl", ttl),
            memory_ttl_s=_seconds("--memory-ttl", memory_ttl),
            model_latency_s=_seconds("--model-latency", model_latency),
            exponent=exponent,
            hit_rate=hit_rate,
            text_bytes=_bytes("--text-size", text_size),
            price_per_call=price_per_call,
            store_price_per_hour=store_price,
            worker_price_per_hour=worker_price,
            replicas=replicas,
            headroom=headroom,
            primary_memory_bytes=_bytes("--primary-memory", primary_memory),
            worker_memory_bytes=_bytes("--worker-memory", worker_memory),
            model_slots=max_concurrency,
            model_calls_per_minute=calls_per_minute,
            network_gbit=network_gbit,
            backlog_s=_seconds("--backlog", backlog),
        )
        known = read_constants(constants) if constants else packaged_constants()
    except AskonceError as error:
        raise typer.BadParameter(str(error)) from error
    sizing = size(target, known)
    if json:
        text = msgspec.json.format(msgspec.json.encode(sizing), indent=2)
        sys.stdout.write(text.decode() + "\n")
    else:
        print_sizing(Console(), sizing)


def print_sizing(console: Console, sizing: Sizing) -> None:
    """Print every figure with its formula, and what is scarce."""
    target = sizing.target
    table = Table(title=f"{target.rate:,.0f} requests/s over {target.distinct:,} questions")
    table.add_column("figure", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("how")
    for line in sizing.lines:
        table.add_row(line.name, shown(line), line.formula)
    console.print(table)
    console.print(f"bottleneck: [bold]{sizing.bottleneck}[/]. To relieve it: {sizing.advice}.")
    for warning in sizing.warnings:
        console.print(f"[yellow]note:[/] {warning}")
    measured = ", ".join(f"{name} {value}" for name, value in sizing.machine.items())
    console.print(f"constants measured on: {measured}", style="dim")


def shown(line: Line) -> str:
    """A figure with its unit, to three digits where it is small."""
    value = line.value
    if value == int(value) or value >= _NO_DIGITS:
        number = f"{value:,.0f}"
    elif value >= _FEW:
        number = f"{value:,.1f}"
    else:
        number = f"{value:.4f}" if line.name == "hit rate" else f"{value:.3g}"
    return f"{number} {line.unit}".strip().replace(" /", "/")


def _seconds(option: str, text: str) -> float:
    try:
        return float(parse_seconds(_number(text)))
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from error


def _bytes(option: str, text: str) -> float:
    try:
        return float(parse_bytes(_number(text)))
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from error


def _number(text: str) -> float | str:
    """A plain number is one of seconds, or of bytes."""
    try:
        return float(text)
    except ValueError:
        return text
