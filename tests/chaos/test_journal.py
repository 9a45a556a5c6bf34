"""Journals outlive their writers, and a producer's books are rebuilt from them."""

from __future__ import annotations

from pathlib import Path

from askonce_loadtest.chaos.books import Books
from askonce_loadtest.chaos.journal import (
    Accepted,
    AskedJob,
    Attempted,
    Began,
    Journal,
    Replied,
    Unknown,
    producer_lines,
    read_journal,
)
from askonce_loadtest.chaos.workload import Asked


def test_what_was_written_is_read(tmp_path: Path) -> None:
    lines = [
        Began(1.0, 1, 42),
        Attempted(1.5, [AskedJob("p-1", "question", 7), AskedJob("p-2", "die", 1)]),
        Accepted(2.0, ["p-1"]),
        Replied(2.5, "p-1", "label", None, "model"),
    ]
    with Journal(tmp_path / "j") as journal:
        for line in lines:
            journal.write(line)
    assert list(read_journal(tmp_path / "j", producer_lines)) == lines


def test_a_line_cut_by_a_kill_spoils_no_other(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.write(Began(1.0, 1, 42))
    with (tmp_path / "j").open("ab") as torn:
        torn.write(b'["accepted",2.0,["p-1","p-')
    with Journal(tmp_path / "j") as journal:
        journal.write(Began(3.0, 2, 43))
    assert list(read_journal(tmp_path / "j", producer_lines)) == [
        Began(1.0, 1, 42),
        Began(3.0, 2, 43),
    ]


def test_no_journal_is_an_empty_one(tmp_path: Path) -> None:
    assert list(read_journal(tmp_path / "none", producer_lines)) == []
    assert Books.read(tmp_path / "none").made == 0


def test_books_are_rebuilt(tmp_path: Path) -> None:
    jobs = [AskedJob(f"p-{i}", "question", i) for i in (1, 2, 3)]
    with Journal(tmp_path / "j") as journal:
        journal.write(Began(1.0, 1, 42))
        journal.write(Attempted(1.1, jobs))
        journal.write(Accepted(1.2, ["p-1", "p-2"]))
        journal.write(Replied(1.3, "p-1", "label", None, "model"))
        journal.write(Unknown(1.4, ["p-3"], "the store cannot be reached"))
    books = Books.read(tmp_path / "j")
    assert (books.incarnation, books.made) == (1, 3)
    assert books.asked == {"p-2": Asked("question", 2), "p-3": Asked("question", 3)}
    assert list(books.unsure) == ["p-3"]
    assert books.waiting == 2


def test_a_reply_before_the_acceptance_settles_a_job(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.write(Attempted(1.0, [AskedJob("p-1", "question", 1)]))
        journal.write(Replied(1.1, "p-1", "label", None, "model"))
        journal.write(Accepted(1.2, ["p-1"]))
    books = Books.read(tmp_path / "j")
    assert books.waiting == 0
    assert not books.unsure
    assert not books.replied("p-1")
