"""A key that may be rotated: looked up again in time, and not more often."""

from __future__ import annotations

import pytest
import structlog

from askonce_queue.errors import ConfigError
from askonce_worker.models.fresh_key import REREAD_S, FreshKey
from tests.support.resolving import ShiftedClock


class Source:
    def __init__(self) -> None:
        self.key: str | None = "old"
        self.reads = 0

    def read(self) -> str | None:
        self.reads += 1
        if self.key == "":
            raise ConfigError("it is away")
        return self.key


def test_a_new_key_is_found_within_a_second_and_not_by_each_call() -> None:
    clock, source = ShiftedClock(), Source()
    key = FreshKey(source.read, clock)
    assert [key() for _ in range(100)] == ["old"] * 100
    assert source.reads == 1
    source.key = "new"
    clock.shift_s += REREAD_S
    assert [key() for _ in range(100)] == ["new"] * 100
    assert source.reads == 2
    assert "new" not in f"{key!r} {key}"


def test_a_key_that_is_away_is_used_on_and_said_once() -> None:
    clock, source = ShiftedClock(), Source()
    key = FreshKey(source.read, clock)
    with structlog.testing.capture_logs() as logs:
        for found in ("", "", "new", ""):
            source.key = found
            clock.shift_s += REREAD_S
            assert key() == ("new" if "new" in (found, key()) else "old")
    assert [line["log_level"] for line in logs] == ["warning"] * 2
    assert all("old" not in str(line) for line in logs)


def test_there_must_be_one_at_first() -> None:
    source = Source()
    source.key = ""
    with pytest.raises(ConfigError):
        FreshKey(source.read)
    source.key = None
    assert FreshKey(source.read)() is None
