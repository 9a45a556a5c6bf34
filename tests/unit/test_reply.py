"""Replies on the wire: NDJSON, one line a reply."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from askonce_queue.reply import (
    Answer,
    ErrorCode,
    ErrorInfo,
    Reply,
    Usage,
    WireReply,
    decode_replies,
    encode_replies,
)

TEXT = st.text(st.characters(codec="utf-8"))


def test_an_answer_and_an_error() -> None:
    raw = msgspec.Raw(b'{"label":"spam","score":0.5,"usage":{"input_tokens":3}}')
    wire = encode_replies(
        [
            WireReply(id="1", answer=raw, source="store", age_s=1.5, took_ms=7),
            WireReply(id="2", error=ErrorInfo("unknown_task", "no task 'x'")),
        ]
    )
    assert bytes(raw) in wire
    answer = Answer(label="spam", score=0.5, usage=Usage(input_tokens=3))
    replies = [
        Reply(id="1", answer=answer, source="store", age_s=1.5, took_ms=7),
        Reply(id="2", error=ErrorInfo("unknown_task", "no task 'x'")),
    ]
    assert decode_replies(wire) == (replies, 0)


@given(st.lists(st.tuples(TEXT, TEXT), max_size=5))
def test_one_line_a_reply_whatever_stands_in_it(parts: list[tuple[str, str]]) -> None:
    """The settle script leaves out lines by number: line breaks must be escaped."""
    wire = encode_replies(
        [WireReply(id=job_id, error=ErrorInfo("internal", text)) for job_id, text in parts]
    )
    assert wire.count(b"\n") == len(parts)
    replies, unreadable = decode_replies(wire)
    assert unreadable == 0
    found = [(reply.id, reply.error.message) for reply in replies if reply.error is not None]
    assert found == parts


def test_defaults_cost_no_bytes() -> None:
    assert encode_replies([WireReply(id="1")]) == b'{"id":"1"}\n'


@given(st.binary(max_size=40))
def test_garbage_beside_replies_is_counted_and_harms_none(garbage: bytes) -> None:
    lines = b'{"id":"1"}\n' + garbage.replace(b"\n", b" ") + b'\n{"id":"2"}\n'
    replies, unreadable = decode_replies(lines)
    assert (replies[0].id, replies[-1].id) == ("1", "2")
    assert len(replies) + unreadable == 2 + bool(garbage.strip())


def test_what_only_a_newer_worker_knows() -> None:
    newer = b'{"id":"1","tier":"galactic","source":"moon","error":{"code":"new","message":"m"}}\n'
    assert decode_replies(newer) == ([Reply(id="1", source="moon", error=ErrorInfo("new", "m"))], 0)


@pytest.mark.parametrize("code", get_args(ErrorCode))
def test_every_code_travels(code: ErrorCode) -> None:
    wire = encode_replies([WireReply(id="1", error=ErrorInfo(code, "m"))])
    ((reply,), _) = decode_replies(wire)
    assert reply.error == ErrorInfo(code, "m")
