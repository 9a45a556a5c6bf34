"""Times on the command line: how they are given, and how they are shown."""

from __future__ import annotations

import datetime as dt

from askonce_worker.cli.loop import Failed
from askonce_worker.config_units import parse_seconds

_AGES = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def moment(option: str, text: str | None, now_ms: int) -> int | None:
    """A time, Unix ms, given as an age or in ISO 8601 (local, unless it says otherwise).

    Raises `Failed`.
    """
    if text is None:
        return None
    try:
        return max(0, now_ms - round(1000 * parse_seconds(text)))
    except ValueError:
        pass
    try:
        return max(0, round(1000 * dt.datetime.fromisoformat(text).timestamp()))
    except (ValueError, OverflowError, OSError) as error:
        raise Failed(
            f"{option}: expected an age like '2h' or a time like '2026-11-21T10:00', "
            f"got {text[:60]!r}"
        ) from error


def age(age_s: float) -> str:
    """An age in one unit: `5h`."""
    for unit_s, unit in _AGES:
        if age_s >= unit_s:
            return f"{age_s // unit_s:.0f}{unit}"
    return "0s"


def iso(ms: int | None) -> str | None:
    """A time for programs, in UTC; None for one that no calendar has."""
    if ms is None:
        return None
    try:
        found = dt.datetime.fromtimestamp(ms / 1000, dt.UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return found.isoformat(timespec="milliseconds").replace("+00:00", "Z")
