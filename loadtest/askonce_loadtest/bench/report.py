"""The report of a run: JSON for programs, a table for people."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from rich.console import Console
from rich.table import Table

from askonce_loadtest.bench.child import Figures
from askonce_loadtest.bench.figures import FIGURES, Goal, goals, over_runs
from askonce_loadtest.bench.plan import Plan
from askonce_loadtest.bench.running import Outcome

_FEW = 100


def as_json(plan: Plan, outcome: Outcome) -> bytes:
    """Return the figures as one JSON object, with goals, plan, machine and the single runs."""
    figures = over_runs(outcome.runs)
    document = {name: round(value, 3) for name, value in figures.items()}
    report = {"kind": "bench", **document} | {
        "goals": {
            name: {"goal": str(goal), "met": goal.met(figures[name])}
            for name, goal in goals(plan).items()
        },
        "plan": plan,
        "machine": outcome.machine,
        "runs": outcome.runs,
    }
    return msgspec.json.format(msgspec.json.encode(report), indent=2)


def print_table(console: Console, plan: Plan, outcome: Outcome) -> None:
    """Print the figures, each with its goal and whether it was met."""
    figures, wanted = over_runs(outcome.runs), goals(plan)
    runs = len(outcome.runs)
    table = Table(title="askonce bench" + (f", medians of {runs} runs" if runs > 1 else ""))
    table.add_column("figure", no_wrap=True)
    table.add_column("value", justify="right")
    if runs > 1:
        table.add_column("lowest … highest", justify="right")
    table.add_column("goal", justify="right")
    table.add_column("met")
    table.add_column("what it is")
    for figure in FIGURES:
        value = figures[figure.name]
        spread = [_spread(outcome.runs, figure.name)] if runs > 1 else []
        goal, met = _verdict(wanted.get(figure.name), value)
        table.add_row(figure.name, shown(value), *spread, goal, met, figure.meaning)
    console.print(table)
    console.print(", ".join(f"{name} {value}" for name, value in outcome.machine.items()))


def _verdict(goal: Goal | None, value: float) -> tuple[str, str]:
    if goal is None:
        return "", ""
    return str(goal), "[green]yes[/]" if goal.met(value) else "[red]no[/]"


def _spread(runs: Sequence[Figures], name: str) -> str:
    values = [run[name] for run in runs]
    return f"{shown(min(values))} … {shown(max(values))}"


def shown(value: float) -> str:
    """A figure for people: three digits where it is small, none after the point where it is not."""
    if value == int(value) or value >= _FEW:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 1 else f"{value:.2f}"
