"""`python -m askonce_loadtest model`: the stand-in model server as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
import uvloop

from askonce_loadtest.model_behaviour import MAX_LATENCY_MS, Behaviour
from askonce_loadtest.model_server import serve

LATENCY, LIMITS = "Latency", "Limits"
FAULTS = "Faults: shares of all calls, 0 to 1"


def share(what: str) -> Any:
    """The option of a fault."""
    return typer.Option(min=0, max=1, help=what, rich_help_panel=FAULTS)


def model(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 chooses a free one.")] = 8900,
    seed: Annotated[int, typer.Option(help="Decides which calls get which fault.")] = 0,
    labels: Annotated[
        Path | None, typer.Option(dir_okay=False, help="JSON file, {text: label}.")
    ] = None,
    latency_ms: Annotated[
        float, typer.Option(min=0, help="Time to an answer (median).", rich_help_panel=LATENCY)
    ] = 50.0,
    latency_sigma: Annotated[
        float, typer.Option(min=0, help="Lognormal shape; 0: fixed.", rich_help_panel=LATENCY)
    ] = 0.0,
    slow: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of calls with --slow-latency-ms.", rich_help_panel=LATENCY
        ),
    ] = 0.0,
    slow_latency_ms: Annotated[
        float, typer.Option(min=0, help="Median of the slow calls.", rich_help_panel=LATENCY)
    ] = 1000.0,
    latency_file: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            help="Take latencies from this file instead: one in ms a line.",
            rich_help_panel=LATENCY,
        ),
    ] = None,
    requests_per_minute: Annotated[
        float | None,
        typer.Option(min=1, help="Past it: 429 with Retry-After.", rich_help_panel=LIMITS),
    ] = None,
    tokens_per_minute: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Of input and output, 4 characters each. Past it: 429.",
            rich_help_panel=LIMITS,
        ),
    ] = None,
    retry_after_s: Annotated[
        float | None,
        typer.Option(min=0, help="Sent with each --status-429.", rich_help_panel=LIMITS),
    ] = None,
    status_400: Annotated[float, share("The request is rejected (TEI: 422).")] = 0.0,
    status_429: Annotated[float, share("Too many requests.")] = 0.0,
    status_500: Annotated[float, share("The server fails.")] = 0.0,
    unauthorized: Annotated[float, share("401.")] = 0.0,
    quota: Annotated[float, share("The account is used up (429, Anthropic 402).")] = 0.0,
    overload: Annotated[float, share("503 (Anthropic 529, TEI 429).")] = 0.0,
    stall: Annotated[float, share("No answer at all.")] = 0.0,
    truncate: Annotated[float, share("Cut off at the token limit.")] = 0.0,
    malformed: Annotated[float, share("Not the agreed JSON.")] = 0.0,
    cut: Annotated[float, share("The connection closes within the body.")] = 0.0,
    refuse: Annotated[float, share("The model refuses.")] = 0.0,
    content_filter: Annotated[float, share("The answer is withheld.")] = 0.0,
    out_of_set: Annotated[float, share("A label that nobody offered.")] = 0.0,
    wrong_content_type: Annotated[float, share("A page of HTML.")] = 0.0,
    empty_choices: Annotated[float, share("An answer without content.")] = 0.0,
) -> None:
    """Serve stand-in models that answer, and fail, as told.

    They speak OpenAI's chat completions, responses and moderations, Anthropic's messages and TEI's
    /predict, with their errors, token counts and rate headers. Prints its base URL once it listens;
    ends on SIGINT or SIGTERM. GET /stats counts calls.

    Slow now and then, and refusing some: `model --slow 0.05 --slow-latency-ms 4000 --refuse 0.01`.
    With a quota: `model --requests-per-minute 500 --tokens-per-minute 100000`.
    """
    try:
        behaviour = Behaviour(
            seed=seed,
            latency_ms=latency_ms,
            latency_sigma=latency_sigma,
            slow=slow,
            slow_latency_ms=slow_latency_ms,
            latencies_ms=_latencies(latency_file) if latency_file else (),
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            retry_after_s=retry_after_s,
            status_400=status_400,
            status_429=status_429,
            status_500=status_500,
            unauthorized=unauthorized,
            quota=quota,
            overload=overload,
            stall=stall,
            truncate=truncate,
            malformed=malformed,
            cut=cut,
            refuse=refuse,
            content_filter=content_filter,
            out_of_set=out_of_set,
            wrong_content_type=wrong_content_type,
            empty_choices=empty_choices,
        )
        answers = msgspec.json.decode(labels.read_bytes(), type=dict[str, str]) if labels else None
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve_until_signal(behaviour, host, port, answers))
    except OSError as error:
        typer.echo(f"cannot listen on {host}:{port}: {error}", err=True)
        raise typer.Exit(1) from error


def _latencies(file: Path) -> tuple[float, ...]:
    """The latencies in a file, in ms. Raises `ValueError` or `OSError`."""
    latencies: list[float] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            latency = float(line)
        except ValueError:
            raise ValueError(f"{file}, line {number}: {line[:40]!r} is no number") from None
        if not 0 <= latency <= MAX_LATENCY_MS:
            most = f"{MAX_LATENCY_MS} ms"
            raise ValueError(f"{file}, line {number}: expected 0 to {most}, not {line[:40]}")
        latencies.append(latency)
    if not latencies:
        raise ValueError(f"{file}: expected at least one line, with a latency in ms")
    return tuple(latencies)


async def _serve_until_signal(
    behaviour: Behaviour, host: str, port: int, labels: Mapping[str, str] | None
) -> None:
    serving = asyncio.ensure_future(
        serve(behaviour, host, port, labels=labels, announce=_print_line)
    )
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, serving.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await serving


def _print_line(line: str) -> None:
    print(line, flush=True)
