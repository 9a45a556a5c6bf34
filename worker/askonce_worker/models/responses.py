"""OpenAI's responses API.

The format is that of OpenAI's API reference, "Create a model response".
"""

from __future__ import annotations

from typing import Any

import msgspec

from askonce_queue.reply import Answer
from askonce_worker.models.http_model import Request, bearer, merged_params
from askonce_worker.models.http_reply import Response, model_id, usage_of
from askonce_worker.models.labels import label_in, label_schema, probability
from askonce_worker.models.protocol import Prompt, Question, Rejection, TransientFailure

RESERVED_PARAMS = ("input", "model", "stream", "instructions")


class _Part(msgspec.Struct):
    type: str
    text: str | None = None
    refusal: str | None = None
    logprobs: Any = None


class _Item(msgspec.Struct):
    type: str
    content: list[_Part] | None = None


class _Details(msgspec.Struct):
    reason: str | None = None


class _Error(msgspec.Struct):
    code: str | None = None
    message: str | None = None


class _Response(msgspec.Struct):
    output: list[_Item]
    status: str | None = None
    incomplete_details: _Details | None = None
    error: _Error | None = None
    model: Any = None
    usage: Any = None


class _TokenLogprob(msgspec.Struct):
    logprob: float


_decoder = msgspec.json.Decoder(_Response)


class Responses:
    """`POST /responses`, never stored by the API. Labels are held by a strict JSON schema."""

    probe = "/models"

    def headers(self, key: str) -> dict[str, str]:
        """See `Dialect.headers`."""
        return bearer(key)

    def request(self, model: str, prompt: Prompt, question: Question) -> Request:
        """See `Dialect.request`."""
        params = merged_params(prompt, question, RESERVED_PARAMS)
        given = question.messages if question.messages is not None else question.text or ""
        body: dict[str, Any] = {"model": model, "input": given, "store": False}
        if prompt.system:
            body["instructions"] = prompt.system
        if prompt.temperature is not None:
            body["temperature"] = prompt.temperature
        if prompt.max_tokens is not None:
            body["max_output_tokens"] = prompt.max_tokens
        if prompt.labels:
            if "text" in params:
                raise Rejection("rejected", "params must not set 'text': the labels decide it")
            schema = label_schema(prompt.labels)
            named = {"type": "json_schema", "name": "classification", "strict": True}
            body["text"] = {"format": {**named, "schema": schema}}
        return Request("/responses", body | params)

    def answer(self, response: Response, prompt: Prompt) -> Answer:
        """See `Dialect.answer`."""
        said = response.read(_decoder, "response")
        parts = [
            part for item in said.output if item.type == "message" for part in item.content or ()
        ]
        _check_finished(said, parts, response)
        text = "".join(part.text or "" for part in parts if part.type == "output_text")
        if not text.strip():
            raise Rejection("unparsable", "the response has no text")
        return Answer(
            label=label_in(text, prompt.labels, response) if prompt.labels else text,
            score=_score(parts),
            model=model_id(said.model),
            usage=usage_of(said.usage, "input_tokens", "output_tokens"),
        )


def _check_finished(said: _Response, parts: list[_Part], response: Response) -> None:
    """Raise unless the model completed its answer and meant it as one."""
    for part in parts:
        if part.type == "refusal":
            raise Rejection("refused", f"the model refused: {response.shown(part.refusal or '')}")
    reason = said.incomplete_details.reason if said.incomplete_details else None
    if said.status == "incomplete" and reason == "content_filter":
        raise Rejection("refused", "the answer was withheld (content_filter)")
    if said.status == "incomplete":
        what = response.shown(reason or "no reason")
        raise Rejection("truncated", f"the answer was cut off ({what}): raise max_tokens")
    if said.status == "failed":
        error = said.error or _Error()
        what = response.shown(error.message or error.code or "no reason")
        if error.code == "insufficient_quota":
            raise Rejection("quota_exceeded", f"{what}: check the account's plan and billing")
        if error.code == "rate_limit_exceeded":
            raise TransientFailure("rate_limited", what)
        if error.code == "server_error":
            raise TransientFailure("unavailable", what)
        raise Rejection("rejected", f"the response failed: {what}")
    if said.status != "completed":
        what = response.shown(said.status) if said.status else "missing"
        raise Rejection("unparsable", f"the answer is not finished (status {what})")


def _score(parts: list[_Part]) -> float | None:
    """The probability of the answer's tokens, where the API tells it."""
    try:
        tokens = [
            token
            for part in parts
            for token in msgspec.convert(part.logprobs or [], list[_TokenLogprob])
        ]
    except msgspec.ValidationError:
        return None
    return probability(token.logprob for token in tokens)
