"""A client's books, without any I/O."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askonce_queue.errors import ClientNameInUse, IdConflict, InvalidJob, QueueFull
from askonce_queue.job import Job
from askonce_queue.ledger import Delivered, Enqueue, Ledger, Limits
from askonce_queue.reply import WireReply, encode_replies
from askonce_queue.scripts import CHUNK
from askonce_queue.shards import shard_of_job


def ledger(name: str | None = "c", *, shards: int = 1) -> Ledger:
    return Ledger(name, pool="default", shards=shards, limits=Limits())


def jobs(count: int) -> list[Job]:
    return [Job(task="t", text=f"text {n}") for n in range(count)]


def wire(*job_ids: str) -> bytes:
    return encode_replies([WireReply(id=job_id) for job_id in job_ids])


def collector() -> tuple[list[str], list[Delivered], Callable[[Delivered], None]]:
    found: list[str] = []
    all_of: list[Delivered] = []

    def put(delivered: Delivered) -> None:
        found.append(delivered.reply.id)
        all_of.append(delivered)

    return found, all_of, put


class TestEnqueue:
    def test_ids_are_unique_over_calls_clients_and_incarnations(self) -> None:
        both = [ledger("same"), ledger("same"), ledger()]
        ids = [i for books in both for _ in range(3) for i in books.assign_ids(jobs(10))]
        assert len(set(ids)) == len(ids) == 90

    def test_given_ids_stay(self) -> None:
        given_id, made = ledger().assign_ids([Job(task="t", text="a", id="7"), *jobs(1)])
        assert given_id == "7"
        assert made != "7"

    def test_one_call_goes_to_one_shard_and_the_next_to_the_next(self) -> None:
        books = ledger(shards=4)
        shards: list[int] = []
        for _ in range(4):
            ids = books.assign_ids(jobs(20))
            (shard,) = {shard_of_job(job_id, 4) for job_id in ids}
            shards.append(shard)
        assert sorted(shards) == [0, 1, 2, 3]

    def test_large_calls_are_split(self) -> None:
        books = ledger()
        many = jobs(2 * CHUNK + 1)
        ids = books.assign_ids(many)
        calls = books.prepare(ids, many, lane="bulk", reply_to=None)
        assert [len(one.job_ids) for one in calls] == [CHUNK, CHUNK, 1]
        assert [job_id for one in calls for job_id in one.job_ids] == ids

    def test_tenants_and_tags_widen_the_stride_of_the_whole_call(self) -> None:
        books = ledger()
        some = [Job(task="t", text="a", tenant="acme", tags=("x", "y")), *jobs(1)]
        (one,) = books.prepare(["1", "2"], some, lane="bulk", reply_to=None)
        assert list(one.call.args[7:]) == [
            5,
            *("1", b'{"task":"t","text":"a"}', "acme", "x\ny", ""),
            *("2", b'{"task":"t","text":"text 0"}', "", "", ""),
        ]

    @pytest.mark.parametrize("lane", ["", "fast", "Bulk"])
    def test_unknown_lanes(self, lane: str) -> None:
        with pytest.raises(InvalidJob, match="lanes are"):
            ledger().prepare(["1"], jobs(1), lane=lane, reply_to=None)

    @pytest.mark.parametrize("name", ["", "@x", "a b", "x" * 101, "ü", "a\n", "{0}", "a/b"])
    def test_names_that_cannot_stand_in_a_key(self, name: str) -> None:
        with pytest.raises(InvalidJob, match="client names"):
            ledger(name)
        with pytest.raises(InvalidJob, match="reply streams"):
            ledger().prepare(["1"], jobs(1), lane="bulk", reply_to=name)


class TestVerdicts:
    @staticmethod
    def verdict(letters: bytes) -> QueueFull | IdConflict | None:
        books = ledger()
        some = jobs(len(letters))
        ids = [str(n) for n in range(len(some))]
        (one,) = books.prepare(ids, some, lane="bulk", reply_to=None)
        return books.read_verdicts([(one, letters)])

    def test_accepted_and_known_are_fine(self) -> None:
        assert self.verdict(b"aassa") is None

    def test_full_names_exactly_those(self) -> None:
        error = self.verdict(b"aaff")
        assert isinstance(error, QueueFull)
        assert error.job_ids == ("2", "3")
        assert "max_backlog" in error.reason
        error = self.verdict(b"auau")
        assert isinstance(error, QueueFull)
        assert error.job_ids == ("1", "3")
        assert "read replies" in error.reason

    def test_jobs_that_memory_has_no_room_for_are_named(self) -> None:
        error = self.verdict(b"asm")
        assert isinstance(error, QueueFull)
        assert error.job_ids == ("2",)
        assert "memory" in error.reason

    def test_conflicts(self) -> None:
        error = self.verdict(b"aca")
        assert isinstance(error, IdConflict)
        assert error.conflicting == error.job_ids == ("1",)

    def test_a_refused_job_is_named_beside_a_conflict(self) -> None:
        """IdConflict says "every other job of the call was accepted"."""
        error = self.verdict(b"acf")
        assert isinstance(error, IdConflict)
        assert (error.conflicting, error.job_ids) == (("1",), ("1", "2"))

    def test_a_lost_name(self) -> None:
        with pytest.raises(ClientNameInUse):
            self.verdict(b"!")


class TestReplies:
    def test_a_reply_finds_its_mailbox_once(self) -> None:
        books = ledger()
        found, _, put = collector()
        books.expect(["1", "2"], put)
        assert books.outstanding == 2
        books.receive("0", b"1-1", wire("1"))
        books.receive("0", b"1-2", wire("1"))
        assert found == ["1"]
        assert (books.outstanding, books.duplicates) == (1, 1)

    def test_nobody_steals_what_another_waits_for(self) -> None:
        books = ledger()
        found, _, put = collector()
        books.expect(["1"], put)
        with pytest.raises(IdConflict) as caught:
            books.expect(["0", "1"], lambda _: None)
        assert caught.value.job_ids == ("1",)
        assert books.outstanding == 1
        books.receive("0", b"1-1", wire("1"))
        assert found == ["1"]

    def test_the_same_mailbox_may_wait_again(self) -> None:
        books = ledger()
        found, _, put = collector()
        books.expect(["1"], put)
        books.expect(["1"], put)
        books.receive("0", b"1-1", wire("1"))
        assert found == ["1"]

    def test_replies_to_an_earlier_client_wait_for_whoever_asks(self) -> None:
        books = ledger()
        told: list[None] = []
        books.on_early(lambda: told.append(None))
        books.receive("0", b"1-1", wire("1", "2", "2"))
        assert (len(told), books.duplicates) == (1, 1)
        found, _, put = collector()
        assert books.expect(["2", "3"], put) == {"2", "3"}
        assert found == ["2"]
        assert books.outstanding == 1
        assert [early.reply.id for early in books.take_early()] == ["1"]
        assert books.take_early() == []

    def test_a_second_reply_to_a_job_of_ours_is_dropped(self) -> None:
        """Its enqueue was sent twice, and the job had settled in between."""
        books = ledger()
        found, _, put = collector()
        (own,) = books.assign_ids(jobs(1))
        books.expect([own, "given", "left"], put)
        books.forget("left")
        for entry_id in (b"1-1", b"1-2"):
            books.receive("0", entry_id, wire(own, "given", "left"))
        assert found == [own, "given"]
        assert books.duplicates == 4
        assert books.take_early() == []

    def test_what_is_remembered_of_given_ids_is_bounded(self) -> None:
        books = Ledger("c", pool="default", shards=1, limits=Limits(max_unread=10))
        _, _, put = collector()
        ids = [str(n) for n in range(1000)]
        books.expect(ids, put)
        books.receive("0", b"1-1", wire(*ids))
        assert len(books._done) == 10

    def test_lines_that_are_no_replies_are_counted_and_go_with_their_entry(self) -> None:
        books = ledger()
        found, delivered, put = collector()
        books.expect(["1"], put)
        books.receive("0", b"1-1", b"garbage\n" + wire("1"))
        books.receive("0", b"1-2", b"\xff\n")
        books.receive("0", b"1-3", b"")
        assert (found, books.unreadable) == (["1"], 2)
        books.handed(delivered[0].source)
        ((entries, _, _),) = books.take_handed()
        assert sorted(entries) == [(b"1-1", 2), (b"1-2", 1), (b"1-3", 0)]

    def test_an_entry_goes_when_all_its_replies_are_handed(self) -> None:
        books = ledger()
        _, delivered, put = collector()
        books.expect(["1", "2"], put)
        books.receive("0", b"1-1", wire("1", "2"))
        books.handed(delivered[0].source)
        assert books.take_handed() == []
        books.handed(delivered[1].source)
        ((entries, tag, _),) = books.take_handed()
        assert (entries, tag) == ([(b"1-1", 2)], "0")
        assert books.take_handed() == []
        books.put_back_handed(tag, entries)
        assert [found for found, _, _ in books.take_handed()] == [entries]

    def test_deletions_are_split(self) -> None:
        books = ledger()
        for n in range(CHUNK + 1):
            books.receive("0", b"1-%d" % n, b"garbage\n")
        assert [len(entries) for entries, _, _ in books.take_handed()] == [CHUNK, 1]

    @given(st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4), max_size=12))
    def test_every_reply_is_handed_once_and_every_entry_deleted_once(
        self, entries: list[list[str]]
    ) -> None:
        books = ledger()
        found, delivered, put = collector()
        books.expect(list("abc"), put)
        for n, job_ids in enumerate(entries):
            books.receive("0", b"1-%d" % n, wire(*job_ids))
        sent = [job_id for job_ids in entries for job_id in job_ids]
        assert sorted(found) == sorted(set(sent) & set("abc"))
        books.expect(list("def"), put)
        assert sorted(found) == sorted(set(sent))
        assert books.duplicates == len(sent) - len(found)
        for one in delivered:
            books.handed(one.source)
        deleted = [pair for part, _, _ in books.take_handed() for pair in part]
        assert sorted(deleted) == sorted(
            (b"1-%d" % n, len(job_ids)) for n, job_ids in enumerate(entries)
        )


def test_enqueue_is_a_call_with_its_ids() -> None:
    (one,) = ledger().prepare(["1"], jobs(1), lane="bulk", reply_to="sink")
    assert isinstance(one, Enqueue)
    assert one.call.keys == [
        b"jobs:{0}:default:bulk",
        b"ids:{0}:default",
        b"owed:{0}",
        b"clients:{0}",
        b"reply:{0}:@sink",
        b"memory:{0}",
    ]
