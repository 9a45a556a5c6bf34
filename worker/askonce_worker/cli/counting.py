"""A progress bar for work that is counted; it appears on a terminal when the work takes long."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import anyio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PATIENCE_S = 0.7
"""What is over by then needs no bar."""
EVERY_S = 0.2


@asynccontextmanager
async def counting(what: str, done: Callable[[], int], total: int) -> AsyncGenerator[None]:
    """Show on stderr how much of `total` is `done` for the length of a block."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        auto_refresh=False,
        transient=True,
    )
    bar = progress.add_task(what, total=total)

    async def follow() -> None:
        await anyio.sleep(PATIENCE_S)
        with progress:
            while True:
                progress.update(bar, completed=done())
                progress.refresh()
                await anyio.sleep(EVERY_S)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        yield
        tasks.cancel_scope.cancel()
