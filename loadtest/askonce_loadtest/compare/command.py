"""`python -m askonce_loadtest compare`: askonce beside what else one would take, in one run."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from askonce_loadtest.bench.children import ChildError
from askonce_loadtest.compare.catalogue import PEERS, Peer
from askonce_loadtest.compare.plan import QUICK, Plan
from askonce_loadtest.compare.plots import draw_plots
from askonce_loadtest.compare.report import as_json, print_tables
from askonce_loadtest.compare.running import Outcome, run_compare
from askonce_loadtest.compare.venvs import default_folder
from askonce_loadtest.interruptible import INTERRUPTED, run_until_signal
from askonce_queue.errors import AskonceError

_NAMES = ", ".join(peer.name for peer in PEERS)


def compare(
    *,
    only: Annotated[
        str, typer.Option(help=f"Peers, comma-separated; askonce always runs. Of: {_NAMES}.")
    ] = "",
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Least jobs of a throughput run.", show_default=f"{Plan().jobs}, for 3 s"
        ),
    ] = None,
    distinct: Annotated[
        int | None,
        typer.Option(min=1, help="Distinct texts among them.", show_default=f"{Plan().distinct}"),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Runs; figures are their medians.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder for compare.json and plots (PNG, SVG)."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small amounts: to see that it works.")
    ] = False,
    venvs: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="Folder of the peers' environments.",
            show_default="askonce/compare in the user's cache folder",
        ),
    ] = None,
) -> None:
    """Run the same jobs through askonce and its peers: queues with the usual recipe, and caches.

    The first run builds a virtual environment for each peer, from PyPI; a peer that cannot be
    installed is skipped, one that fails or hangs is ended, and the row says so. Then a repeat takes
    about three minutes for all peers (one of them LiteLLM's), on a machine that should have nothing
    else to do.

    For example:

    python -m askonce_loadtest compare --quick --only saq,cashews

    python -m askonce_loadtest compare --repeat 3 --out comparison
    """
    plan = QUICK if quick else Plan()
    for name, value in (("jobs", jobs), ("distinct", distinct)):
        if value is not None:
            plan = msgspec.structs.replace(plan, **{name: value})
    peers = _chosen(only)
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise typer.BadParameter(f"--out: cannot make {out}: {error}") from error
    progress = Console(stderr=True)
    try:
        with progress.status("starting") as status:
            outcome = run_until_signal(
                run_compare(
                    peers, plan, repeat=repeat, venvs=venvs or default_folder(), tell=status.update
                )
            )
    except (AskonceError, ChildError, TimeoutError) as error:
        typer.echo(
            f"the comparison failed: {str(error) or 'the model server did not start'}", err=True
        )
        raise typer.Exit(1) from error
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        raise typer.Exit(INTERRUPTED) from error
    document = as_json(plan, outcome)
    if json:
        sys.stdout.write(document.decode() + "\n")
    else:
        print_tables(Console(), plan, outcome)
    if out is not None:
        (out / "compare.json").write_bytes(document)
        _plot(out, outcome, progress.print)


def _chosen(only: str) -> Sequence[Peer]:
    """The peers to measure, with askonce's own rows of their kinds; a bad name is a usage error."""
    wanted = {name.strip() for name in only.split(",") if name.strip()}
    if not wanted:
        return PEERS
    if unknown := sorted(wanted - {peer.name for peer in PEERS}):
        raise typer.BadParameter(f"--only: unknown {', '.join(unknown)}; there are {_NAMES}")
    kinds = {peer.kind for peer in PEERS if peer.name in wanted}
    return [
        peer
        for peer in PEERS
        if peer.name in wanted or (peer.kind in kinds and not peer.requirements)
    ]


def _plot(out: Path, outcome: Outcome, tell: Callable[[str], None]) -> None:
    try:
        drawn = draw_plots(out, outcome.rows)
    except ImportError:
        tell("no plots: install matplotlib, or askonce[loadtest]")
        return
    tell(f"written: {out / 'compare.json'}" + "".join(f", {path.name}" for path in drawn))
