"""What HTTP responses of chat completion APIs mean, without a server."""

from __future__ import annotations

import gzip
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from askonce_queue.reply import Answer, ErrorCode, Usage
from askonce_worker.models.chat import ChatCompletions
from askonce_worker.models.http_reply import MAX_BODY_BYTES, Response
from askonce_worker.models.protocol import (
    ModelFailure,
    Prompt,
    Rejection,
    TransientFailure,
)

LABELS = Prompt(labels=("spam", "ham"))
FREE = Prompt()
SECRET = "sk-proj-0123456789abcdef"  # noqa: S105 - made up
JSON_HEADERS = {"content-type": "application/json; charset=utf-8", "content-length": "1"}


def completion(content: object = '{"label":"spam"}', **fields: Any) -> dict[str, Any]:
    """Build a completion; `message`, `finish_reason` and top-level fields can be replaced."""
    message = fields.pop("message", {"role": "assistant", "content": content})
    choice = {"index": 0, "message": message, "finish_reason": fields.pop("finish_reason", "stop")}
    return {
        "choices": [choice],
        "model": "m-1",
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
        **fields,
    }


def parse(
    body: object,
    prompt: Prompt = LABELS,
    *,
    status: int = 200,
    headers: dict[str, str] | None = None,
) -> Answer:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    used = JSON_HEADERS if headers is None else headers
    return ChatCompletions().answer(Response(status, used, raw, SECRET), prompt)


def failure(
    body: object,
    prompt: Prompt = LABELS,
    *,
    status: int = 200,
    headers: dict[str, str] | None = None,
) -> ModelFailure:
    with pytest.raises(ModelFailure) as caught:
        parse(body, prompt, status=status, headers=headers)
    assert "\n" not in caught.value.message
    return caught.value


def test_the_agreed_json_gives_label_model_and_usage() -> None:
    usage = Usage(input_tokens=7, output_tokens=2)
    assert parse(completion()) == Answer(label="spam", model="m-1", usage=usage)


@pytest.mark.parametrize("content", ["spam", " spam\n", '"spam"', "'spam'", '{ "label" : "spam" }'])
def test_a_bare_label_counts_too(content: str) -> None:
    assert parse(completion(content)).label == "spam"


def test_a_label_with_quotes_of_its_own_is_found() -> None:
    assert parse(completion('"x"'), Prompt(labels=('"x"', "x"))).label == '"x"'


def test_free_text_is_the_label_as_it_stands() -> None:
    assert parse(completion("  Some text.\n"), FREE).label == "  Some text.\n"


@pytest.mark.parametrize("finish_reason", ["stop", "eos_token", "stop_sequence"])
def test_reasons_of_a_complete_answer(finish_reason: str) -> None:
    assert parse(completion(finish_reason=finish_reason)).label == "spam"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (completion('{"label":"eggs"}'), "out_of_set"),
        (completion('{"label":"SPAM"}'), "out_of_set"),
        (completion('{"label":"spam "}'), "out_of_set"),
        (completion('{"label":"spam","why":"x"}'), "unparsable"),
        (completion('{"label":1}'), "unparsable"),
        (completion('{"label":null}'), "unparsable"),
        (completion("{}"), "unparsable"),
        (completion('["spam"]'), "unparsable"),
        (completion('{"label": '), "unparsable"),
        (completion("spam ham"), "unparsable"),
        (completion("eggs"), "unparsable"),
        (completion("The label is spam."), "unparsable"),
        (completion("[" * 5000), "unparsable"),
        (completion(""), "unparsable"),
        (completion("  \n"), "unparsable"),
        (completion(None), "unparsable"),
        (completion(["spam"]), "unparsable"),
        (completion(finish_reason="length"), "truncated"),
        (completion(finish_reason="content_filter"), "refused"),
        (completion(finish_reason="refusal"), "refused"),
        (completion(finish_reason=None), "unparsable"),
        (completion(finish_reason="tool_calls"), "unparsable"),
        (completion(message={"content": None, "refusal": "No.\nNever."}), "refused"),
        (completion(message={"content": '{"label":"spam"}', "refusal": "No."}), "refused"),
        (completion(message={"refusal": "No."}, finish_reason="length"), "refused"),
        (completion(message=None), "unparsable"),
        (completion(choices=[]), "unparsable"),
        (completion(choices=None), "unparsable"),
        (completion(choices="spam"), "unparsable"),
        ({"error": {"message": "upstream is down"}}, "unparsable"),
        ({"choices": [{"message": {"content": '{"label":"spam"}'}}]}, "unparsable"),
        ([], "unparsable"),
        (b"null", "unparsable"),
        (b"", "unparsable"),
        (b'{"choices": [', "unparsable"),
        (b"\xff\xfe", "unparsable"),
        (b"[" * 100_000, "unparsable"),
        (b'{"usage":' + b"[" * 100_000, "unparsable"),
        (gzip.compress(b"{}", mtime=0), "unparsable"),
        (b'{"choices":[{"message":{"content":"\\ud800"},"finish_reason":"stop"}]}', "unparsable"),
        (b" " * (MAX_BODY_BYTES + 1), "unparsable"),
    ],
)
def test_what_is_no_answer_is_rejected_by_name(body: object, code: ErrorCode) -> None:
    error = failure(body)
    assert isinstance(error, Rejection)
    assert error.code == code


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_free_text_without_content_is_no_answer(content: str | None) -> None:
    assert failure(completion(content), FREE).code == "unparsable"


@pytest.mark.parametrize("finish_reason", ["abort", "error"])
def test_a_server_that_gave_up_is_worth_another_attempt(finish_reason: str) -> None:
    error = failure(completion(finish_reason=finish_reason))
    assert isinstance(error, TransientFailure)
    assert error.code == "unavailable"


@pytest.mark.parametrize(
    ("headers", "kind", "code"),
    [
        ({"content-length": "9"}, Rejection, "unparsable"),
        ({"transfer-encoding": "chunked"}, Rejection, "unparsable"),
        ({}, TransientFailure, "unavailable"),  # ends where the connection does: cut
    ],
)
def test_broken_json_is_a_cut_body_only_where_http_cannot_tell(
    headers: dict[str, str], kind: type[ModelFailure], code: ErrorCode
) -> None:
    body = orjson.dumps(completion())[:-20]
    error = failure(body, headers={"content-type": "application/json", **headers})
    assert isinstance(error, kind)
    assert error.code == code


@pytest.mark.parametrize("content_type", ["text/html", "", "application/jsonp", "text/json"])
def test_only_json_content_types_count(content_type: str) -> None:
    assert failure(completion(), headers={"content-type": content_type}).code == "unparsable"


@pytest.mark.parametrize("content_type", ["Application/JSON", "application/problem+json"])
def test_json_content_types_in_any_writing(content_type: str) -> None:
    assert parse(completion(), headers={"content-type": content_type}).label == "spam"


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, None),
        ({}, None),
        ([], None),
        ("many", None),
        ({"prompt_tokens": None}, None),
        ({"prompt_tokens": -1}, None),
        ({"prompt_tokens": True}, None),
        ({"prompt_tokens": 5, "completion_tokens": 1.5}, None),
        ({"prompt_tokens": 5}, Usage(input_tokens=5)),
    ],
)
def test_usage_that_makes_no_sense_does_not_cost_the_answer(
    usage: object, expected: Usage | None
) -> None:
    answer = parse(completion(usage=usage))
    assert answer.label == "spam"
    assert answer.usage == expected


def test_usage_beyond_every_integer_type_is_left_out() -> None:
    body = json.dumps(completion(usage={"prompt_tokens": 10**30})).encode()
    assert parse(body).usage is None


@pytest.mark.parametrize("model", [None, 5, "", "x" * 201])
def test_a_model_id_that_is_none_is_left_out(model: object) -> None:
    assert parse(completion(model=model)).model is None


@given(st.binary(max_size=300) | st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["choices", "message", "content", "finish_reason", "error", "label"]),
        inner, max_size=4),
).map(orjson.dumps), st.sampled_from([200, 204, 302, 400, 401, 429, 500]))  # fmt: skip
def test_no_body_makes_it_raise_anything_else(body: bytes, status: int) -> None:
    for prompt in (LABELS, FREE):
        try:
            answer = parse(body, prompt, status=status)
        except ModelFailure:
            continue
        assert answer.label
