"""The envelope: what a worker knows of an entry, whatever stands in its payload."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askonce_queue.envelope import read_envelope

ID = b"1700000000000-0"
PLAIN = [b"v", b"1", b"c", b"client", b"i", b"job", b"p", b"{}"]


def test_a_plain_entry() -> None:
    envelope = read_envelope(ID, PLAIN)
    assert not envelope.problem
    assert (envelope.entry_id, envelope.client, envelope.job_id) == (ID, "client", "job")
    assert envelope.payload == b"{}"
    assert (envelope.tenant, envelope.tags, envelope.deadline_ms) == ("", (), 0)
    assert envelope.address == "client"
    assert envelope.record == "client/job"


def test_every_field() -> None:
    more = [b"r", b"@sink", b"n", "größe".encode(), b"g", b"a\nb", b"d", b"1500", b"o", b"17"]
    envelope = read_envelope(ID, [*more, *PLAIN])
    assert not envelope.problem
    assert envelope.address == "@sink"
    assert envelope.record == "client/job"
    assert envelope.tenant == "größe"
    assert envelope.tags == ("a", "b")
    assert envelope.deadline_ms == 1500
    assert envelope.origin_ms == 17


@pytest.mark.parametrize(
    "deadline", [b"", b"0", b"-1", b"1.5", b" 1 ", b"1_0", b"soon", b"9" * 30, b"9" * 5000]
)
def test_what_is_no_deadline(deadline: bytes) -> None:
    envelope = read_envelope(ID, [*PLAIN, b"d", deadline])
    assert envelope.problem.startswith("the envelope is not valid")
    assert envelope.address == "client"


@pytest.mark.parametrize("origin", [b"", b"-1", b"then", b"9" * 30])
def test_what_is_no_origin(origin: bytes) -> None:
    assert "not valid" in read_envelope(ID, [*PLAIN, b"o", origin]).problem


def test_no_fields() -> None:
    nothing: list[list[bytes] | None] = [None, []]
    for fields in nothing:
        envelope = read_envelope(ID, fields)
        assert envelope.problem == "the entry has no fields"
        assert envelope.address == ""


def test_what_is_missing_is_named_and_the_address_survives() -> None:
    for missing, words in (("v", "version"), ("i", "no job id"), ("p", "no payload")):
        at = PLAIN.index(missing.encode())
        envelope = read_envelope(ID, PLAIN[:at] + PLAIN[at + 2 :])
        assert words in envelope.problem
        assert envelope.address == "client"


def test_another_version_is_not_guessed_at() -> None:
    envelope = read_envelope(ID, [b"v", b"2", *PLAIN[2:]])
    assert "version b'2' is not known here" in envelope.problem
    assert envelope.job_id == "job"


def test_bad_values_leave_what_was_read_before_them() -> None:
    for name, value in ((b"n", b"\xff"), (b"g", b"\xff"), (b"d", b"soon"), (b"d", b"9" * 5000)):
        envelope = read_envelope(ID, [*PLAIN, name, value])
        assert envelope.problem.startswith("the envelope is not valid")
        assert (envelope.address, envelope.job_id) == ("client", "job")


def test_the_last_of_repeated_fields_counts() -> None:
    assert read_envelope(ID, [*PLAIN, b"c", b"other"]).client == "other"


NAMES = st.sampled_from([b"v", b"c", b"i", b"p", b"r", b"n", b"g", b"d"])
FIELDS = st.lists(st.tuples(NAMES | st.binary(max_size=3), st.binary(max_size=30)))


@given(FIELDS)
def test_it_never_raises_and_is_either_whole_or_has_a_problem(
    pairs: list[tuple[bytes, bytes]],
) -> None:
    envelope = read_envelope(ID, [part for pair in pairs for part in pair])
    if not envelope.problem:
        given_fields = dict(pairs)
        assert given_fields[b"v"] == b"1"
        assert envelope.job_id.encode() == given_fields[b"i"]
        assert envelope.payload == given_fields[b"p"]
