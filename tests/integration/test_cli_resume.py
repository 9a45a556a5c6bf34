"""`askonce run` that was interrupted, and goes on."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.askonce_command import TIMEOUT_S, Askonce, end
from tests.support.waiting import eventually_sync

TEXTS = [*(f"text {i}" for i in range(20)), "wait here", *(f"more {i}" for i in range(20))]


@pytest.fixture
def askonce(tmp_path: Path) -> Iterator[Askonce]:
    with Askonce(tmp_path) as command:
        yield command


def interrupted(askonce: Askonce, number: int, texts: list[str]) -> None:
    """Run until every line before the one that waits is written, then send a signal."""
    askonce.write("in.jsonl", [{"text": text} for text in texts])
    process = askonce.start(*askonce.run_args("in.jsonl"))
    partial = askonce.folder / "out.jsonl.partial"
    written = texts.index("wait here")
    eventually_sync(
        lambda: partial.exists() and len(partial.read_bytes().splitlines()) == written,
        timeout_s=TIMEOUT_S,
    )
    eventually_sync(lambda: len(askonce.calls()) == len(texts))
    if number == signal.SIGINT:
        process.send_signal(number)
        askonce.until_said("stopping")
    assert end(process, number) in {-number, 128 + number}
    assert not (askonce.folder / "out.jsonl").exists()


def test_after_kill_9_it_resumes_where_the_output_ends(askonce: Askonce) -> None:
    interrupted(askonce, signal.SIGKILL, TEXTS)
    partial = askonce.folder / "out.jsonl.partial"
    with partial.open("ab") as half_written:
        half_written.write(b'{"id": "21", "lab')
    askonce.go()
    done = askonce.run("in.jsonl", "--resume")
    lines = askonce.read("out.jsonl")
    assert [line["id"] for line in lines] == [str(i + 1) for i in range(len(TEXTS))]
    assert all("label" in line for line in lines)
    assert not partial.exists()
    summary = askonce.summary()
    assert (summary["resumed"], summary["jobs"]) == (20, len(TEXTS) - 20)
    assert "taken over" in done.stderr
    calls = askonce.calls()
    assert {text for text in calls if calls.count(text) > 1} <= {"wait here"}


def test_after_ctrl_c_it_resumes_and_remembers_errors(askonce: Askonce) -> None:
    texts = ["hello", "fail", "wait here", "bye"]
    interrupted(askonce, signal.SIGINT, texts)
    askonce.go()
    askonce.run("in.jsonl", "--resume", code=1)
    lines = askonce.read("out.jsonl")
    assert [line.get("label") for line in lines] == ["short", None, "short", "short"]
    summary = askonce.summary()
    assert (summary["resumed"], summary["resumed_errors"], summary["errors"]) == (2, 1, 0)


def test_a_changed_line_never_gets_the_answer_of_the_old_one(askonce: Askonce) -> None:
    interrupted(askonce, signal.SIGINT, ["wait here", "hello", "bye"])
    askonce.write("in.jsonl", [{"text": t} for t in ("hello, world", "hello, you too", "bye")])
    done = askonce.run("in.jsonl")
    assert [line["label"] for line in askonce.read("out.jsonl")] == ["long", "long", "short"]
    assert "--resume" not in done.stderr  # nothing had been written


def test_without_resume_it_starts_over_and_says_so(askonce: Askonce) -> None:
    interrupted(askonce, signal.SIGINT, ["hello", "wait here"])
    askonce.go()
    done = askonce.run("in.jsonl")
    assert "starting over" in done.stderr
    assert len(askonce.read("out.jsonl")) == 2
    assert askonce.summary()["resumed"] == 0


def test_the_output_of_another_input_is_not_resumed(askonce: Askonce) -> None:
    askonce.write("out.jsonl.partial", [{"id": "a", "label": "short"}])
    askonce.write("in.jsonl", [{"id": "b", "text": "hello"}])
    for written in ('{"id": "a", "label": "short"}\n', "no JSON\n", '{"id": "b"}\n' * 2):
        (askonce.folder / "out.jsonl.partial").write_text(written)
        done = askonce.run("in.jsonl", "--resume", code=2)
        assert "is not the output of this input" in done.stderr
        assert (askonce.folder / "out.jsonl.partial").read_text() == written


def test_resume_with_nothing_to_resume_is_a_plain_run(askonce: Askonce) -> None:
    askonce.write("in.jsonl", [{"text": "hello"}])
    askonce.run("in.jsonl", "--resume")
    assert json.loads((askonce.folder / "out.jsonl").read_text())["label"] == "short"
