"""`python -m askonce_loadtest bench`: measure, and say whether the design's goals are met."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from askonce_loadtest.bench.children import ChildError
from askonce_loadtest.bench.plan import QUICK, Plan
from askonce_loadtest.bench.report import as_json, print_table
from askonce_loadtest.bench.running import run_bench
from askonce_loadtest.interruptible import INTERRUPTED, run_until_signal
from askonce_queue.errors import AskonceError


def bench(
    *,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Jobs of the throughput runs.", show_default=f"{Plan().jobs}"),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Runs; figures are their medians.")] = 1,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small amounts: to see that it works.")
    ] = False,
) -> None:
    """Measure askonce on this machine: one worker, one producer, an embedded store.

    Takes about a minute a run (half of it with --quick) and both cores of a small machine; figures
    of a machine that is busy with something else mean little.
    """
    plan = QUICK if quick else Plan()
    if jobs is not None:
        plan = msgspec.structs.replace(plan, jobs=jobs)
    progress = Console(stderr=True)
    try:
        with progress.status("starting") as status:
            outcome = run_until_signal(run_bench(plan, repeat=repeat, tell=status.update))
    except (AskonceError, ChildError) as error:
        typer.echo(f"the bench failed: {error}", err=True)
        raise typer.Exit(1) from error
    except TimeoutError as error:
        typer.echo(f"the bench failed: a measurement took over {plan.limit_s:g} s", err=True)
        raise typer.Exit(1) from error
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        raise typer.Exit(INTERRUPTED) from error
    if json:
        sys.stdout.write(as_json(plan, outcome).decode() + "\n")
    else:
        print_table(Console(), plan, outcome)
