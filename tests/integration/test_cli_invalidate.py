"""`askonce invalidate`: all its options, what it says, its exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.askonce_command import CONFIG, Askonce
from tests.support.terminal import terminal

TASKS = """
[sources.law]

[sources.policy]
depends_on = ["law"]

[tasks.support-size]
model = "sizes"
labels = ["long", "short"]
system = "support"
cache = { sources = ["policy"] }
"""
TEXTS = [{"text": "hello"}, {"text": "hello, world"}]


@pytest.fixture
def askonce(tmp_path: Path) -> Iterator[Askonce]:
    with Askonce(tmp_path) as command:
        command.configure(CONFIG + TASKS)
        command.write("in.jsonl", TEXTS)
        yield command


def answer_both(askonce: Askonce) -> None:
    """Two answers of each of two tasks."""
    askonce.run("in.jsonl")
    askonce.run("in.jsonl", task="support-size")


def told(askonce: Askonce, *args: str, code: int = 0) -> dict[str, Any]:
    done = askonce("invalidate", "askonce.toml", *args, "--json", code=code)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_what_it_takes_is_asked_again(askonce: Askonce) -> None:
    """First only said, and nothing done."""
    answer_both(askonce)
    report = told(askonce, "--source", "law", "--dry-run")
    assert (report["what"], report["count"]) == (["source:law", "source:policy"], 2)
    assert (report["complete"], report["workers_follow_within_s"]) == (True, None)
    askonce.run("in.jsonl", task="support-size")
    assert askonce.summary()["model_calls"] == 0
    report = told(askonce, "--source", "law", "--pattern", "nothing*")
    assert (report["count"], report["confirmed"], report["shards"]) == (2, 1, 1)
    assert report["workers_follow_within_s"] == 0.5
    askonce.run("in.jsonl", task="support-size")
    assert askonce.summary()["model_calls"] == 2
    askonce.run("in.jsonl")
    assert askonce.summary()["model_calls"] == 0


def test_what_it_says(askonce: Askonce) -> None:
    askonce.run("in.jsonl")
    with terminal(askonce, "invalidate", "askonce.toml", "--task", "size", "--dry-run") as shown:
        assert "dry run: task:size; nothing was done" in shown.until("stored)")
        assert "it would take 2 answers (of 2 stored)" in shown.shown
        assert shown.end() == 0
    assert askonce("invalidate", "askonce.toml", "--task", "size").stdout == (
        "invalidated: task:size (1 of 1 shards confirmed)\n"
        "running workers follow within 0.5 s\nit took 2 answers (of 2 stored)\n"
    )
    done = askonce("invalidate", "askonce.toml", "--task", "size", "--scan-limit", "0")
    assert "took" not in done.stdout


def test_a_key_and_the_beginning_of_one(askonce: Askonce) -> None:
    report = told(askonce, "--key", "ab" * 32)
    assert (report["what"], report["count"]) == (["key " + "ab" * 8], 0)
    nothing = askonce("invalidate", "askonce.toml", "--key", "0123456789", code=2)
    assert "no stored answer has a key that begins with 0123456789" in nothing.stderr


def test_what_an_old_prompt_left_is_deleted(askonce: Askonce) -> None:
    answer_both(askonce)
    askonce.configure(CONFIG + TASKS.replace('"support"', '"support, in French"'))
    assert told(askonce, "--old-versions", "--dry-run")["count"] == 2
    done = askonce("invalidate", "askonce.toml", "--old-versions", "--task", "support-*")
    assert done.stdout == "old versions of support-size\ndeleted 2 answers (of 4 stored)\n"
    assert told(askonce, "--old-versions")["count"] == 0
    askonce.run("in.jsonl")
    assert askonce.summary()["model_calls"] == 0


def test_a_count_that_ends_early(askonce: Askonce) -> None:
    askonce.write("many.jsonl", [{"text": f"text {number}"} for number in range(600)])
    askonce.run("many.jsonl")
    args = ("--all", "--scan-limit", "10")
    done = askonce("invalidate", "askonce.toml", *args, "--dry-run", code=1)
    assert "it would take at least" in done.stdout
    assert "how many in all is unknown: the limit of 10 answers was reached" in done.stdout
    report = told(askonce, *args)  # which is done all the same
    assert (report["complete"], report["count"]) == (True, None)
    assert 0 < report["at_least"] <= report["seen"] < 600


def test_the_help_has_examples(tmp_path: Path) -> None:
    with Askonce(tmp_path) as askonce:
        shown = askonce("invalidate", "--help").stdout
    assert "--task 'support-*' --dry-run" in shown
    assert "--pattern 'user:*' --json" in shown
