"""`python -m askonce_loadtest scale`: what a job costs as things grow."""

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
from askonce_loadtest.bench.machine import describe_machine
from askonce_loadtest.interruptible import INTERRUPTED, run_until_signal
from askonce_loadtest.scale.axes import Axis, make_axes
from askonce_loadtest.scale.document import (
    AxisDocument,
    MemoryDocument,
    axis_document,
    memory_document,
    print_axis,
    print_memory,
)
from askonce_loadtest.scale.ground import ground
from askonce_loadtest.scale.hit_ratio.comparing import compare
from askonce_loadtest.scale.hit_ratio.policies import available_policies, versions
from askonce_loadtest.scale.hit_ratio.traces import Trace, read_trace, synthetic_traces
from askonce_loadtest.scale.measuring import LEAST_MAXMEMORY_BYTES, measure_axis
from askonce_loadtest.scale.point import Point
from askonce_loadtest.servers.waiting import ServerFailed
from askonce_queue.errors import AskonceError

MEMORY = "memory"
MOST_KEYS = 1_000_000
FULL_KEYS = 10_000_000
QUICK_KEYS = 10_000
QUICK = Point(jobs=3_000, runs=1)
REQUESTS, QUICK_REQUESTS = 200_000, 20_000
SEED = 1

Tell = Callable[[str], None]


def scale(
    *,
    out: Annotated[
        Path, typer.Option("--out", file_okay=False, help="Folder for the JSON, one file an axis.")
    ] = Path("loadtest-results"),
    only: Annotated[
        str | None,
        typer.Option(
            metavar="AXIS,AXIS",
            show_default="all",
            help="Of keys, workers, shards, size, hits, memory.",
        ),
    ] = None,
    full: Annotated[
        bool,
        typer.Option("--full", help=f"Keys up to {FULL_KEYS:,}: about 3 GB of memory."),
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small amounts: to see that it works.")
    ] = False,
    max_keys: Annotated[
        int | None,
        typer.Option(min=1_000, show_default=f"{MOST_KEYS:,}", help="Most distinct keys."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=100, show_default="60,000", help="Jobs of a run.")
    ] = None,
    repeat: Annotated[
        int | None, typer.Option(min=1, show_default="3", help="Runs a point; medians count.")
    ] = None,
    trace: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            show_default=False,
            help="For the memory axis, beside synthetic ones: JSON lines with `key` or `text`, "
            ".gz too. Repeatable.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Measure the CPU of workers and store per job against keys, workers, shards, size and hits.

    And the hit ratio of the memory tier against other caches. About seven minutes on two cores
    (--quick: two; --full: ten more), of which it takes both. An axis' file is replaced whenever
    that axis is measured, others stay.

    For example:

        python -m askonce_loadtest scale --out results

        python -m askonce_loadtest scale --only memory --trace requests.jsonl.gz --out results

    Exit code: 0 measured, whatever the goals; 1 the run failed; 130 after Ctrl-C.
    """
    most_keys = max_keys or (FULL_KEYS if full else QUICK_KEYS if quick else MOST_KEYS)
    base = QUICK if quick else Point()
    base = msgspec.structs.replace(base, jobs=jobs or base.jobs, runs=repeat or base.runs)
    axes = make_axes(base, most_keys=most_keys)
    names = _names(only, [*axes, MEMORY])
    progress = Console(stderr=True)
    documents: list[AxisDocument | MemoryDocument] = []
    try:
        traces = _traces(trace or [], quick=quick) if MEMORY in names else []
        out.mkdir(parents=True, exist_ok=True)
        with progress.status("starting") as status:
            for name in names:
                document = (
                    _compare(traces, status.update)
                    if name == MEMORY
                    else run_until_signal(_measure(axes[name], status.update))
                )
                path = out / f"scale-{name}.json"
                path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2))
                documents.append(document)
                progress.print(f"{path}")
    except (AskonceError, ChildError, ServerFailed, OSError) as error:
        typer.echo(f"scale failed: {error}", err=True)
        raise typer.Exit(1) from error
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        raise typer.Exit(INTERRUPTED) from error
    if json:
        sys.stdout.write(msgspec.json.encode(documents).decode() + "\n")
        return
    console = Console()
    for document in documents:
        if isinstance(document, MemoryDocument):
            print_memory(console, document)
        else:
            print_axis(console, document)


def _names(only: str | None, known: Sequence[str]) -> list[str]:
    """The axes that are wanted, in our order. Raises `BadParameter` for one that there is not."""
    if only is None:
        return list(known)
    wanted = {name.strip() for name in only.split(",") if name.strip()}
    if unknown := wanted - set(known):
        raise typer.BadParameter(
            f"--only: no axis {', '.join(sorted(unknown))}; there are {', '.join(known)}"
        )
    return [name for name in known if name in wanted]


def _traces(paths: Sequence[Path], *, quick: bool) -> list[Trace]:
    most = QUICK_REQUESTS if quick else REQUESTS
    return [*synthetic_traces(most, SEED), *map(read_trace, paths)]


def _compare(traces: Sequence[Trace], tell: Tell) -> MemoryDocument:
    _, missing = available_policies()
    return memory_document(compare(traces, tell), missing, versions())


async def _measure(axis: Axis, tell: Tell) -> AxisDocument:
    async with ground(cluster=False, maxmemory_bytes=LEAST_MAXMEMORY_BYTES) as on:
        machine = await describe_machine(on.servers[0])
    return axis_document(axis, await measure_axis(axis, tell), machine)
