from __future__ import annotations

import pytest

from askonce_worker.config_units import parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7d", 604800), ("1.5h", 5400), ("5m", 300), (" 30 s ", 30), ("250MS", 0.25), (3, 3)],
)
def test_durations(value: object, seconds: float) -> None:
    assert parse_seconds(value) == seconds


@pytest.mark.parametrize(
    "value", ["", "s", "-1s", "5", "1e3s", "1w", None, True, "٣s", float("inf")]
)
def test_other_durations_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        parse_seconds(value)


@pytest.mark.parametrize(
    ("value", "size"), [("64mb", 64 << 20), ("1.5kb", 1536), ("2GB", 2 << 30), ("9 b", 9), (7, 7)]
)
def test_sizes(value: object, size: int) -> None:
    assert parse_bytes(value) == size


@pytest.mark.parametrize("value", ["", "mb", "64", "64m", 0, 0.5, -1, "9999999gb", True, None])
def test_other_sizes_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="expected a size"):
        parse_bytes(value)
