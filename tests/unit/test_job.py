"""Jobs as they are checked on admission."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from askonce_queue.errors import InvalidJob
from askonce_queue.job import (
    MAX_ID_CHARS,
    MAX_JOB_BYTES,
    MAX_TAG_CHARS,
    MAX_TAGS,
    MAX_TENANT_CHARS,
    Job,
    Payload,
    encode_payload,
    valid_name,
)


def decoded(job: Job) -> Payload:
    return msgspec.json.decode(encode_payload(job), type=Payload)


def test_only_what_a_model_sees_is_in_the_payload() -> None:
    job = Job(task="t", text="hi", id="7", tenant="acme", tags=("a",), params={"top_p": 1})
    assert msgspec.json.decode(encode_payload(job)) == {
        "task": "t",
        "text": "hi",
        "params": {"top_p": 1},
    }


def test_equal_jobs_have_equal_payloads() -> None:
    """The enqueue script compares them byte by byte."""
    first = Job(task="t", messages=[{"role": "user", "content": "hi"}])
    second = Job(task="t", messages=[{"role": "user", "content": "hi"}], id="x")
    assert encode_payload(first) == encode_payload(second)


@pytest.mark.parametrize(
    "job",
    [
        Job(task="t"),
        Job(task="t", text="a", messages=[]),
        Job(task="t", text="\ud800"),
        Job(task="\udfff", text="a"),
        Job(task="t", messages=[{"content": "\ud800"}]),
        Job(task="t", messages=[{"content": object()}]),
        Job(task="t", text="a", id=""),
        Job(task="t", text="a", id="x" * (MAX_ID_CHARS + 1)),
        Job(task="t", text="a", id="line\nbreak"),
        Job(task="t", text="a", id="\ud800"),
        Job(task="t", text="a", tenant="x" * (MAX_TENANT_CHARS + 1)),
        Job(task="t", text="a", tenant="nul\0"),
        Job(task="t", text="a", tags=("",)),
        Job(task="t", text="a", tags=("two\nlines",)),
        Job(task="t", text="a", tags=("x" * (MAX_TAG_CHARS + 1),)),
        Job(task="t", text="a", tags=("x",) * (MAX_TAGS + 1)),
        Job(task="t", text="x" * MAX_JOB_BYTES),
    ],
)
def test_what_a_worker_would_refuse_is_refused(job: Job) -> None:
    with pytest.raises(InvalidJob):
        encode_payload(job)


def test_the_bounds_themselves_are_allowed() -> None:
    frame = len(encode_payload(Job(task="t", text="")))
    largest = Job(task="t", text="x" * (MAX_JOB_BYTES - frame))
    assert len(encode_payload(largest)) == MAX_JOB_BYTES
    names = Job(
        task="t",
        text="a",
        id="x" * MAX_ID_CHARS,
        tenant="ü" * MAX_TENANT_CHARS,
        tags=("x" * MAX_TAG_CHARS,) * MAX_TAGS,
    )
    assert decoded(names).text == "a"


def test_a_lower_limit() -> None:
    with pytest.raises(InvalidJob, match="more than the limit of 10"):
        encode_payload(Job(task="t", text="hello"), max_bytes=10)


def test_nesting_is_bounded() -> None:
    nested: Any = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(InvalidJob):
        encode_payload(Job(task="t", messages=[{"content": nested}]))


@pytest.mark.parametrize("wrong", [{"id": 5}, {"tenant": 3}, {"tags": (1,)}])
def test_wrong_types_are_invalid_jobs(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidJob):
        encode_payload(Job(task="t", text="a", **wrong))


@given(st.text(st.characters(codec="utf-8")))
def test_any_unicode_text_survives(text: str) -> None:
    assert decoded(Job(task="t", text=text)).text == text


@given(st.text())
def test_valid_names_fit_on_a_line_and_encode(name: str) -> None:
    if valid_name(name, 50):
        assert len(name.splitlines()) == 1
        assert name.encode().decode() == name


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_json_are_refused(number: float) -> None:
    """msgspec would write them as null, and another question would be asked."""
    for job in (
        Job(task="t", text="a", params={"deep": [{"temperature": number}]}),
        Job(task="t", messages=[{"content": {"n": number}}]),
    ):
        with pytest.raises(InvalidJob):
            encode_payload(job)
