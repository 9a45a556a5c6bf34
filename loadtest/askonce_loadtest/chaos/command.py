"""`python -m askonce_loadtest chaos`: break everything, and count what may never happen."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import tempfile
import time
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from askonce_loadtest.chaos.account import Report, make_report
from askonce_loadtest.chaos.cluster_store import CLUSTER_RECIPES, ClusterStore
from askonce_loadtest.chaos.driver import Tell, run_chaos
from askonce_loadtest.chaos.plan import Plan
from askonce_loadtest.chaos.processes import ChaosError
from askonce_loadtest.chaos.report import as_json, print_report
from askonce_loadtest.chaos.schedule import RECIPES, Fault, Recipe, make_schedule
from askonce_loadtest.chaos.store import SingleStore
from askonce_loadtest.interruptible import INTERRUPTED, run_until_signal
from askonce_loadtest.servers.waiting import ServerFailed
from askonce_queue.errors import AskonceError

CLUSTER_SHARDS = 6
"""Two for each primary."""
DEFAULT = Plan()


def chaos(
    *,
    minutes: Annotated[
        float, typer.Option(min=0.05, help="How long there is load and faults.")
    ] = DEFAULT.minutes,
    seed: Annotated[
        int, typer.Option(help="Decides which faults strike what and when.")
    ] = DEFAULT.seed,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = DEFAULT.workers,
    producers: Annotated[int, typer.Option(min=1, help="Producer processes.")] = DEFAULT.producers,
    rate: Annotated[
        float, typer.Option(min=1, help="Jobs a second, of all producers.")
    ] = DEFAULT.rate_per_s,
    faults: Annotated[
        str | None,
        typer.Option(metavar="KIND,KIND", show_default="all", help="Only these kinds of faults."),
    ] = None,
    without: Annotated[
        str | None,
        typer.Option(metavar="KIND,KIND", show_default="none", help="None of these kinds."),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            file_okay=False,
            show_default="only when something is found",
            help="Keep logs and journals there; it must be new or empty.",
        ),
    ] = None,
    everysec: Annotated[
        bool,
        typer.Option(
            "--everysec",
            help="The store's log is synced once a second, not at each write: then a kill -9 of "
            "the store may lose acknowledged writes of up to 2 s, and jobs with them.",
        ),
    ] = False,
    cluster: Annotated[
        bool,
        typer.Option(
            "--cluster",
            help="On three primaries with a replica each, which fail over; 6 shards.",
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Run workers, producers, a store and a model, break them by a seeded schedule, and count.

    Nothing accepted may be lost, doubled, wrong or stale, no question asked twice without a reason,
    nothing left behind. Kinds of faults: those of the schedule, which is printed on stderr. The
    same seed gives the same schedule; what the processes make of it depends on the machine.

    Takes its minutes, and up to two more until all have recovered and drained.

    Exit code: 0 all is well, 1 something was found (or the run failed), 130 after Ctrl-C.
    """
    plan = Plan(
        minutes=minutes,
        seed=seed,
        workers=workers,
        producers=producers,
        rate_per_s=rate,
        shards=CLUSTER_SHARDS if cluster else DEFAULT.shards,
        cluster=cluster,
        kinds=_kinds(faults, without, CLUSTER_RECIPES if cluster else RECIPES),
        appendfsync="everysec" if everysec else "always",
    )
    try:
        with _folder(keep) as folder:
            report = _run(plan, folder, _say)
            if keep is None and not report.ok:
                report.folder = str(_rescued(folder))
    except (AskonceError, ChaosError, ServerFailed) as error:
        typer.echo(f"the run failed: {error}", err=True)
        raise typer.Exit(1) from error
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        raise typer.Exit(INTERRUPTED) from error
    if json:
        sys.stdout.write(as_json(report).decode() + "\n")
    else:
        print_report(Console(), report)
    if not report.ok:
        _say(f"logs and journals: {report.folder}")
        raise typer.Exit(1)


def _kinds(only: str | None, without: str | None, recipes: Mapping[str, Recipe]) -> tuple[str, ...]:
    """The kinds of faults of a run. Raises `BadParameter` for one that there is not."""
    wanted = _named(only, "--faults", recipes) if only is not None else set(recipes)
    unwanted = _named(without, "--without", recipes) if without is not None else set[str]()
    return tuple(kind for kind in recipes if kind in wanted - unwanted)


def _named(text: str, option: str, recipes: Mapping[str, Recipe]) -> set[str]:
    names = {name.strip() for name in text.split(",") if name.strip()}
    if unknown := names - set(recipes):
        raise typer.BadParameter(
            f"{option}: no kind {', '.join(sorted(unknown))}; there are {', '.join(recipes)}"
        )
    return names


def _run(plan: Plan, folder: Path, tell: Tell) -> Report:
    schedule = make_schedule(plan, CLUSTER_RECIPES if plan.cluster else RECIPES)
    tell(f"seed {plan.seed}: {len(schedule)} faults in {plan.load_s:g} s")
    for fault in schedule:
        tell(str(fault))
    return run_until_signal(_whole(plan, schedule, folder, tell))


async def _whole(plan: Plan, schedule: list[Fault], folder: Path, tell: Tell) -> Report:
    began = time.monotonic()
    store = (ClusterStore if plan.cluster else SingleStore)(folder / "store", plan)
    run = await run_chaos(plan, schedule, store, folder, tell)
    tell("the account is made up")
    report = await make_report(plan, run, time.monotonic() - began)
    (folder / "report.json").write_bytes(as_json(report))
    return report


@contextlib.contextmanager
def _folder(keep: Path | None) -> Generator[Path]:
    """Where a run writes: a folder to be kept, or a temporary one."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="askonce-chaos-") as folder:
            yield Path(folder)
        return
    keep.mkdir(parents=True, exist_ok=True)
    if _any(keep.iterdir()):
        raise typer.BadParameter(f"--keep: {keep} is not empty")
    yield keep.absolute()


def _any(paths: Iterable[Path]) -> bool:
    return next(iter(paths), None) is not None


def _rescued(folder: Path) -> Path:
    """A copy of a temporary folder that stays: something was found, and somebody will look."""
    target = Path(tempfile.mkdtemp(prefix="askonce-chaos-found-"))
    shutil.copytree(folder, target, dirs_exist_ok=True)
    return target


def _say(line: str) -> None:
    typer.echo(line, err=True)
