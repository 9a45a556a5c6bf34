"""Durations and sizes as people write them in TOML, and what TOML has and JSON has not."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, cast

from msgspec import Meta

Count = Annotated[int, Meta(gt=0)]
Duration = Annotated[float, Meta(gt=0, le=7 * 86400)]
"""Seconds, of things that happen within one process; at most a week."""
Amount = Annotated[float, Meta(ge=0, le=1e9)]
"""Of money."""

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)", re.ASCII | re.IGNORECASE)

MAX_SECONDS = 3650 * 86400.0
MAX_BYTES = 1 << 50


class Seconds(float):
    """A duration in seconds, above 0 and up to ten years."""


class Stale(float):
    """A duration in seconds, from 0 up to ten years."""


class Bytes(int):
    """A size in bytes, above 0; a kb is 1024 bytes, as in the store's own configuration."""


def parse_seconds(value: object) -> Seconds:
    """Read a number of seconds or a text like "24h". Raises `ValueError`."""
    expected = 'a duration like "24h", "5m", "30s" or "250ms", or a number of seconds'
    seconds = _quantity(value, _SECONDS, expected)
    if not 0 < seconds <= MAX_SECONDS:
        raise ValueError(f"expected a duration above 0 and up to 3650d, got {value!r}")
    return Seconds(seconds)


def parse_stale(value: object) -> Stale:
    """Read a duration that may be 0. Raises `ValueError`."""
    return Stale(0 if value == 0 and not isinstance(value, bool) else parse_seconds(value))


def parse_bytes(value: object) -> Bytes:
    """Read a number of bytes or a text like "64mb". Raises `ValueError`."""
    size = _quantity(value, _BYTES, 'a size like "64mb" or "1gb", or a number of bytes')
    if not 1 <= size <= MAX_BYTES:
        raise ValueError(f"expected a size above 0 and up to {MAX_BYTES >> 30}gb, got {value!r}")
    return Bytes(size)


def check_json(value: object) -> None:
    """Raise `ValueError` for what TOML has and JSON has not: dates, times, nan and inf."""
    if isinstance(value, Mapping):
        for item in cast("Mapping[str, object]", value).values():
            check_json(item)
    elif isinstance(value, list):
        for item in cast("list[object]", value):
            check_json(item)
    elif not isinstance(value, str | int | float) or value in (float("inf"), float("-inf")):
        raise ValueError(f"expected values that JSON has, got {value}")
    elif value != value:  # noqa: PLR0124 -- the definition of nan
        raise ValueError("expected values that JSON has, got nan")


def _quantity(value: object, units: dict[str, float] | dict[str, int], expected: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    if isinstance(value, str) and (match := _QUANTITY.fullmatch(value.strip())):
        unit = match[2].lower()
        if unit in units:
            return float(match[1]) * units[unit]
    raise ValueError(f"expected {expected}, got {value!r}")
