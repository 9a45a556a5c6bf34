"""`python -m askonce_loadtest model`: the stand-in model server as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
import typer
import uvloop

from askonce_loadtest.model_behaviour import Behaviour
from askonce_loadtest.model_server import serve

Share = Annotated[float, typer.Option(min=0, max=1, help="Share of all calls, 0 to 1.")]


def model(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 chooses a free one.")] = 8900,
    seed: Annotated[int, typer.Option(help="Decides which calls get which fault.")] = 0,
    latency_ms: Annotated[float, typer.Option(min=0, help="Time to an answer (median).")] = 50.0,
    latency_sigma: Annotated[float, typer.Option(min=0, help="Lognormal shape; 0: fixed.")] = 0.0,
    retry_after_s: Annotated[float | None, typer.Option(min=0, help="Sent with each 429.")] = None,
    status_429: Share = 0.0,
    status_500: Share = 0.0,
    stall: Share = 0.0,
    truncate: Share = 0.0,
    malformed: Share = 0.0,
    cut: Share = 0.0,
    refuse: Share = 0.0,
    out_of_set: Share = 0.0,
    wrong_content_type: Share = 0.0,
    empty_choices: Share = 0.0,
    labels: Annotated[
        Path | None, typer.Option(dir_okay=False, help="JSON file, {text: label}.")
    ] = None,
) -> None:
    """Serve a stand-in OpenAI-compatible model that answers, and fails, as told.

    Prints its base URL once it listens; ends on SIGINT or SIGTERM.
    """
    try:
        behaviour = Behaviour(
            seed=seed,
            latency_ms=latency_ms,
            latency_sigma=latency_sigma,
            retry_after_s=retry_after_s,
            status_429=status_429,
            status_500=status_500,
            stall=stall,
            truncate=truncate,
            malformed=malformed,
            cut=cut,
            refuse=refuse,
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
