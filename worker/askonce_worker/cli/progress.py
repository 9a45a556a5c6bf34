"""The progress bar of `askonce run`: rate, hit share, errors and the time left, on a terminal."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from askonce_worker.cli.summary import Tally

EVERY_S = 0.2


@asynccontextmanager
async def shown(console: Console, tally: Tally, size: int | None) -> AsyncGenerator[None]:
    """Show the progress of `tally` for the length of a block, if `console` is a terminal.

    How far it is, is measured in bytes of input (`size`; None for a pipe): nobody has to count the
    lines of a large file first.
    """
    if not console.is_terminal:
        yield
        return
    known = size is not None
    ahead = (BarColumn(24), TaskProgressColumn()) if known else (SpinnerColumn(),)
    behind = (TextColumn("ETA"), TimeRemainingColumn()) if known else (TimeElapsedColumn(),)
    progress = Progress(
        *ahead,
        TextColumn("{task.description}"),
        *behind,
        console=console,
        auto_refresh=False,
        transient=True,
    )
    bar = progress.add_task(_text(tally, 0.0), total=size)
    async with anyio.create_task_group() as tasks:

        async def follow() -> None:
            done, since = 0, tally.started
            rate = 0.0
            while True:
                await anyio.sleep(EVERY_S)
                now = anyio.current_time()
                rate = _smoothed(rate, (tally.jobs - done) / max(1e-9, now - since))
                done, since = tally.jobs, now
                progress.update(bar, completed=tally.offset, description=_text(tally, rate))
                progress.refresh()

        with progress:
            tasks.start_soon(follow)
            yield
            tasks.cancel_scope.cancel()


def _smoothed(rate: float, latest: float) -> float:
    return latest if rate == 0.0 else 0.8 * rate + 0.2 * latest


def _text(tally: Tally, rate: float) -> str:
    answered = tally.sources.total()
    parts = [f"{tally.jobs:,} jobs", f"{rate:,.0f}/s"]
    if answered:
        parts.append(f"hits {tally.hits / answered:.1%}")
    if errors := tally.errors.total():
        parts.append(f"[red]errors {errors:,}[/red]")
    return "  ".join(parts)
