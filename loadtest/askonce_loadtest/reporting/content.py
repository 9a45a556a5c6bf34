"""What a report says, without its looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple


class Series(NamedTuple):
    """Points that belong together. With `low` and `high` the lowest and highest of several runs."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


class Plot(NamedTuple):
    """Lines over numbers. `name` is that of its PNG, without the ending."""

    name: str
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    x_log: bool = False
    y_log: bool = False
    ticks: Sequence[float] = ()
    """Where the x axis has numbers; none: as it comes."""


class Bars(NamedTuple):
    """One bar a label, the first on top; `ours` stands out."""

    name: str
    title: str
    x_label: str
    labels: Sequence[str]
    values: Sequence[float]
    ours: str = ""
    x_log: bool = False


class Table(NamedTuple):
    """Rows of text. The first column is text, the others are numbers unless `prose` names them."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    prose: Sequence[int] = ()


class Goal(NamedTuple):
    """What a run was to reach, and whether it did."""

    what: str
    goal: str
    measured: str
    met: bool


Place = Literal["figures", "scale", "latency", "peers", "plan"]


class Section(NamedTuple):
    """One part of the page."""

    title: str
    text: Sequence[str] = ()
    """Paragraphs."""
    plots: Sequence[Plot | Bars] = ()
    tables: Sequence[Table] = ()
    goals: Sequence[Goal] = ()
    machine: dict[str, str | float] = {}  # noqa: RUF012  a NamedTuple's default, never changed
    command: str = ""
    """What has measured it: the command, without the program and where its output goes."""
