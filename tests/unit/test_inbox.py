"""The inbox: an id is handed one reply, by the enqueue that succeeded, however many failed."""

from __future__ import annotations

import pytest

from askonce_queue import IdConflict, Job
from askonce_queue.inbox import Inbox
from askonce_queue.ledger import Delivered, Ledger, Limits
from askonce_queue.reply import WireReply, encode_replies


class Books:
    """An inbox and its ledger, told of replies as the reader does."""

    def __init__(self) -> None:
        self.ledger = Ledger("c", pool="default", shards=1, limits=Limits())
        self.rings = 0
        self.inbox = Inbox(self.ledger, self._ring)
        self._entries = 0

    def _ring(self) -> None:
        self.rings += 1

    def reply(self, *job_ids: str) -> None:
        """One entry with replies to these jobs."""
        self._entries += 1
        lines = encode_replies([WireReply(id=job_id) for job_id in job_ids])
        self.ledger.receive("0", b"%d-0" % self._entries, lines)

    def handed(self) -> list[str]:
        """What `replies()` would yield now."""
        found: list[Delivered] = []
        while self.inbox.arrived:
            found.append(self.inbox.arrived.popleft())
            self.ledger.handed(found[-1].source)
        return [one.reply.id for one in found]

    def deletable(self) -> int:
        """Entries that have been handed over completely since the last look."""
        return sum(len(entries) for entries, _, _ in self.ledger.take_handed())


@pytest.fixture
def books() -> Books:
    return Books()


def test_a_reply_that_is_faster_than_its_enqueue_waits_for_it(books: Books) -> None:
    call = books.inbox.begin(["a", "b"])
    books.reply("a")
    assert books.handed() == []
    assert books.rings == 0
    books.inbox.end(call, [*call], ())
    assert books.rings == 1
    assert books.handed() == ["a"]
    books.reply("b")
    assert books.handed() == ["b"]
    assert books.deletable() == 2


def test_a_call_that_failed_is_repeated(books: Books) -> None:
    """Its jobs were accepted all the same: those answered before, between, and after the calls."""
    failed = books.inbox.begin(["before", "between", "after"])
    books.reply("before")
    books.inbox.end(failed, [*failed], failed)
    books.reply("between")
    assert books.handed() == []
    assert books.deletable() == 2
    again = books.inbox.begin(["before", "between", "after"])
    books.inbox.end(again, [*again], ())
    books.reply("after", "before")  # the store's: this was still the same job, that is a new one
    books.reply("between")
    books.reply("after")
    assert books.handed() == ["after", "before", "between"]
    assert books.ledger.duplicates == 2
    assert books.ledger.outstanding == 0
    assert books.deletable() == 3


def test_a_job_that_is_refused_is_not_awaited(books: Books) -> None:
    call = books.inbox.begin(["full", "fits"])
    books.inbox.end(call, [*call], {"full"})
    assert books.ledger.outstanding == 1
    books.reply("fits")
    assert books.handed() == ["fits"]


def test_what_another_call_has_had_accepted_stays_awaited(books: Books) -> None:
    earlier = books.inbox.begin(["a"])
    books.inbox.end(earlier, ["a"], ())
    repeated = books.inbox.begin(["a"])
    books.inbox.end(repeated, ["a"], ["a"])
    books.reply("a")
    assert books.handed() == ["a"]


def test_of_two_calls_at_once_one_success_is_enough(books: Books) -> None:
    first, second = books.inbox.begin(["a", "b"]), books.inbox.begin(["a"])
    books.reply("b")
    books.inbox.end(second, ["a"], ())
    books.inbox.end(first, ["a", "b"], ["a", "b"])
    books.reply("a")
    assert books.handed() == ["a"]
    assert books.ledger.outstanding == 0


def test_a_conflict_leaves_nothing_behind(books: Books) -> None:
    books.ledger.expect(["a"], lambda _: None)
    with pytest.raises(IdConflict):
        books.inbox.begin(["a", "b"])
    call = books.inbox.begin(["b"])
    books.inbox.end(call, [*call], ())
    books.reply("b")
    assert books.handed() == ["b"]


def test_ids_of_our_own_making_are_told_apart(books: Books) -> None:
    ids = books.ledger.assign_ids([Job(task="t", text="x")] * 2)
    call = books.inbox.begin(ids)
    books.inbox.end(call, ids, ids)
    books.reply(*ids)
    assert books.handed() == []
    assert books.deletable() == 1
