"""The report of a run: JSON for programs, tables for people."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from rich.console import Console
from rich.table import Table

from askonce_loadtest.chaos.account import VIOLATIONS, Report
from askonce_loadtest.chaos.costs import shown

MOST_SHOWN = 5
"""Violations of a kind that people are shown; the JSON has all."""


def as_json(report: Report) -> bytes:
    """Return the report as one JSON object."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2)


def print_report(console: Console, report: Report) -> None:
    """Print what was counted, and what of it may not be."""
    console.print(_counts(report))
    console.print(_costs(report))
    table = Table(title="what may never happen")
    table.add_column("kind", no_wrap=True)
    table.add_column("count", justify="right")
    table.add_column("what it is")
    for kind, meaning in VIOLATIONS.items():
        count = report.violations[kind]
        style = "red" if count else ""
        table.add_row(kind, str(count), meaning, style=style)
    console.print(table)
    for kind in VIOLATIONS:
        found = [one for one in report.found if one.kind == kind]
        for one in found[:MOST_SHOWN]:
            console.print(f"{kind}: {one.what} [{one.where}]", markup=False, highlight=False)
        if len(found) > MOST_SHOWN:
            console.print(f"{kind}: … and {len(found) - MOST_SHOWN} more", highlight=False)
    verdict = "nothing was lost, doubled or wrong" if report.ok else "NOT as it must be"
    console.print(f"seed {report.seed}, {report.took_s:g} s: {verdict}", highlight=False)


def _counts(report: Report) -> Table:
    table = Table(title=f"askonce chaos, {report.plan.minutes:g} min, seed {report.seed}")
    table.add_column("what", no_wrap=True)
    table.add_column("how much")
    rows: dict[str, str] = {
        "jobs": _listed(report.counts),
        "model calls by reason": _listed(report.calls),
        "flights with a lease": _listed(report.flights),
        "answers by source": _listed(report.sources),
        "errors by code": _listed(report.errors),
        "seconds to the reply": _listed(report.latency_s),
        "processes": _listed(report.processes),
        "faults": _listed(report.faults),
    }
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _costs(report: Report) -> Table:
    table = Table(title="what each fault costs: seconds to the reply, calls a strike")
    for name in ("while", "strikes", "p50", "p99", "max", "takeovers", "retries"):
        table.add_column(name, justify="left" if name == "while" else "right", no_wrap=True)
    for row in shown(report.costs):
        table.add_row(*row)
    return table


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:,}" for name, value in values.items()) or "none"
