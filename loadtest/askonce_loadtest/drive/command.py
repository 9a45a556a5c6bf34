"""`python -m askonce_loadtest drive`: an open loop at one rate, or the highest that will do."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NamedTuple, cast

import msgspec
import typer
import uvloop
from rich.console import Console

from askonce_loadtest.bench.children import ChildError
from askonce_loadtest.drive.replay import Survey, survey
from askonce_loadtest.drive.session import Found, Objective, Session, Setup, opened
from askonce_loadtest.drive.shown import print_found, print_trial, told
from askonce_loadtest.drive.trial import Pace, Trial
from askonce_loadtest.workloads.lines import FileError
from askonce_queue.errors import AskonceError
from askonce_worker.cli.loop import Failed

DOUBTFUL = 1
UNUSABLE = 2
INTERRUPTED = 130


def drive(
    file: Annotated[Path, typer.Argument(help="A workload (see `workload`).", dir_okay=False)],
    *,
    rate: Annotated[
        float | None,
        typer.Option(
            min=1, show_default="the workload's", help="Requests a second; of a search: the first."
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each run is measured.")] = 10.0,
    warm_up_s: Annotated[float, typer.Option(min=0, help="Sent before that, uncounted.")] = 1.0,
    find_rate: Annotated[
        bool, typer.Option("--find-rate", help="Search for the highest rate within --p99-ms.")
    ] = False,
    p99_ms: Annotated[float, typer.Option(min=0.1, help="The objective of the search.")] = 25.0,
    precision: Annotated[
        float, typer.Option(min=0.005, max=1, help="When the search is exact enough.")
    ] = 0.05,
    repeats: Annotated[
        int, typer.Option(min=1, max=99, help="Runs a rate, of which the majority counts.")
    ] = 1,
    max_rate: Annotated[float, typer.Option(min=1, help="Where the search ends.")] = 1_000_000.0,
    max_errors: Annotated[
        float, typer.Option(min=0, max=1, help="Share of errors that meets the objective.")
    ] = 0.0,
    config: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            show_default="a deployment of its own",
            help="Drive the deployment of this askonce.toml; its workers must be up.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes of its own.")] = 1,
    model_latency_ms: Annotated[
        float, typer.Option(min=0, help="Of the stand-in model of its own.")
    ] = 50.0,
    prime: Annotated[
        bool, typer.Option("--prime", help="Ask every question once before (a warm cache).")
    ] = False,
    drain_s: Annotated[float, typer.Option(min=0, help="Wait for the last replies.")] = 30.0,
    max_late_ms: Annotated[
        float,
        typer.Option(min=0.1, help="Invalid if over 1 % is sent later than this by the driver."),
    ] = 10.0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    r"""Send a workload when it is due, whatever became of the requests before, and time it.

    With workers, a store and a stand-in model of its own (all end with it), or with --config
    through a deployment that runs. Latency counts from when a request was due.

    Example: drive w.jsonl --rate 5000 --seconds 30 --prime

    Example: drive w.jsonl --find-rate --p99-ms 25 --repeats 3

    Example: drive trace.jsonl --config askonce.toml --json > run.json

    Exit code: 0 done, 1 the run is invalid, had errors, or no rate met the objective, 2 wrong
    usage or no store, 130 after Ctrl-C (which prints what there is; a second one does not).
    """
    if config is not None and not config.is_file():
        raise typer.BadParameter(f"{config}: no such file")
    setup = Setup(
        workload=file,
        config=config,
        workers=workers,
        model_latency_ms=model_latency_ms,
        prime=prime,
    )
    pace = Pace(
        rate_per_s=rate,
        seconds=seconds,
        warm_up_s=warm_up_s,
        drain_s=drain_s,
        max_late_ms=max_late_ms,
    )
    objective = Objective(
        p99_ms=p99_ms,
        max_error_share=max_errors,
        start_per_s=min(rate or 1_000.0, max_rate),
        highest_per_s=max_rate,
        precision=precision,
        repeats=repeats,
    )
    progress = _Progress()
    try:
        found = survey(file)
        work = _Work(setup, found, pace, objective if find_rate else None, progress)
        with _one_error(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            outcome, interrupted = runner.run(_run(work))
    except (AskonceError, FileError, Failed) as error:
        progress.end()
        typer.echo(f"askonce_loadtest: {error}", err=True)
        raise typer.Exit(UNUSABLE) from error
    except (ChildError, TimeoutError) as error:
        progress.end()
        typer.echo(f"the run failed: {str(error) or 'a process did not start'}", err=True)
        raise typer.Exit(DOUBTFUL) from error
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        progress.end()
        raise typer.Exit(INTERRUPTED) from error
    progress.end()
    _show(setup, found, outcome, json=json)
    if interrupted:
        raise typer.Exit(INTERRUPTED)
    if not _good(outcome):
        raise typer.Exit(DOUBTFUL)


@contextmanager
def _one_error() -> Generator[None]:
    """Raise the one error in a group by itself: task groups wrap what passes through them."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise _only(group) from None


def _only(error: BaseException) -> BaseException:
    """The one error in a group, or the group if there are several."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return _only(group.exceptions[0]) if len(group.exceptions) == 1 else group
    return error


class _Progress:
    """One line on stderr that is written over, on a terminal; elsewhere only what stays."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()

    def tell(self, line: str) -> None:
        """Say how it is going."""
        if self._terminal:
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()

    def keep(self, line: str) -> None:
        """Say something that stays."""
        self.end()
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    def end(self) -> None:
        """Clear the line."""
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


class _Work(NamedTuple):
    setup: Setup
    found: Survey
    pace: Pace
    objective: Objective | None
    progress: _Progress


async def _run(work: _Work) -> tuple[Trial | Found, bool]:
    """Do the work; return what came of it, and whether it was interrupted.

    The first SIGINT or SIGTERM ends the run under way, a second one everything.
    """
    loop = asyncio.get_running_loop()
    working = asyncio.current_task()
    assert working is not None
    current: Session | None = None

    def interrupt() -> None:
        if current is None or current.stopped:
            working.cancel()
        else:
            current.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    async with opened(work.setup, work.found, work.progress.tell) as session:
        current = session
        if work.objective is None:
            outcome: Trial | Found = await session.drive(work.pace)
        else:
            outcome = await session.find(
                work.pace, work.objective, lambda one: work.progress.keep(told(one))
            )
        return outcome, session.stopped


def _good(outcome: Trial | Found) -> bool:
    if isinstance(outcome, Found):
        return outcome.rate_per_s is not None
    return not (outcome.invalid or outcome.errors or outcome.unanswered)


def _show(setup: Setup, found: Survey, outcome: Trial | Found, *, json: bool) -> None:
    if json:
        document = {
            "workload": {"file": str(setup.workload), **found._asdict()},
            "deployment": "own" if setup.config is None else str(setup.config),
            "workers": setup.workers if setup.config is None else None,
            "model_latency_ms": setup.model_latency_ms if setup.config is None else None,
            "primed": setup.prime,
            "search" if isinstance(outcome, Found) else "run": outcome,
        }
        encoded = msgspec.json.encode(document)
        sys.stdout.write(msgspec.json.format(encoded, indent=2).decode() + "\n")
    elif isinstance(outcome, Found):
        print_found(Console(), outcome)
    else:
        print_trial(Console(), outcome)
