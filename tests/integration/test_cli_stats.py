"""`askonce stats`: windows, verdict and money as people see them, once and all the time."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from askonce_queue import names
from askonce_queue.connections import connect_sync
from askonce_queue.embedded import EmbeddedStore
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


@pytest.fixture
def askonce(tmp_path: Path) -> Iterator[Askonce]:
    with Askonce(tmp_path) as command:
        command.configure(CONFIG + PRICES)
        yield command


@pytest.fixture
def busy(askonce: Askonce) -> Askonce:
    """A store that has seen 400 jobs with 40 questions."""
    askonce.write("in.jsonl", TEXTS)
    askonce.run("in.jsonl")
    return askonce


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
    for words in (
        *(" hit rate          90.0%  90.0%", "The cache is paying (90.0% hits, last 24h)"),
        *("Money, EUR", "spent on calls   0.0800", "avoided by hits  0.7200"),
        *("C x (1 - h)", "uncached         2.0000", "Tasks, last 24h", "0 expired, 0 evicted"),
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


def test_a_cache_that_is_not_worth_it_says_so_and_why(askonce: Askonce) -> None:
    prompt = 'labels = ["long", "short"]\nsystem = "Today is 2026-11-21."'
    askonce.configure(CONFIG.replace('labels = ["long", "short"]', prompt))
    askonce.write("in.jsonl", [{"text": f"text {n}"} for n in range(150)])
    askonce.run("in.jsonl")
    shown = " ".join(askonce("stats", "askonce.toml").stdout.split())
    assert "The cache is running Redis for sport (0.0% hits, last 24h)" in shown
    assert "prefix caching" in shown
    assert "a smaller model" in shown.replace("A smaller", "a smaller")
    assert "size: its system prompt has a date: '2026-11-21'" in shown
    assert "No money is counted: give models a price" in shown


def test_few_answers_have_no_verdict(askonce: Askonce) -> None:
    askonce.write("in.jsonl", TEXTS[:50])
    askonce.run("in.jsonl")
    assert "No verdict yet: 50 answers" in askonce("stats", "askonce.toml").stdout


def test_tenants_have_accounts(busy: Askonce) -> None:
    with (
        EmbeddedStore(busy.store) as embedded,
        connect_sync(embedded.url, role="commands") as client,
    ):
        for n in range(12):
            client.hset(names.stats("0").decode(), f"@tenant {n}|hits", 100 + n)
    shown = busy("stats", "askonce.toml", "--window", "all").stdout
    assert shown.index("tenant tenant 11") < shown.index("tenant tenant 3")
    assert "2 more: --json" in shown
    assert len(stats(busy)["tenants"]) == 12


# --watch


def test_watching_until_ctrl_c(busy: Askonce) -> None:
    with terminal(busy, "stats", "askonce.toml", "--watch") as shown:
        shown.until("The cache is")
        assert "\x1b[?1049h" in shown.shown  # a screen of its own
        busy.run("in.jsonl")
        shown.until("95.0%")  # on the screen, without being asked
        shown.type("\x03")
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


# The configuration


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("[models.sizes.price]\ninput = -1", "models.sizes.price.input: expected `float` >= 0"),
        ("[models.sizes.price]\nimput = 1", "unknown key 'imput' (did you mean 'input'?)"),
        ("[costs]\nstore_per_hour = 'much'", "costs.store_per_hour: expected"),
    ],
)
def test_prices_are_checked(askonce: Askonce, wrong: str, said: str) -> None:
    askonce.configure(f"{CONFIG}\n{wrong}")
    assert said.replace("`", "") in askonce("stats", "askonce.toml", code=2).stderr.replace("`", "")
