"""The parts of `askonce stats` about being wrong: shadow checks, and what people said of hits."""

from __future__ import annotations

from rich import box
from rich.console import RenderableType
from rich.table import Table

from askonce_queue.store import Store
from askonce_worker.build import build_policy
from askonce_worker.cli.hits_shown import rates_table
from askonce_worker.cli.stats_view import View
from askonce_worker.config import Settings
from askonce_worker.hits.reviews import ReviewTotals, read_reviews
from askonce_worker.observe.totals import FleetReader, FleetState, Terms
from askonce_worker.shadow.report import TaskChecks, describe, read_checks
from askonce_worker.shadow.verdicts import VerdictReader


class Everything(FleetState, kw_only=True):
    """The state of the fleet, with what shadow checks of each task, and people, have found."""

    checks: dict[str, TaskChecks]
    reviews: ReviewTotals


class ChecksReader:
    """Reads the state of a pool and what shadow checks have found, again and again."""

    def __init__(self, store: Store, settings: Settings, terms: Terms) -> None:
        self._store = store
        self._fleet = FleetReader(store, settings.worker.pool, terms)
        self._verdicts = VerdictReader(store)
        self._policies = {name: build_policy(task) for name, task in settings.tasks.items()}

    async def read(self) -> Everything:
        """Read it now. Raises redis-py's errors."""
        state = await self._fleet.read()
        checks = await read_checks(self._verdicts, self._policies)
        fields = {name: getattr(state, name) for name in state.__struct_fields__}
        reviews = (await read_reviews(self._store)).totals()
        return Everything(**fields, checks=checks, reviews=reviews)


def checks(view: View) -> RenderableType | None:
    """What shadow checks have found in the last 24 hours, a few lines a task."""
    table = Table(
        box=box.SIMPLE,
        show_header=False,
        padding=(0, 1, 0, 0),
        title="Shadow checks (last 24h)",
        title_justify="left",
    )
    table.add_column()
    table.add_column()
    for task, found in view.checks.items():
        if view.task not in {None, task}:
            continue
        limited = found.age_limit_s is not None
        for number, line in enumerate(describe(found)):
            style = "bold red" if limited and not number else ""
            table.add_row("" if number else task, line, style=style)
    return table if table.row_count else None


def reviews(view: View) -> RenderableType | None:
    """How often people called a hit wrong."""
    found = view.reviews
    return rates_table(found) if found is not None and found.total.reviewed else None
