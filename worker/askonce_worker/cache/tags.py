"""Tags that answers carry without being told to: of their task, and of its version."""

from __future__ import annotations

TASK_PREFIX = "task:"
VERSION_PREFIX = "v:"
VERSION_BYTES = 4
"""Of the task digest. Two versions of one task that agree in these are one in four billion."""


def task_tag(name: str) -> str:
    """The tag of all answers of a task."""
    return TASK_PREFIX + name


def version_tag(digest: bytes) -> str:
    """The tag of answers of a version of a task, from its task digest."""
    return VERSION_PREFIX + digest[:VERSION_BYTES].hex()
