"""What HTTP responses of model APIs have in common: errors, sizes, how to quote them. No I/O.

Error bodies come in the shapes of OpenAI, Anthropic and TEI; what each API says besides is in a
file of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Annotated, Any, NamedTuple, TypeVar

import msgspec

from askonce_queue.reply import Usage
from askonce_worker.models.protocol import ModelFailure, Rejection, TransientFailure

T = TypeVar("T")

MAX_BODY_BYTES = 4 * 1024 * 1024
"""Largest response body read, in bytes after decompression."""
MAX_SHOWN_CHARS = 300
"""Longest text of an API or a model quoted in a message."""
MAX_MODEL_ID_CHARS = 200
_REFUSAL_CODES = frozenset({"content_filter", "content_policy_violation"})
"""Error codes by which an API refuses the input itself with a 4xx (Azure OpenAI)."""
_NO_QUOTA = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_error"})
"""Error codes for an account without quota or credit: a 429 of OpenAI's, a 402 of Anthropic's.

OpenAI's two kinds of 429 differ in this: slow down, or pay. The type says it also where the code
names which limit it was (`project_spend_limit_exceeded`).
"""
TokenCount = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]


class Response(NamedTuple):
    """A complete HTTP response, as far as HTTP can tell.

    `headers` is case-insensitive, or has lower-case names. `body` is decompressed; one of more than
    `MAX_BODY_BYTES` is not an answer. `secret` (the API key) is struck out of whatever is quoted.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    secret: str = ""

    def read(self, decoder: msgspec.json.Decoder[T], what: str) -> T:
        """Decode the body of a 200. Raises the `ModelFailure` that anything else stands for."""
        if self.status != HTTPStatus.OK:
            raise failure_of_status(self)
        if len(self.body) > MAX_BODY_BYTES:
            raise Rejection("unparsable", f"the response has more than {MAX_BODY_BYTES} bytes")
        media_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json" and not media_type.endswith("+json"):
            got = self.shown(media_type) or "no content type"
            raise Rejection("unparsable", f"the response is {got}, not application/json")
        try:
            return decoder.decode(self.body)
        except msgspec.ValidationError as error:
            raise Rejection("unparsable", f"the response is no {what}: {error}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            if "content-length" not in self.headers and "transfer-encoding" not in self.headers:
                # Such a body ends where the connection does (RFC 9112, 6.3): most likely cut off.
                raise TransientFailure("unavailable", "the response was cut off") from None
            raise Rejection("unparsable", f"the response is not JSON: {error}") from None

    def shown(self, text: str) -> str:
        """`text` fit for a message."""
        return shown(text, self.secret)

    def error_text(self) -> str:
        """What an error body says, empty where it is none."""
        return _api_error(self.body)[0]


class _ErrorObject(msgspec.Struct):
    message: Any = None
    code: Any = None
    type: Any = None


class _ErrorBody(msgspec.Struct):
    error: _ErrorObject | str | None = None
    error_type: Any = None
    message: Any = None
    detail: Any = None


_error_decoder = msgspec.json.Decoder(_ErrorBody)


def failure_of_status(response: Response) -> ModelFailure:
    """Return the failure that an HTTP status other than 200 stands for.

    401 and 403 quote only the API's error code: their messages may repeat a part of the key.
    """
    status, headers, body, secret = response
    message, error_code = _api_error(body)
    said = f"HTTP {status}" + (f": {shown(message, secret)}" if message else "")
    if error_code in _NO_QUOTA or status == HTTPStatus.PAYMENT_REQUIRED:
        return Rejection(
            "quota_exceeded", f"{said} (the account has no quota left: check its plan and billing)"
        )
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        return TransientFailure("rate_limited", said, retry_after_s(headers))
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.CONFLICT,
    }:
        return TransientFailure("unavailable", said, retry_after_s(headers))
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        code = f" ({shown(error_code, secret)})" if error_code else ""
        said = f"HTTP {status}{code}: check the API key and what it may use"
        return Rejection("unauthorized", said)
    return _rejection_of(status, said, error_code)


def _rejection_of(status: int, said: str, error_code: str) -> Rejection:
    """What any other status says of the question, or of the configuration."""
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


def model_id(value: object) -> str | None:
    """The id of the model that an API reported, if it can be one."""
    known = isinstance(value, str) and 0 < len(value) <= MAX_MODEL_ID_CHARS
    return value if known and isinstance(value, str) else None


def usage_of(usage: object, input_field: str, output_field: str) -> Usage | None:
    """The token counts; None when there are none that can be meant (null, negative …)."""
    if not usage:
        return None
    try:
        counts = msgspec.convert(usage, dict[str, Any])
        return Usage(
            input_tokens=msgspec.convert(counts[input_field], TokenCount),
            output_tokens=msgspec.convert(counts.get(output_field, 0), TokenCount),
        )
    except (msgspec.ValidationError, KeyError):
        return None


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
        no_quota = isinstance(error.type, str) and error.type in _NO_QUOTA
        code = error.type if no_quota else _first_text(error.code, error.type)
        return _first_text(error.message), code
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
