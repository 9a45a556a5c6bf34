"""What is said of the budgets of tasks, by `askonce stats` and `askonce doctor`."""

from __future__ import annotations

from typing import Literal

from rich.console import RenderableType

from askonce_worker.cli.stats_view import View, amount, percent, table
from askonce_worker.observe.totals import BudgetState

Standing = Literal["ok", "near", "used up"]


def standing(budget: BudgetState) -> Standing:
    """How a task stands today."""
    if budget.spent >= budget.per_day:
        return "used up"
    return "near" if budget.spent >= budget.warn_at * budget.per_day else "ok"


def described(budget: BudgetState, currency: str) -> str:
    """One line for people, with what to do."""
    found = (
        f"{amount(budget.spent)} of {budget.per_day:g} {currency} spent today "
        f"({percent(budget.share)}), renewed at 0:00 UTC"
    )
    match standing(budget):
        case "used up":
            return (
                f"{found}: its misses get budget_exceeded until then; raise [tasks.NAME.budget] "
                "per_day to go on"
            )
        case "near":
            return f"{found}: its misses will get budget_exceeded when that is used up"
        case _:
            return found


def budgets(view: View) -> RenderableType | None:
    """What was spent today of each task's budget, if there are any."""
    shown = {
        task: budget for task, budget in view.state.budgets.items() if view.task in (None, task)
    }
    if not shown:
        return None
    made = table(f"Budgets ({view.state.currency}), today (UTC)", "", "spent", "a day", "used", "")
    styles = {"ok": "", "near": "yellow", "used up": "bold red"}
    for task, budget in shown.items():
        how = standing(budget)
        made.add_row(
            task,
            amount(budget.spent),
            f"{budget.per_day:g}",
            percent(budget.share),
            "" if how == "ok" else how,
            style=styles[how],
        )
    return made
