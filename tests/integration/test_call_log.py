"""With `log_level = "debug"` a worker logs every model call before it is made, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.askonce_command import CONFIG, Askonce

TEXTS = ["first", "second", "first"]


@pytest.fixture
def askonce(tmp_path: Path) -> Iterator[Askonce]:
    with Askonce(tmp_path) as command:
        yield command


def logged(askonce: Askonce, level: str) -> list[dict[str, Any]]:
    """What a worker logs while it answers three jobs."""
    askonce.configure(f'{CONFIG}log_level = "{level}"\n')
    askonce.write("in.jsonl", [{"id": str(i), "text": text} for i, text in enumerate(TEXTS)])
    askonce("enqueue", "askonce.toml", "in.jsonl", "--task", "size")
    done = askonce("worker", "askonce.toml", "--burst", "--log", "json")
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_every_call_has_its_reason_and_every_flight_its_end(askonce: Askonce) -> None:
    lines = logged(askonce, "debug")
    calls = [line for line in lines if line["event"] == "model call"]
    ends = [line for line in lines if line["event"] == "flight ended"]
    assert len(calls) == len(ends) == len(askonce.calls()) == 2
    assert {call["reason"] for call in calls} == {"fill"}
    assert {end["end"] for end in ends} == {"filled"}
    assert {call["attempt"] for call in calls} == {1}
    flights = {(call["task"], call["key"], call["began"]) for call in calls}
    assert flights == {(end["task"], end["key"], end["began"]) for end in ends}
    assert all(len(bytes.fromhex(call["key"])) == 32 for call in calls)
    assert all(call["granted_until"] > call["began"] for call in calls)


def test_nothing_of_it_is_logged_unless_asked_for(askonce: Askonce) -> None:
    lines = logged(askonce, "info")
    assert {line["level"] for line in lines} == {"info"}
    assert not {"model call", "flight ended"} & {line["event"] for line in lines}


def test_less_can_be_logged_too(askonce: Askonce) -> None:
    assert logged(askonce, "warning") == []
