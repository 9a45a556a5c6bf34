"""`askonce stats`: windows, verdict and money as people see them, once and all the time."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.askonce_command import CONFIG, TIMEOUT_S, Askonce
from tests.support.terminal import terminal

PRICES = """
[models.sizes.price]
per_call = 0.002

[costs]
store_per_hour = 0.05
currency = "EUR"
"""
TEXTS = [{"text": f"text {n % 40}"} for n in range(400)]


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Askonce]:
    """A store that has seen 400 jobs with 40 questions."""
    with Askonce(tmp_path_factory.mktemp("busy")) as askonce:
        askonce.configure(CONFIG + PRICES)
        askonce.write("in.jsonl", TEXTS)
        askonce.run("in.jsonl")
        yield askonce


def stats(askonce: Askonce, *args: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(askonce("stats", "askonce.toml", "--json", *args).stdout)
    return found


def text_of(shown: str) -> str:
    """What is on a terminal, without its colours and moves."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)


def test_windows_verdict_and_money_as_json(busy: Askonce) -> None:
    found = stats(busy)
    assert list(found["windows"]) == ["1m", "5m", "1h", "24h"]
    for name, window in found["windows"].items():
        total = window["total"]
        assert total["misses"] == 40, name
        assert sum(total["hits"].values()) == 360
        assert (total["hit_rate"], total["verdict"]) == (0.9, "paying")
        assert total["cost"]["spent"] == pytest.approx(0.08)
        assert total["cost"]["avoided"] == pytest.approx(0.72)
        assert total["never_read"]["not_read_yet"] <= 40
        assert window["tasks"]["size"]["hit_rate"] == 0.9
    assert found["currency"] == "EUR"
    assert (found["answers_evicted"], found["answers_expired"]) == (0, 0)


def test_what_people_see(busy: Askonce) -> None:
    shown = busy("stats", "askonce.toml").stdout
    assert all(len(line) <= 80 for line in shown.splitlines())
    shown = " ".join(shown.split())
    for words in (
        *("hit rate 90.0% 90.0% 90.0% 90.0% 90.0%", "The cache is paying (90.0% hits, last 24h)"),
        *("Money, EUR", "spent on calls 0.0800", "avoided by hits 0.7200"),
        *("C x (1 - h)", "uncached 2.0000", "Tasks, last 24h", "0 expired, 0 evicted"),
    ):
        assert words in shown, f"{words}\n{shown}"
    shown = busy("stats", "askonce.toml", "--window", "all").stdout
    assert "(90.0% hits, since the store was set up)" in shown


def test_one_task_alone(busy: Askonce) -> None:
    shown = busy("stats", "askonce.toml", "--task", "size", "--window", "5m").stdout
    assert shown.startswith("Task size")
    assert "Tasks, last 5m" in shown
    assert " all " not in shown.partition("Tasks")[2]
    said = busy("stats", "askonce.toml", "--task", "sice", code=2).stderr
    assert "no task 'sice' is configured or was ever counted; tasks: size" in said


# --watch


def test_watching_until_ctrl_c(busy: Askonce) -> None:
    with terminal(busy, "stats", "askonce.toml", "--watch") as shown:
        shown.until("The cache is")
        assert "\x1b[?1049h" in shown.shown  # a screen of its own
        busy.run("in.jsonl")
        shown.until("95.0%")  # on the screen, without being asked
        shown.process.send_signal(signal.SIGINT)
        assert shown.end() == 128 + signal.SIGINT
        after = shown.shown.rpartition("\x1b[?1049l")
        assert after[1], "back on the screen of before"
        assert "95.0%" in text_of(after[2])
        assert "Traceback" not in shown.shown
        assert "\x1b[?25h" in shown.shown  # the cursor is back


def test_watching_as_json_is_an_object_a_line(busy: Askonce) -> None:
    process = busy.start("stats", "askonce.toml", "--watch", "--json")
    assert process.stdout is not None
    first, second = (json.loads(process.stdout.readline()) for _ in range(2))
    assert first["total"] == second["total"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(TIMEOUT_S) == 128 + signal.SIGTERM
