"""`askonce run`, as its users run it: in a process, on files, on the embedded store."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from askonce_queue.job import MAX_JOB_BYTES
from tests.support.askonce_command import TIMEOUT_S, Askonce, end
from tests.support.waiting import eventually_sync

Line = dict[str, Any]


@pytest.fixture
def askonce(tmp_path: Path) -> Iterator[Askonce]:
    with Askonce(tmp_path) as command:
        yield command


def test_every_line_is_answered_in_order_and_every_question_asked_once(askonce: Askonce) -> None:
    texts = ["hello", "hello, world", "bye", "hello", "hello, world"]
    askonce.write("in.jsonl", [{"text": text} for text in texts])
    done = askonce.run("in.jsonl")
    lines = askonce.read("out.jsonl")
    assert [line["id"] for line in lines] == ["1", "2", "3", "4", "5"]
    assert [line["label"] for line in lines] == ["short", "long", "short", "short", "long"]
    assert [line["score"] for line in lines] == [0.75] * 5
    assert {line["model"] for line in lines} == {"sizes"}
    assert sorted(askonce.calls()) == ["bye", "hello", "hello, world"]
    summary = askonce.summary()
    assert (summary["jobs"], summary["errors"]) == (5, 0)
    assert summary["model"] == summary["model_calls"] == 3
    assert summary["memory"] + summary["store"] + summary["coalesced"] == 2
    assert summary["model_calls_avoided"] == 2
    assert summary["wall_s"] > 0
    assert summary["jobs_per_s"] == pytest.approx(5 / summary["wall_s"], rel=0.2)
    assert "model calls avoided" in done.stderr
    assert done.stdout == ""
    assert not (askonce.folder / "out.jsonl.partial").exists()
    assert not askonce.store_is_up()


def test_a_second_run_asks_no_model(askonce: Askonce) -> None:
    askonce.write("in.jsonl", [{"text": f"text {i % 7}"} for i in range(50)])
    askonce.run("in.jsonl")
    calls = askonce.calls()
    askonce.run("in.jsonl")
    summary = askonce.summary()
    assert askonce.calls() == calls
    assert (summary["model_calls"], summary["model"]) == (0, 0)
    assert summary["store"] >= 1
    assert summary["store"] + summary["memory"] + summary["coalesced"] == 50
    assert all(line["age_s"] > 0 for line in askonce.read("out.jsonl"))


BAD_LINES: list[tuple[str, str, str]] = [
    ("{not json", "undecodable", "2"),
    ("", "undecodable", "2"),
    ('["text"]', "undecodable", "2"),
    ('{"text": 5, "id": "mine"}', "undecodable", "mine"),
    ('{"text": "x", "id": [1]}', "undecodable", "2"),
    ('{"id": "mine"}', "invalid_input", "mine"),
    ('{"text": "x", "messages": []}', "invalid_input", "2"),
    ('{"text": ""}', "invalid_input", "2"),
    ('{"text": "\\ud800"}', "undecodable", "2"),
    (json.dumps({"text": "x" * MAX_JOB_BYTES}), "too_large", "2"),
    (json.dumps({"text": "x" * 9 * MAX_JOB_BYTES}), "too_large", "2"),
    ('{"messages": ' + "[" * 5000 + "]" * 5000 + "}", "undecodable", "2"),
]


def test_bad_lines_become_error_lines_and_stop_nothing(askonce: Askonce) -> None:
    lines: list[object] = [{"text": "first", "id": "a"}]
    for bad, _, _ in BAD_LINES:
        lines += [bad, {"text": "good", "id": 7}]
    askonce.write("in.jsonl", lines)
    done = askonce.run("in.jsonl", code=1)
    first, *rest = askonce.read("out.jsonl")
    assert (first["id"], first["label"]) == ("a", "short")
    assert len(rest) == 2 * len(BAD_LINES)
    for i, (_, code, expected_id) in enumerate(BAD_LINES):
        error, good = rest[2 * i], rest[2 * i + 1]
        number = 2 + 2 * i
        assert error["error"]["code"] == code, error
        assert error["id"] == (str(number) if expected_id == "2" else expected_id)
        assert error["error"]["message"].startswith(f"line {number}: ")
        assert "label" not in error
        assert (good["id"], good["label"]) == (7, "short")
    summary = askonce.summary()
    assert summary["errors"] == len(BAD_LINES)
    assert sum(summary["errors_by_code"].values()) == len(BAD_LINES)
    assert "errors" in done.stderr


def test_bytes_that_are_no_text_are_an_error_line(askonce: Askonce) -> None:
    (askonce.folder / "in.jsonl").write_bytes(b'{"text": "\xff"}\n\x00\n{"text": "last"}')
    askonce.run("in.jsonl", code=1)
    assert [("error" in line) for line in askonce.read("out.jsonl")] == [True, True, False]


def test_a_model_that_fails_fails_its_line_only(askonce: Askonce) -> None:
    askonce.write("in.jsonl", [{"text": "fail"}, {"text": "hello"}, {"text": "fail"}])
    askonce.run("in.jsonl", code=1)
    failed, answered, again = askonce.read("out.jsonl")
    assert failed["error"] == again["error"]
    assert failed["error"]["code"] == "model_failed"
    assert answered["label"] == "short"
    assert askonce.summary()["model_calls"] == 2


def test_conversations_are_asked_too(askonce: Askonce) -> None:
    turn = {"role": "user", "content": "hello there, you"}
    askonce.write("in.jsonl", [{"messages": [turn]}, {"messages": [turn, turn]}])
    askonce.run("in.jsonl", code=1)
    one, two = askonce.read("out.jsonl")
    assert one["label"] == "long"
    assert two["error"]["code"] == "rejected"  # a Python model takes one message


def test_csv_with_a_column(askonce: Askonce) -> None:
    rows = [
        "id,note,message",
        "a,1,hello",
        'b,2,"hello, ""world""\nsecond line"',
        "c,3",
        "",
        ",4,no id",
    ]
    path = askonce.folder / "in.csv"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
    askonce.run("in.csv", "--column", "message", code=1)
    lines = askonce.read("out.jsonl")
    assert [line["id"] for line in lines] == ["a", "b", "c", "6", "7"]
    assert [line.get("label") for line in lines] == ["short", "long", None, None, "short"]
    assert lines[2]["error"]["message"] == "line 5: expected 3 columns, got 2"
    assert 'hello, "world"' in askonce.calls()


def test_stdin_and_stdout(askonce: Askonce) -> None:
    given = '{"text": "hello", "id": "x"}\n{"text": "hello, world"}'
    done = askonce("run", "askonce.toml", "-", "--task", "size", "--out", "-", stdin=given)
    lines: list[Line] = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["id"], line["label"]) for line in lines] == [("x", "short"), ("2", "long")]


def test_csv_from_stdin(askonce: Askonce) -> None:
    given = 'text\nhello\n"hello, world"\n'
    args = ["run", "askonce.toml", "-", "--task", "size", "--out", "-"]
    for how in (["--column", "text"], ["--format", "csv"]):
        done = askonce(*args, *how, stdin=given)
        assert [json.loads(line)["label"] for line in done.stdout.splitlines()] == [
            "short",
            "long",
        ]


def test_an_empty_input_is_an_empty_output(askonce: Askonce) -> None:
    askonce.write("in.jsonl", [])
    askonce.run("in.jsonl")
    assert askonce.read("out.jsonl") == []
    assert askonce.summary()["jobs"] == 0


def test_a_slow_pipe_is_answered_line_by_line(askonce: Askonce) -> None:
    args = ["run", "askonce.toml", "-", "--task", "size", "--out", "-"]
    process = askonce.start(*args, stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    for text in ("hello", "hello, world"):
        process.stdin.write(json.dumps({"text": text}) + "\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["label"]
    process.stdin.close()
    assert process.wait(TIMEOUT_S) == 0


def test_no_more_than_the_window_is_under_way(askonce: Askonce) -> None:
    askonce.write("in.jsonl", [{"text": f"wait {i}"} for i in range(40)])
    process = askonce.start(*askonce.run_args("in.jsonl", "--window", "3"))
    while len(askonce.calls()) < 3:
        assert process.poll() is None, askonce.said()
    assert len(askonce.calls()) == 3
    askonce.go()
    assert process.wait(TIMEOUT_S) == 0
    assert len(askonce.read("out.jsonl")) == 40


def test_many_lines_stay_in_order(askonce: Askonce) -> None:
    texts = [f"text number {i * i % 1013}" for i in range(20_000)]
    askonce.write("in.jsonl", [{"text": text, "id": i} for i, text in enumerate(texts)])
    askonce.run("in.jsonl", "--window", "1700")
    assert [line["id"] for line in askonce.read("out.jsonl")] == list(range(20_000))
    assert len(askonce.calls()) == len(set(texts)) == askonce.summary()["model_calls"]


def test_an_old_output_stays_until_the_new_one_is_complete(askonce: Askonce) -> None:
    askonce.write("out.jsonl", ["old"])
    askonce.write("in.jsonl", [{"text": "hello"}, {"text": "wait"}])
    process = askonce.start(*askonce.run_args("in.jsonl"))
    while len(askonce.calls()) < 2:
        assert process.poll() is None, askonce.said()
    assert (askonce.folder / "out.jsonl").read_text() == "old\n"
    done = askonce.run("in.jsonl", code=2)  # meanwhile
    assert done.stderr.strip().endswith(
        f"another askonce run is writing {askonce.folder}/out.jsonl"
    )
    askonce.go()
    assert process.wait(TIMEOUT_S) == 0
    assert len(askonce.read("out.jsonl")) == 2


def test_devices_and_pipes_are_written_to_and_not_replaced(askonce: Askonce) -> None:
    askonce.write("in.jsonl", [{"text": "hello"}])
    askonce("run", "askonce.toml", "in.jsonl", "--task", "size", "--out", "/dev/null")
    assert Path("/dev/null").is_char_device()
    askonce("run", "askonce.toml", "in.jsonl", "--task", "size", "--out", "/dev/full", code=2)


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(askonce: Askonce) -> None:
    askonce.write("in.jsonl", [{"text": "hello"}, {"text": "bye"}, {"text": "wait here"}])
    process = askonce.start(*askonce.run_args("in.jsonl"))
    partial = askonce.folder / "out.jsonl.partial"
    eventually_sync(lambda: partial.exists() and partial.read_bytes().count(b"\n") == 2)
    process.send_signal(2)
    askonce.until_said("stopping")
    assert end(process, 2) == 130
    assert "2 lines are in" in askonce.said()
    assert "Traceback" not in askonce.said()
    assert not askonce.store_is_up()
    assert not (askonce.folder / "out.jsonl").exists()
