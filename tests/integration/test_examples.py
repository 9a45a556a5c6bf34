"""The examples of what to cache, each run as its reader would run it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PAGE = (EXAMPLES.parent / "docs" / "WHAT_TO_CACHE.md").read_text(encoding="utf-8")
TIMEOUT_S = 60


def run(name: str, *arguments: str | Path, code: int = 0) -> list[str]:
    """Run an example; the lines that it prints."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert bool(done.stderr) == bool(code), done.stderr
    return done.stdout.splitlines()


def test_a_document_is_summarised_once_whatever_its_name(tmp_path: Path) -> None:
    first = run("pdf_summary.py", "--store", tmp_path / "store")
    again = run("pdf_summary.py", "--store", tmp_path / "store")
    assert first[-1] == "3 files, 2 calls of the model"
    assert again[-1] == "3 files, 0 calls of the model"
    summaries = {line.split()[0]: line.split(maxsplit=2)[2] for line in again[:-1]}
    assert summaries["copy.pdf"] == summaries["policy.pdf"] == "Refunds are paid within ten days."
    assert summaries["notice.pdf"] != summaries["policy.pdf"]


def test_a_file_that_is_no_pdf_is_named(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("no PDF")
    assert run("pdf_summary.py", tmp_path / "note.txt", code=2) == []


def test_a_fallback_answers_from_what_the_documents_say_now() -> None:
    lines = run("retrieval_fallback.py")
    assert [line.strip() for line in lines if "calls of the model" in line] == [
        "2 calls of the model",
        "0 calls of the model",
        "2 calls of the model",
    ]
    norway = [line for line in lines if "How long do parcels" in line]
    assert ["five days" in line for line in norway] == [True, True, False]
    assert "nine days" in norway[2]


def test_an_eval_is_asked_once_until_the_model_changes(tmp_path: Path) -> None:
    options = ("--work", tmp_path, "--limit", "200")
    calls: list[int] = []
    for more, code in (((), 0), (("--at-least", "1.01"), 1), (("--model-version", "2"), 0)):
        (line,) = run("eval_rerun.py", *options, *more, code=code)
        calls.append(int(line.split(" texts, ")[1].split()[0]))
    assert calls[1] == 0
    assert calls[0] == calls[2] > 190


def test_the_page_shows_what_the_cost_example_computes() -> None:
    lines = run("cost.py")
    values = {line[:38].strip(): line[38:].strip() for line in lines}
    for name in ("requests of the trace", "distinct questions", "hit rate h, computed", "saved"):
        assert values[name] in PAGE, name
    assert values["hit rate h, measured"] == f"{values['hit rate h, computed']} (1,620 calls)"
    assert f"**{values['a month with it, C * (1 - h) + store']}**" in PAGE
    assert f"| {values['it pays from a hit rate of']} |" in PAGE
    assert values["a month without a cache, C"] == "$2,000.00 (10,000,000 calls)"


def test_every_example_on_the_page_is_there() -> None:
    linked = set(re.findall(r"\(\.\./examples/([^)]+)\)", PAGE))
    assert linked >= {"pdf_summary.py", "retrieval_fallback.py", "eval_rerun.py"}
    assert all((EXAMPLES / name).exists() for name in linked)
