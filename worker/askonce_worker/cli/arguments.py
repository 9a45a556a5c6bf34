"""Arguments and options that several commands of `askonce` share."""

from __future__ import annotations

import enum
import importlib.metadata
from pathlib import Path
from typing import Annotated

import typer


class Format(enum.StrEnum):
    """Of an input file."""

    JSONL = "jsonl"
    CSV = "csv"


class LogStyle(enum.StrEnum):
    """Of the logs on stderr."""

    CONSOLE = "console"
    JSON = "json"


class LaneName(enum.StrEnum):
    """Of the queue's two lanes."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


class WindowName(enum.StrEnum):
    """Of the rolling windows of `askonce stats`."""

    MINUTE = "1m"
    MINUTES = "5m"
    HOUR = "1h"
    DAY = "24h"
    ALL = "all"


def examples(*commands: str) -> str:
    """What stands below the help of a command; Markdown breaks lines after two blanks."""
    return "**Examples**\n\n" + "  \n".join(commands).replace("*", r"\*")


ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", show_default=False, help="Configuration file (TOML).")
]
InputFile = Annotated[
    Path,
    typer.Argument(
        metavar="INPUT",
        show_default=False,
        help="A JSON object a line with 'text' or 'messages' and optionally 'id'; or CSV with a "
        "header; '-' for stdin.",
    ),
]
TaskName = Annotated[
    str,
    typer.Option("--task", metavar="NAME", show_default=False, help="A task of the configuration."),
]
InputFormat = Annotated[Format | None, typer.Option("--format", show_default="by the file's name")]
Column = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="CSV column of the input.", show_default="text"),
]
Deadline = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        show_default="none",
        help="After so long, a job that has no answer gets the error deadline_exceeded instead of "
        "a model call. A line's own `deadline_s` goes first.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            version = importlib.metadata.version("askonce")
        except importlib.metadata.PackageNotFoundError:
            version = "(not installed)"
        typer.echo(f"askonce {version}")
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option(
        "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
    ),
]
