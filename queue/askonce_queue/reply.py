"""What a producer gets back: replies, the answer in them, and the named errors.

On the wire a reply entry carries many replies, one JSON object a line (NDJSON), so that a consumer
in any language can read a named reply stream, and so that the settle script can leave out the lines
of jobs that another worker settled first.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Source = Literal["memory", "store", "semantic", "coalesced", "model", "stale"]
"""Where an answer came from. `coalesced`: from a question somebody else had in flight."""

ErrorCode = Literal[
    "undecodable",  # the payload is not a job
    "unknown_task",  # no such task in the workers' configuration
    "invalid_input",  # decoded, but not something this task can ask
    "too_large",  # beyond the task's or the worker's size limit
    "poison",  # crashed every worker that tried it alone
    "refused",  # the model declined to answer
    "truncated",  # the answer was cut off (finish_reason = length)
    "unparsable",  # the answer is not in the agreed format
    "out_of_set",  # a label that the task does not have
    "rejected",  # the API rejected the request (HTTP 4xx)
    "unauthorized",  # the API rejected our credentials
    "quota_exceeded",  # the API's account has no quota or credit left
    "rate_limited",  # still 429 after all retries
    "timeout",  # no answer in time after all retries
    "unavailable",  # connection failures or 5xx after all retries
    "model_failed",  # a Python model raised
    "not_cached",  # only_if_cached, and no stored answer will do
    "budget_exceeded",  # the task may spend no more today; what is known is still answered
    "deferred_full",  # the model is saturated, and no more jobs may wait for it
    "deadline_exceeded",  # its deadline_s passed before there was an answer
    "store_unavailable",  # the store could not be asked, and the caller does not wait for it
    "internal",  # a fault of askonce itself
]
"""The code of a failed job. Stable: extend, don't rename."""


class Usage(msgspec.Struct, omit_defaults=True, frozen=True, gc=False):
    """Tokens that a model call used, as its API reported them."""

    input_tokens: int = 0
    output_tokens: int = 0


class Answer(msgspec.Struct, omit_defaults=True, frozen=True, gc=False):
    """A validated result: only fields we read, never an SDK object.

    `label` is one of the task's labels, or free text for a task without labels. `score` and
    `scores` (label → probability, 0 to 1) are given where the model offers them. `value` is any
    JSON value, for `AnswerCache`, whose functions are not classifiers. `model` is the id that the
    API reported. `usage` is the cost of the call that made this answer, not of the hit.
    """

    label: str | None = None
    score: float | None = None
    scores: dict[str, float] | None = None
    value: Any = None
    model: str | None = None
    usage: Usage | None = None


class ErrorInfo(msgspec.Struct, frozen=True, gc=False):
    """Why a job has no answer: a stable `code` and a message for people.

    `code` is one of `ErrorCode`, or one that a newer worker knows.
    """

    code: str
    message: str


class Reply(msgspec.Struct, omit_defaults=True, kw_only=True, gc=False):
    """The one reply to a job: `answer` or `error`, never both, never neither.

    `source` is one of `Source`, or one that a newer worker knows; None for an error.
    `age_s` is the age of the answer, in seconds by the store's clock (0 when it is new).
    `took_ms` runs from enqueue to settle, by the clocks of store and worker. `cost` is that of the
    model call that made this answer, in the currency of `[costs]`; 0 where somebody else has paid
    for it (any `source` but `model`), and where no price is configured.
    """

    id: str
    answer: Answer | None = None
    error: ErrorInfo | None = None
    source: str | None = None
    age_s: float = 0.0
    took_ms: int = 0
    cost: float = 0.0


class WireReply(msgspec.Struct, omit_defaults=True, kw_only=True, gc=False):
    """`Reply` as a worker writes it: the answer's JSON is copied, not built again for each hit."""

    id: str
    answer: msgspec.Raw | None = None
    error: ErrorInfo | None = None
    source: Source | None = None
    age_s: float = 0.0
    took_ms: int = 0
    cost: float = 0.0


_reply_decoder = msgspec.json.Decoder(Reply)
_reply_encoder = msgspec.json.Encoder()


def encode_replies(replies: list[WireReply]) -> bytes:
    """Return the replies as NDJSON, one line each, with a trailing line break."""
    return _reply_encoder.encode_lines(replies)


def decode_replies(lines: bytes) -> tuple[list[Reply], int]:
    """Read NDJSON replies: the lines that are replies, and how many are not. Never raises."""
    try:
        return _reply_decoder.decode_lines(lines), 0
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        given = [line for line in lines.split(b"\n") if line.strip()]
    replies: list[Reply] = []
    for line in given:
        try:
            replies.append(_reply_decoder.decode(line))
        except (ValueError, RecursionError):
            continue
    return replies, len(given) - len(replies)
