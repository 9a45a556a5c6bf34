"""`python -m askonce_loadtest guard`: fails when a ratio is past its bound."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from askonce_loadtest.bench.children import ChildError
from askonce_loadtest.bench.guard import Verdict
from askonce_loadtest.bench.guard import guard as run_guard
from askonce_loadtest.bench.report import shown
from askonce_loadtest.interruptible import INTERRUPTED, run_until_signal
from askonce_queue.errors import AskonceError

PAST = 1
FAILED = 2


def guard(
    *,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure ratios and counts for a quarter of a minute, and hold them against their bounds.

    For CI: times are not judged, only what does not depend on the machine. What a busy machine
    makes worse is tried up to six times.

    Exit code: 0 all bounds hold; 1 one is passed; 2 it could not be measured; 130 after Ctrl-C.
    """
    try:
        with Console(stderr=True).status("starting") as status:
            verdicts = run_until_signal(run_guard(status.update))
    except (AskonceError, ChildError, TimeoutError) as error:
        typer.echo(f"the guard could not measure: {str(error) or 'it took too long'}", err=True)
        raise typer.Exit(FAILED) from error
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        raise typer.Exit(INTERRUPTED) from error
    show(verdicts, json=json)
    if not all(verdict.kept for verdict in verdicts):
        raise typer.Exit(PAST)


def show(verdicts: Sequence[Verdict], *, json: bool) -> None:
    """Print what was measured, against which bound, and why that is the bound if it is passed."""
    if json:
        rows = [
            {
                "name": verdict.bound.name,
                "value": round(verdict.value, 4),
                "most": verdict.bound.most,
                "kept": verdict.kept,
                "attempts": verdict.attempts,
            }
            for verdict in verdicts
        ]
        sys.stdout.write(msgspec.json.encode(rows).decode() + "\n")
        return
    table = Table(title="performance guard")
    for heading in ("what", "measured", "at most", "holds", "attempts"):
        table.add_column(heading, justify="left" if heading in {"what", "holds"} else "right")
    for verdict in verdicts:
        table.add_row(
            verdict.bound.what,
            shown(verdict.value),
            f"{verdict.bound.most:g}",
            "[green]yes[/]" if verdict.kept else "[red]NO[/]",
            str(verdict.attempts),
        )
    console = Console()
    console.print(table)
    for verdict in verdicts:
        if not verdict.kept:
            console.print(f"[red]{verdict.bound.name}[/] is past its bound: {verdict.bound.why}.")
