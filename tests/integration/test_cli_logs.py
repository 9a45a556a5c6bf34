"""Logs: the fields every line has, whoever wrote it, and what never stands in one."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from askonce_worker.observe import log


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Give the process its logging back."""
    root, structured = logging.getLogger(), structlog.get_config()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.configure(**structured)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_every_json_line_has_the_fields(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("json")
    structlog.get_logger("askonce.test").info("something happened", jobs=3, path=b"\xff")
    logging.getLogger("another.library").warning("it %s", "said")
    structlog.get_logger("askonce.test").debug("not shown")
    ours, theirs = lines(capsys)
    assert (ours["event"], ours["level"], ours["logger"], ours["jobs"]) == (
        "something happened",
        "info",
        "askonce.test",
        3,
    )
    assert ours["timestamp"].endswith("Z")
    assert (theirs["event"], theirs["level"], theirs["logger"]) == (
        "it said",
        "warning",
        "another.library",
    )


def test_exceptions_are_in_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("json")
    try:
        int("broken")
    except ValueError:
        structlog.get_logger("askonce.test").exception("it failed")
        logging.getLogger("another").exception("it failed too")
    for line in lines(capsys):
        assert "ValueError: invalid literal" in line["exception"]


def test_secrets_are_masked(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("json")
    structlog.get_logger("askonce.test").info(
        "connecting to redis://user:hunter2@host:6379/0",
        api_key="hunter2",
        headers={"Authorization": "hunter2", "Accept": "application/json"},
        url="redis://:hunter2@host/0 and http://host/x:y@z",
    )
    (line,) = lines(capsys)
    assert "hunter2" not in json.dumps(line)
    assert line["headers"] == {"Authorization": "***", "Accept": "application/json"}
    assert line["url"] == "redis://:***@host/0 and http://host/x:y@z"


def test_the_console_style_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("console")
    structlog.get_logger("askonce.test").warning("something happened", jobs=3)
    captured = capsys.readouterr().err
    assert "something happened" in captured
    assert "jobs=3" in captured
    assert "\x1b" not in captured
