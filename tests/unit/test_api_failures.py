"""What HTTP errors of model APIs mean, without a server; and that no message holds the key."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from askonce_queue.reply import ErrorCode
from askonce_worker.models.chat import ChatCompletions
from askonce_worker.models.http_reply import MAX_SHOWN_CHARS, Response, retry_after_s
from askonce_worker.models.protocol import ModelFailure, Prompt, Rejection, TransientFailure

SECRET = "sk-proj-0123456789abcdef"  # noqa: S105 - made up
JSON_HEADERS = {"content-type": "application/json", "content-length": "1"}


def completion(content: object = '{"label":"spam"}', **choice: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    return {"choices": [{"message": message, "finish_reason": "stop", **choice}], "model": "m-1"}


def failure(body: object, *, status: int, headers: dict[str, str] | None = None) -> ModelFailure:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    used = JSON_HEADERS if headers is None else headers
    with pytest.raises(ModelFailure) as caught:
        ChatCompletions().answer(
            Response(status, used, raw, SECRET), Prompt(labels=("spam", "ham"))
        )
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (201, Rejection, "unparsable"),
        (204, Rejection, "unparsable"),
        (301, Rejection, "rejected"),
        (307, Rejection, "rejected"),
        (400, Rejection, "rejected"),
        (401, Rejection, "unauthorized"),
        (402, Rejection, "quota_exceeded"),
        (403, Rejection, "unauthorized"),
        (404, Rejection, "rejected"),
        (408, TransientFailure, "unavailable"),
        (409, TransientFailure, "unavailable"),
        (413, Rejection, "rejected"),
        (422, Rejection, "rejected"),
        (429, TransientFailure, "rate_limited"),
        (500, TransientFailure, "unavailable"),
        (503, TransientFailure, "unavailable"),
        (529, TransientFailure, "unavailable"),
    ],
)
def test_every_status_has_its_failure(
    status: int, kind: type[ModelFailure], code: ErrorCode
) -> None:
    for body in (b"", b"<html>", b"{", orjson.dumps(completion())):
        error = failure(body, status=status, headers={})
        assert isinstance(error, kind)
        assert error.code == code
        assert str(status) in error.message


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "too hot", "type": "t", "param": None, "code": 400}},
        {"type": "error", "error": {"type": "t", "message": "too hot"}, "request_id": "r"},
        {"error": "too hot", "error_type": "validation"},
        {"object": "error", "message": "too hot", "code": 400},
        {"detail": "too hot"},
    ],
)
def test_the_message_of_each_api_is_found(body: object) -> None:
    assert failure(body, status=400).message == "HTTP 400: too hot"


@pytest.mark.parametrize(
    "body", [{"error": {"message": 5}}, {"error": [1]}, {"detail": [{"loc": 1}]}, 5]
)
def test_an_error_body_of_another_shape_leaves_the_status(body: object) -> None:
    assert failure(body, status=400).message == "HTTP 400"


def test_an_input_that_the_api_filtered_is_refused() -> None:
    body = {"error": {"message": "filtered", "code": "content_filter"}}
    assert failure(body, status=400).code == "refused"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ({"type": "insufficient_quota", "code": "insufficient_quota"}, "quota_exceeded"),
        ({"type": "insufficient_quota", "code": None}, "quota_exceeded"),
        ({"type": "insufficient_quota", "code": "project_spend_limit_exceeded"}, "quota_exceeded"),
        ({"type": "requests", "code": "rate_limit_exceeded"}, "rate_limited"),
        ({"type": "tokens", "code": None}, "rate_limited"),
    ],
)
def test_of_two_kinds_of_429_one_is_worth_another_attempt(error: Any, code: ErrorCode) -> None:
    """Slow down, or pay: the messages of the latter say "check your plan and billing details"."""
    found = failure({"error": error | {"message": "no"}}, status=429)
    assert found.code == code
    assert isinstance(found, Rejection) == (code == "quota_exceeded")
    assert ("billing" in found.message) == (code == "quota_exceeded")


def test_unauthorized_names_the_code_and_quotes_nothing_else() -> None:
    masked = {"message": f"Incorrect API key: {SECRET[:9]}***", "code": "invalid_api_key"}
    message = failure({"error": masked}, status=401).message
    assert "invalid_api_key" in message
    assert SECRET[:9] not in message


@given(
    st.sampled_from([200, 400, 401, 404, 429, 500]),
    st.text(max_size=MAX_SHOWN_CHARS + 20),
    st.sampled_from(["error", "content", "refusal", "finish", "label", "code", "choices"]),
)
def test_the_key_is_in_no_message_wherever_it_comes_from(
    status: int, around: str, place: str
) -> None:
    said = f"{around}{SECRET}{around}".encode(errors="ignore").decode()
    bodies: dict[str, Any] = {
        "error": {"error": {"message": said, "code": "c"}},
        "code": {"error": {"message": "m", "code": said}},
        "choices": {"choices": [], "error": said},
        "content": completion(said),
        "refusal": completion(message={"refusal": said}),
        "finish": completion(finish_reason=said),
        "label": completion(json.dumps({"label": said})),
    }
    error = failure(json.dumps(bodies[place]).encode(), status=status)
    assert SECRET not in str(error)
    assert SECRET[:12] not in str(error)  # nor its beginning, where a message was shortened
    assert error.message.isprintable()


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"Retry-After": "3"}, 3.0),
        ({"Retry-After": "0.5"}, 0.5),
        ({"Retry-After": " 7 "}, 7.0),
        ({"Retry-After-Ms": "250", "Retry-After": "9"}, 0.25),
        ({"Retry-After-Ms": "soon", "Retry-After": "9"}, 9.0),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "1e999"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": ""}, None),
        ({"Retry-After": "Fri, 20 Nov 2026 10:00:30 GMT"}, None),
        (
            {
                "Retry-After": "Fri, 20 Nov 2026 10:00:30 GMT",
                "Date": "Fri, 20 Nov 2026 10:00:00 GMT",
            },
            30.0,
        ),
        (
            {
                "Retry-After": "Fri, 20 Nov 2026 09:00:00 GMT",
                "Date": "Fri, 20 Nov 2026 10:00:00 GMT",
            },
            0.0,
        ),
        (
            {
                "Retry-After": "Fri, 20 Nov 2026 10:00:30 -0000",
                "Date": "Fri, 20 Nov 2026 10:00:00 GMT",
            },
            None,
        ),
    ],
)
def test_retry_after_in_each_form(headers: dict[str, str], expected: float | None) -> None:
    assert retry_after_s(CIMultiDict(headers)) == expected
    error = failure(b"", status=429, headers={name.lower(): text for name, text in headers.items()})
    assert isinstance(error, TransientFailure)
    assert error.retry_after_s == expected


@given(st.text(), st.text())
def test_no_header_makes_retry_after_raise(after: str, date: str) -> None:
    seconds = retry_after_s({"retry-after": after, "date": date})
    assert seconds is None or seconds >= 0
