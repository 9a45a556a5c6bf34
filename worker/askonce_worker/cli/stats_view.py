"""What sections of `askonce stats` are made from: the state, what of it to show, and tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from rich import box
from rich.console import RenderableType
from rich.table import Table

from askonce_worker.hits.reviews import ReviewTotals
from askonce_worker.observe.counters import Counts
from askonce_worker.observe.figures import TaskTotals, TenantTotals, totals_of
from askonce_worker.observe.totals import FleetState
from askonce_worker.observe.windows import WINDOWS
from askonce_worker.shadow.report import TaskChecks

ALL = "all"
"""The window without an end: since the store was set up."""
NOTHING = "-"
"""Where a figure is not known, or makes no sense."""


class View(NamedTuple):
    """What to show: `window` in tables of one window, `task` alone or None for all of them.

    `prompts`: task → system prompt.
    """

    state: FleetState
    window: str
    task: str | None
    prompts: Mapping[str, str]
    checks: Mapping[str, TaskChecks] = {}
    reviews: ReviewTotals | None = None

    def columns(self) -> dict[str, TaskTotals]:
        """Window → the figures of the task, or of all."""
        state = self.state
        found = {
            w.name: self._of(state.windows[w.name].tasks, state.windows[w.name].total)
            for w in WINDOWS
        }
        return found | {ALL: self._of(state.tasks, state.total)}

    def tasks(self) -> dict[str, TaskTotals]:
        """The figures of each task that was asked in the window."""
        tasks = self.state.tasks if self.window == ALL else self.state.windows[self.window].tasks
        return {
            name: totals
            for name, totals in tasks.items()
            if self.task in (None, name) and (totals.answered or totals.errors)
        }

    def total(self) -> TaskTotals:
        """The figures of the task, or of all, in the window."""
        return self.columns()[self.window]

    def tenants(self) -> dict[str, TenantTotals]:
        """The figures of each tenant in the window, over all tasks."""
        state = self.state
        return state.tenants if self.window == ALL else state.windows[self.window].tenants

    @property
    def since(self) -> str:
        """The window in words."""
        return "since the store was set up" if self.window == ALL else f"last {self.window}"

    def _of(self, tasks: Mapping[str, TaskTotals], total: TaskTotals) -> TaskTotals:
        if self.task is None:
            return total
        nothing: Counts = Counts()
        return tasks.get(self.task) or totals_of(nothing)


Section = Callable[[View], RenderableType | None]
"""A part of what is shown; None where it has nothing to say."""


def table(title: str, *columns: str, header: bool = True) -> Table:
    """A table whose first column is text and whose others are figures."""
    made = Table(
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        title=title,
        title_justify="left",
        show_header=header,
    )
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number else "left")
    return made


def percent(share: float | None) -> str:
    """A share for people."""
    return NOTHING if share is None else f"{share:.1%}"


def amount(money: float | None) -> str:
    """An amount of money: four digits that count, or cents where it is large."""
    if money is None:
        return NOTHING
    if money == 0:
        return "0"
    if money >= 100:  # noqa: PLR2004 -- from here on cents are enough
        return f"{money:,.2f}"
    return f"{money:.4f}" if money >= 0.01 else f"{money:.2g}"  # noqa: PLR2004
