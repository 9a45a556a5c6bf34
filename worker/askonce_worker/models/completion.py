"""What a chat completion says: an HTTP response becomes an `Answer` or a named failure. No I/O.

The format is that of OpenAI's API reference, "Create chat completion", as OpenAI, vLLM, Ollama and
other compatible servers answer it. Error bodies come in the shapes of OpenAI, Anthropic and TEI.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Annotated, Any

import msgspec

from askonce_queue.reply import Answer, Usage
from askonce_worker.models.protocol import ModelFailure, Prompt, Rejection, TransientFailure

MAX_BODY_BYTES = 4 * 1024 * 1024
"""Largest response body read, in bytes after decompression."""
MAX_SHOWN_CHARS = 300
"""Longest text of an API or a model quoted in a message."""
MAX_MODEL_ID_CHARS = 200
_TokenCount = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
_FINISHED = frozenset({"stop", "eos_token", "stop_sequence"})
"""Finish reasons of a complete answer; the latter two are those of TGI."""
_REFUSED = frozenset({"content_filter", "refusal"})
_ABORTED = frozenset({"abort", "error"})
"""The server gave up, the model did not finish (vLLM at shutdown: vllm#57082)."""
_REFUSAL_CODES = frozenset({"content_filter", "content_policy_violation"})
"""Error codes by which an API refuses the input itself with a 4xx (Azure OpenAI)."""


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] | None = None
    model: Any = None
    usage: Any = None
    error: Any = None


class _Usage(msgspec.Struct):
    prompt_tokens: _TokenCount
    completion_tokens: _TokenCount = 0


class _ErrorObject(msgspec.Struct):
    message: Any = None
    code: Any = None
    type: Any = None


class _ErrorBody(msgspec.Struct):
    error: _ErrorObject | str | None = None
    error_type: Any = None
    message: Any = None
    detail: Any = None


class _LabelObject(msgspec.Struct, forbid_unknown_fields=True):
    label: str


_completion_decoder = msgspec.json.Decoder(_Completion)
_error_decoder = msgspec.json.Decoder(_ErrorBody)
_label_decoder = msgspec.json.Decoder(_LabelObject)


def parse_completion(
    status: int, headers: Mapping[str, str], body: bytes, prompt: Prompt, *, secret: str = ""
) -> Answer:
    """Return the answer in a complete HTTP response, or raise the `ModelFailure` it stands for.

    `headers` is case-insensitive, or has lower-case names. `body` is decompressed and complete as
    far as HTTP can tell; one of more than `MAX_BODY_BYTES` is not an answer. `secret` (the API
    key) is struck out of whatever a message quotes.
    """
    if status != HTTPStatus.OK:
        raise failure_of_status(status, headers, body, secret=secret)
    completion = _decoded(headers, body, secret)
    if not completion.choices:
        reason, _ = _api_error(body)
        detail = f": {shown(reason, secret)}" if reason else ""
        raise Rejection("unparsable", f"the completion has no choices{detail}")
    choice = completion.choices[0]
    _check_finished(choice, secret)
    text = choice.message.content
    if text is None or not text.strip():
        raise Rejection("unparsable", "the completion has no content")
    model = completion.model
    known = isinstance(model, str) and 0 < len(model) <= MAX_MODEL_ID_CHARS
    return Answer(
        label=_label_in(text, prompt.labels, secret) if prompt.labels else text,
        model=model if known else None,
        usage=_usage(completion.usage),
    )


def failure_of_status(
    status: int, headers: Mapping[str, str], body: bytes, *, secret: str = ""
) -> ModelFailure:
    """Return the failure that an HTTP `status` other than 200 stands for.

    401 and 403 quote only the API's error code: their messages may repeat a part of the key.
    """
    message, error_code = _api_error(body)
    said = f"HTTP {status}" + (f": {shown(message, secret)}" if message else "")
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return TransientFailure("rate_limited", said, retry_after_s(headers))
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.CONFLICT,
    }:
        return TransientFailure("unavailable", said, retry_after_s(headers))
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        code = f" ({shown(error_code, secret)})" if error_code else ""
        return Rejection(
            "unauthorized", f"HTTP {status}{code}: check the API key and what it may use"
        )
    if status >= HTTPStatus.BAD_REQUEST:
        return Rejection("refused" if error_code in _REFUSAL_CODES else "rejected", said)
    if status >= HTTPStatus.MULTIPLE_CHOICES:
        return Rejection(
            "rejected", f"HTTP {status}: redirects are not followed; configure the final base_url"
        )
    return Rejection("unparsable", f"HTTP {status} where 200 was expected")


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds an API asked to wait, or None when it did not say so understandably.

    `retry-after-ms` (OpenAI, Azure), else `retry-after` in seconds or as an HTTP date (RFC 9110,
    10.2.3). A date is compared with the response's own `date`, so no clock of ours matters.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    text = headers.get("retry-after")
    seconds = _number(text)
    if seconds is not None or text is None:
        return seconds
    try:
        until, now = parsedate_to_datetime(text), parsedate_to_datetime(headers.get("date", ""))
        return max(0.0, (until - now).total_seconds())
    except (TypeError, ValueError, OverflowError):  # no date, or one naive and one aware
        return None


def shown(text: str, secret: str = "") -> str:
    """Return `text` fit for a message: one printable line, shortened, without `secret`."""
    line = " ".join((text.replace(secret, "[API key]") if secret else text).split())
    line = "".join(char if char.isprintable() else "?" for char in line[: MAX_SHOWN_CHARS + 1])
    return line if len(line) <= MAX_SHOWN_CHARS else line[:MAX_SHOWN_CHARS] + "…"


def _decoded(headers: Mapping[str, str], body: bytes, secret: str) -> _Completion:
    if len(body) > MAX_BODY_BYTES:
        raise Rejection("unparsable", f"the response has more than {MAX_BODY_BYTES} bytes")
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        what = shown(media_type, secret) or "no content type"
        raise Rejection("unparsable", f"the response is {what}, not application/json")
    try:
        return _completion_decoder.decode(body)
    except msgspec.ValidationError as error:
        raise Rejection("unparsable", f"the response is no chat completion: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if "content-length" not in headers and "transfer-encoding" not in headers:
            # Such a body ends where the connection does (RFC 9112, 6.3): most likely cut off.
            raise TransientFailure("unavailable", "the response was cut off") from None
        raise Rejection("unparsable", f"the response is not JSON: {error}") from None


def _check_finished(choice: _Choice, secret: str) -> None:
    """Raise unless the model completed its answer and meant it as one."""
    reason = choice.finish_reason
    if choice.message.refusal:
        raise Rejection("refused", f"the model refused: {shown(choice.message.refusal, secret)}")
    if reason in _REFUSED:
        raise Rejection("refused", f"the answer was withheld (finish_reason={reason})")
    if reason == "length":
        raise Rejection(
            "truncated", "the answer was cut off (finish_reason=length): raise max_tokens"
        )
    if reason in _ABORTED:
        raise TransientFailure("unavailable", f"the server gave up (finish_reason={reason})")
    if reason not in _FINISHED:
        said = shown(reason, secret) if reason else "missing"
        raise Rejection("unparsable", f"the answer is not finished (finish_reason {said})")


def _label_in(text: str, labels: tuple[str, ...], secret: str) -> str:
    """Return the label in `text`: `{"label": …}` as agreed, or exactly one bare label.

    Servers that ignore `response_format` are common (older Ollama, llama.cpp builds, proxies); a
    text that is nothing but one label of the set cannot be misread, so it counts.
    """
    try:
        label = _label_decoder.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        bare = text.strip()
        unquoted = bare[1:-1] if len(bare) > 1 and bare[0] == bare[-1] in "\"'" else bare
        for candidate in (bare, unquoted):
            if candidate in labels:
                return candidate
        raise Rejection(
            "unparsable", f'the answer is not {{"label": …}}: {shown(text, secret)}'
        ) from None
    if label.label not in labels:
        raise Rejection("out_of_set", f"not a label of the task: {shown(label.label, secret)!r}")
    return label.label


def _usage(usage: object) -> Usage | None:
    """Return the token counts; None when there are none that can be meant (null, negative …)."""
    if not usage:
        return None
    try:
        counts = msgspec.convert(usage, _Usage)
    except msgspec.ValidationError:
        return None
    return Usage(input_tokens=counts.prompt_tokens, output_tokens=counts.completion_tokens)


def _api_error(body: bytes) -> tuple[str, str]:
    """Return (message, code) of an error body, empty where it has none.

    OpenAI `{"error": {message, type, code}}`; Anthropic `{"type": "error", "error": {type,
    message}}`; TEI `{"error": str, "error_type": str}`; older vLLM `{"message"}`; FastAPI
    `{"detail"}`.
    """
    try:
        document = _error_decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "", ""
    error = document.error
    if isinstance(error, _ErrorObject):
        return _first_text(error.message), _first_text(error.code, error.type)
    message = _first_text(error, document.message, document.detail)
    return message, _first_text(document.error_type)


def _first_text(*candidates: object) -> str:
    return next((text for text in candidates if isinstance(text, str) and text), "")


def _number(text: str | None) -> float | None:
    """Return `text` as a finite number that is not negative, else None."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
