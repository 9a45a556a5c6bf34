"""Usage and configuration errors: exit code 2, one clear line, no traceback, nothing written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.askonce_command import CONFIG, Askonce

NOWHERE = '[redis]\nurl = "redis://:hunter2@127.0.0.1:1/0"\n'


@pytest.fixture
def askonce(tmp_path: Path) -> Iterator[Askonce]:
    with Askonce(tmp_path) as command:
        command.write("in.jsonl", [{"text": "hello"}])
        yield command


def error_line(askonce: Askonce, *args: str) -> str:
    """The one line on stderr of a command that ends with exit code 2."""
    return one_line(askonce, *args, code=2)


def one_line(askonce: Askonce, *args: str, code: int) -> str:
    """The one line on stderr of a command that ends with an exit code."""
    done = askonce(*args, code=code)
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert "hunter2" not in lines[0]
    return lines[0]


RUN = ("run", "askonce.toml", "in.jsonl", "--task", "size", "--out", "out.jsonl")
COMMANDS = {
    "run": RUN,
    "enqueue": ("enqueue", "askonce.toml", "in.jsonl", "--task", "size"),
    "worker": ("worker", "askonce.toml"),
    "workers": ("worker", "askonce.toml", "--processes", "2"),
    "stats": ("stats", "askonce.toml"),
    "invalidate": ("invalidate", "askonce.toml", "--all"),
    "doctor": ("doctor", "askonce.toml"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_fault_in_the_configuration(askonce: Askonce, command: str) -> None:
    askonce.configure(CONFIG.replace('labels = ["long"', 'label = ["long"'))
    line = error_line(askonce, *COMMANDS[command])
    assert line.startswith("askonce: askonce.toml: tasks.size: unknown key 'label'")
    assert not (askonce.folder / "out.jsonl").exists()


def test_no_configuration(askonce: Askonce) -> None:
    (askonce.folder / "askonce.toml").unlink()
    assert "askonce.toml: expected a readable file" in error_line(askonce, *RUN)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "doctor"])
def test_a_store_that_is_not_there(askonce: Askonce, command: str) -> None:
    askonce.configure(NOWHERE + CONFIG)
    assert "store" in one_line(askonce, *COMMANDS[command], code=69)


@pytest.mark.parametrize("command", ["run", "worker", "workers"])
def test_a_model_that_cannot_be_loaded(askonce: Askonce, command: str) -> None:
    askonce.configure(CONFIG.replace("sizes_model:classify", "sizes_model:classifi"))
    askonce(*COMMANDS[command], code=2)
    askonce.configure(CONFIG.replace("sizes_model:classify", "size_model:classify"))
    if command != "workers":
        assert "size_model" in error_line(askonce, *COMMANDS[command])


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("nothing.jsonl",), "cannot read nothing.jsonl: No such file or directory"),
        ((".",), "cannot read .: it is a folder"),
        (
            ("in.jsonl", "--task", "sizes"),
            "no task 'sizes' (did you mean 'size'?); known tasks: size",
        ),
        (("in.jsonl", "--out", "no/out.jsonl"), "out.jsonl: No such file or directory"),
        (("in.jsonl", "--summary", "no/s.json"), "cannot write no/s.json"),
        (("in.jsonl", "--column", "text"), "--column is for CSV"),
        (("in.csv", "--column", "massage"), "no column 'massage' (did you mean 'message'?)"),
        (("in.csv",), "no column 'text'; its columns: id, message; name the column of the input"),
        (("empty.csv",), "the CSV is empty"),
    ],
)
def test_wrong_arguments_of_run(askonce: Askonce, args: tuple[str, ...], expected: str) -> None:
    askonce.write("in.csv", ["id,message", "1,hello"])
    askonce.write("empty.csv", [])
    given = ["run", "askonce.toml", args[0], "--task", "size", "--out", "out.jsonl", *args[1:]]
    assert expected in error_line(askonce, *given)
    assert askonce.calls() == []
    assert not (askonce.folder / "out.jsonl").exists()


@pytest.mark.parametrize(
    "args",
    [
        ("run", "askonce.toml", "in.jsonl", "--out", "out.jsonl"),
        ("run", "askonce.toml", "in.jsonl", "--task", "size", "--out", "o", "--window", "0"),
        ("worker", "askonce.toml", "--processes", "0"),
        ("worker",),
        ("enqueue", "askonce.toml", "in.jsonl", "--task", "size", "--lane", "fast"),
        ("nonsense",),
    ],
)
def test_usage_errors(askonce: Askonce, args: tuple[str, ...]) -> None:
    done = askonce(*args, code=2)
    assert "Usage" in done.stderr


@pytest.mark.parametrize(
    "command", ["", "run", "worker", "enqueue", "stats", "invalidate", "doctor"]
)
def test_help(askonce: Askonce, command: str) -> None:
    done = askonce(*filter(None, [command]), "--help")
    assert "Examples" in done.stdout
    assert f"askonce {command or 'run'} " in done.stdout
    assert "--supervised" not in done.stdout


def test_version(askonce: Askonce) -> None:
    assert askonce("--version").stdout.startswith("askonce ")


def test_the_output_must_not_replace_the_input(askonce: Askonce) -> None:
    askonce.write("in.jsonl", [{"text": "hello"}])
    before = (askonce.folder / "in.jsonl").read_bytes()
    line = error_line(
        askonce, "run", "askonce.toml", "in.jsonl", "--task", "size", "--out", "./in.jsonl"
    )
    assert "is the input" in line
    assert (askonce.folder / "in.jsonl").read_bytes() == before
