"""The stored answer: its bytes are a format that workers of several versions share."""

from __future__ import annotations

import re
import struct
from contextlib import suppress
from importlib.resources import files
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from askonce_queue.reply import Answer, Usage
from askonce_worker.cache import entry as entry_module
from askonce_worker.cache.entry import (
    HEADER,
    MEMORY_OVERHEAD_BYTES,
    VERSION,
    Entry,
    decode_body,
    decode_entry,
    encode_body,
)

NOW_MS = 1_800_000_000_000.0
BUILT = 1_799_999_999_000_000.0
GOLDEN_HEADER = bytes.fromhex(
    "01 00"  # version, flags
    "00 00 00 c5 85 31 7a 42"  # created, ms
    "00 f7 24 a2 5c 94 19 43"  # built, µs
    "00 00 35 d1 85 31 7a 42"  # fresh until: 50 s later
    "00 00 a6 d3 85 31 7a 42"  # stale until: 60 s later
    "0f 00"  # 15 bytes of tags
)
GOLDEN_BODY = bytes.fromhex(
    "96"  # six fields
    "a9 636172645f6c6f7374"  # "card_lost"
    "cb 3fefae147ae147ae"  # 0.99
    "a5 6770742d35"  # "gpt-5"
    "92 0c 03"  # tokens in and out
    "c0 c0"  # no scores, no value
)
ANSWER = Answer(label="card_lost", score=0.99, model="gpt-5", usage=Usage(12, 3))
MINIMAL_BODY = b"\x96\xa4spam\xc0\xc0\xc0\xc0\xc0"


def packed(*, fresh_ms: float = 50_000, tags: bytes = b"task:intent\nvip") -> bytes:
    over = NOW_MS + 60_000
    header = struct.pack("<BBddddH", 1, 0, NOW_MS, BUILT, NOW_MS + fresh_ms, over, len(tags))
    return header + tags + GOLDEN_BODY


def decode(data: bytes, *, at_ms: float = NOW_MS, memory_ttl_s: float = 300.0) -> Entry:
    return decode_entry(data, now_ms=at_ms, monotonic=1000.0, memory_ttl_s=memory_ttl_s, shard=2)


# --- layout ----------------------------------------------------------------------------------


def test_the_header_is_as_its_table_says() -> None:
    """The table in the docstring of `entry.py` is what others implement."""
    formats = {"u8": "B", "u16": "H", "f64": "d"}
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", str(entry_module.__doc__), re.MULTILINE)
    offset, fields = 0, "<"
    for position, kind in rows:
        assert int(position) == offset
        if kind == "bytes":
            break
        fields += formats[kind]
        offset = struct.calcsize(fields)
    assert fields == HEADER.format
    assert offset == HEADER.size == 36


@pytest.mark.parametrize("script", ["look_up", "fill"])
def test_the_scripts_use_the_same_header(script: str) -> None:
    lua = (files("askonce_queue") / "lua" / f"{script}.lua").read_text()
    headers = [found for found in re.findall(r"'(<\w+)'", lua) if found.endswith("H")]
    assert headers == [HEADER.format]


def test_the_look_up_finds_tags_and_body_where_they_are() -> None:
    lua = (files("askonce_queue") / "lua" / "look_up.lua").read_text()
    assert f"string.sub(entry, {HEADER.size + 1}, {HEADER.size} + tag_bytes)" in lua


def test_the_first_byte_of_an_entry_is_no_other_result() -> None:
    """A look-up's result is told apart by its first byte; an entry's is its version."""
    assert VERSION == 1
    assert chr(VERSION) not in "LSBFRU"


# --- golden bytes ----------------------------------------------------------------------------


def test_the_golden_header() -> None:
    assert packed()[: HEADER.size] == GOLDEN_HEADER


def test_the_golden_body() -> None:
    assert encode_body(ANSWER) == GOLDEN_BODY
    assert decode_body(GOLDEN_BODY) == ANSWER
    assert encode_body(Answer(label="spam")) == MINIMAL_BODY
    assert decode_body(MINIMAL_BODY) == Answer(label="spam")


def test_golden_bytes_can_be_read() -> None:
    entry = decode(GOLDEN_HEADER + b"task:intent\nvip" + GOLDEN_BODY)
    assert entry.answer == ANSWER
    assert entry.tags == ("task:intent", "vip")
    assert entry.built == BUILT


def test_a_body_of_fewer_or_more_fields_can_be_read() -> None:
    """Fields are only ever added at the end."""
    assert decode_body(b"\x93\xa4spam\xc0\xc0") == Answer(label="spam")
    assert decode_body(b"\x97" + MINIMAL_BODY[1:] + b"\xa5later") == Answer(label="spam")


def test_most_answers_are_small() -> None:
    """Part of the 250 bytes that a cached label may take in the store."""
    assert HEADER.size + len(b"task:intent") + len(GOLDEN_BODY) < 80


# --- reading ---------------------------------------------------------------------------------


def test_ages_and_deadlines_are_counted_from_now() -> None:
    entry = decode(packed(), at_ms=NOW_MS + 20_000)
    assert entry.born == 1000.0 - 20
    assert entry.kept == 1000.0 + 30
    assert entry.built == BUILT
    assert (entry.shard, entry.fresh_until) == (2, 1000.0 + 30)
    assert entry.created_ms == NOW_MS


def test_memory_keeps_it_no_longer_than_it_may() -> None:
    assert decode(packed(), memory_ttl_s=7.0).kept == 1007.0


def test_a_stale_entry() -> None:
    entry = decode(packed(), at_ms=NOW_MS + 50_000)
    assert entry.fresh_until == 1000.0
    assert entry.kept <= 1000.0


def test_an_entry_from_the_future_is_new() -> None:
    """The server's clock went back."""
    assert decode(packed(), at_ms=NOW_MS - 5_000).born == 1000.0


@pytest.mark.parametrize(("tags", "expected"), [(b"", ()), (b"a", ("a",)), (b"a\nb", ("a", "b"))])
def test_tags(tags: bytes, expected: tuple[str, ...]) -> None:
    assert decode(packed(tags=tags)).tags == expected


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        packed()[:35],
        packed()[:-1],
        b"\x02" + packed()[1:],
        packed() + b"more",
        packed()[: HEADER.size + 15] + b"\x93\x01\xc0\xc0",  # a label that is a number
        packed()[: HEADER.size + 15] + b"\x91\xa1a",  # fields missing
        packed()[:34] + b"\xff\xff" + packed()[36:],  # tags beyond the end
        packed(tags=b"\xff\xfe"),
    ],
)
def test_what_is_not_an_entry_is_refused(data: bytes) -> None:
    with pytest.raises((struct.error, msgspec.MsgspecError, UnicodeDecodeError)):
        decode(data)


def test_replies_carry_the_answer_as_json() -> None:
    entry = decode(packed())
    assert msgspec.json.decode(entry.json, type=Answer) == ANSWER
    assert entry.size_bytes == len(bytes(entry.json)) + MEMORY_OVERHEAD_BYTES


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
answers = st.builds(
    Answer,
    label=st.none() | st.text(),
    score=st.none() | st.floats(0, 1),
    scores=st.none() | st.dictionaries(st.text(), st.floats(0, 1), max_size=4),
    value=json_values,
    model=st.none() | st.text(),
    usage=st.none() | st.builds(Usage, st.integers(0, 2**40), st.integers(0, 2**40)),
)


@given(answers)
def test_answers_come_back_as_they_were(answer: Answer) -> None:
    assert decode_body(encode_body(answer)) == answer


@given(st.binary(max_size=80))
def test_no_bytes_do_worse_than_to_be_refused(data: bytes) -> None:
    for candidate in (data, b"\x01" + data, packed()[:36] + data):
        with suppress(struct.error, msgspec.MsgspecError, UnicodeDecodeError):
            decode(candidate)
