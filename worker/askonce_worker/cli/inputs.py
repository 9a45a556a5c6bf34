"""What `run` and `enqueue` have in common on their command lines: task, format, column."""

from __future__ import annotations

import functools
from pathlib import Path

from askonce_queue.errors import InvalidJob
from askonce_queue.job import check_deadline
from askonce_queue.ledger import Limits
from askonce_worker.cli.loop import Failed
from askonce_worker.cli.records import Format, read_csv, read_jsonl
from askonce_worker.cli.source import Read
from askonce_worker.config import Settings, WorkerConfig
from askonce_worker.config_tables import did_you_mean


def known_task(settings: Settings, task: str) -> None:
    """Raise `Failed` for a task that is not in the configuration."""
    if task not in settings.tasks:
        known = ", ".join(settings.tasks) or "none"
        raise Failed(
            f"{settings.source.path}: no task {task!r}{did_you_mean(task, settings.tasks)}; "
            f"known tasks: {known}"
        )


def reader_of(
    path: Path,
    given: Format | None,
    column: str | None,
    task: str,
    deadline_s: float | None = None,
) -> Read:
    """How to read an input: as `given`, else by its name; stdin is CSV when a column is named.

    `deadline_s` is that of lines without one. Raises `Failed` for a column of JSONL, and for a
    deadline that no job can have.
    """
    if deadline_s is not None:
        try:
            check_deadline(deadline_s)
        except InvalidJob as error:
            raise Failed(f"--deadline: {error}") from error
    if given is not None:
        kind: Format = given
    elif str(path) == "-":
        kind = "csv" if column is not None else "jsonl"
    else:
        kind = "csv" if path.suffix.lower() == ".csv" else "jsonl"
    if kind == "csv":
        return functools.partial(read_csv, task=task, column=column, deadline_s=deadline_s)
    if column is not None:
        raise Failed("--column is for CSV; lines of JSON have 'text' or 'messages'")
    return functools.partial(read_jsonl, task=task, deadline_s=deadline_s)


def limits_of(worker: WorkerConfig) -> Limits:
    """The bounds that enqueueing keeps, as configured."""
    return Limits(
        max_backlog=worker.max_backlog,
        max_unread=worker.max_unread,
        max_memory_share=worker.max_memory_share,
    )
