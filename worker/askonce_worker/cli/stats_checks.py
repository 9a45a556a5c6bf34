"""The part of `askonce stats` about shadow checks."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table

from askonce_worker.shadow.report import TaskChecks, describe


def checks_table(checks: Mapping[str, TaskChecks]) -> Table:
    """What shadow checks have found, a few lines a task."""
    table = Table(
        box=box.SIMPLE,
        show_header=False,
        padding=(0, 1, 0, 0),
        title="Shadow checks",
        title_justify="left",
    )
    table.add_column()
    table.add_column()
    for task, found in checks.items():
        limited = found.age_limit_s is not None
        for number, line in enumerate(describe(found)):
            style = "bold red" if limited and not number else ""
            table.add_row("" if number else task, line, style=style)
    return table
