"""Anthropic's messages, both generations of the API.

The format is that of Anthropic's API reference, "Messages". Version `2026-10-21` takes the key as a
bearer token and refuses temperature, top_p and top_k; the one before takes it in `x-api-key`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from askonce_queue.reply import Answer, Usage
from askonce_worker.models.http_model import Request, bearer, merged_params
from askonce_worker.models.http_reply import Response, model_id, usage_of
from askonce_worker.models.labels import known_label, label_in, label_schema
from askonce_worker.models.protocol import Prompt, Question, Rejection

Version = Literal["2023-06-01", "2026-10-21"]
RESERVED_PARAMS = ("messages", "model", "stream", "system")
SAMPLING_PARAMS = ("temperature", "top_p", "top_k")
DEFAULT_MAX_TOKENS = 1024
"""The API wants a limit; a label needs far less."""
_TOOL = "classify"
_FINISHED = frozenset({"end_turn", "stop_sequence", "tool_use"})


class _Block(msgspec.Struct):
    type: str
    text: str | None = None
    name: str | None = None
    input: Any = None


class _Message(msgspec.Struct):
    content: list[_Block]
    stop_reason: str | None = None
    model: Any = None
    usage: Any = None


class _Label(msgspec.Struct):
    label: str


_decoder = msgspec.json.Decoder(_Message)


class AnthropicMessages:
    """`POST /v1/messages`; the base URL has no `/v1`. Labels are held by a tool it has to call."""

    probe = "/v1/models"

    def __init__(self, version: Version = "2023-06-01") -> None:
        self._version = version

    def headers(self, key: str) -> dict[str, str]:
        """See `Dialect.headers`."""
        headers = {"anthropic-version": self._version}
        if key and self._version == "2023-06-01":
            return headers | {"x-api-key": key}
        return headers | bearer(key)

    def request(self, model: str, prompt: Prompt, question: Question) -> Request:
        """See `Dialect.request`."""
        params = merged_params(prompt, question, RESERVED_PARAMS)
        samples = self._version == "2023-06-01"
        for name in SAMPLING_PARAMS:
            if name in params and not samples:
                raise Rejection("rejected", f"params: version {self._version} takes no {name}")
        messages = question.messages
        if messages is None:
            messages = [{"role": "user", "content": question.text or ""}]
        body: dict[str, Any] = {
            "model": model,
            "max_tokens": prompt.max_tokens or DEFAULT_MAX_TOKENS,
            "messages": messages,
        }
        if prompt.system:
            body["system"] = prompt.system
        if prompt.temperature is not None and samples:
            body["temperature"] = prompt.temperature
        if prompt.labels:
            for name in ("tools", "tool_choice"):
                if name in params:
                    raise Rejection(
                        "rejected", f"params must not set {name!r}: the task's labels decide it"
                    )
            body["tools"] = [
                {
                    "name": _TOOL,
                    "description": "Gives the label.",
                    "input_schema": label_schema(prompt.labels),
                }
            ]
            body["tool_choice"] = {"type": "tool", "name": _TOOL}
        return Request("/v1/messages", body | params)

    def answer(self, response: Response, prompt: Prompt) -> Answer:
        """See `Dialect.answer`."""
        message = response.read(_decoder, "message")
        text = "".join(block.text or "" for block in message.content if block.type == "text")
        _check_finished(message.stop_reason, text, response)
        return Answer(
            label=_label(message, text, prompt, response),
            model=model_id(message.model),
            usage=_usage(message.usage),
        )


def _label(message: _Message, text: str, prompt: Prompt, response: Response) -> str:
    for block in message.content:
        if block.type == "tool_use" and block.name == _TOOL and prompt.labels:
            try:
                given = msgspec.convert(block.input, _Label)
            except msgspec.ValidationError as error:
                raise Rejection("unparsable", f"the tool's input has no label: {error}") from None
            return known_label(given.label, prompt.labels, response)
    if not text.strip():
        raise Rejection("unparsable", "the message has no text")
    return label_in(text, prompt.labels, response) if prompt.labels else text


def _check_finished(reason: str | None, text: str, response: Response) -> None:
    """Raise unless the model completed its answer and meant it as one."""
    if reason == "refusal":
        said = f": {response.shown(text)}" if text.strip() else ""
        raise Rejection("refused", f"the model refused{said}")
    if reason in {"max_tokens", "model_context_window_exceeded"}:
        raise Rejection(
            "truncated", f"the answer was cut off (stop_reason={reason}): raise max_tokens"
        )
    if reason not in _FINISHED:
        said = response.shown(reason) if reason else "missing"
        raise Rejection("unparsable", f"the answer is not finished (stop_reason {said})")


def _usage(usage: object) -> Usage | None:
    """Tokens used; those written to and read from the API's prompt cache are input, too."""
    plain = usage_of(usage, "input_tokens", "output_tokens")
    if plain is None:
        return None
    cached = 0
    for field in ("cache_creation_input_tokens", "cache_read_input_tokens"):
        part = usage_of(usage, field, field)
        cached += part.input_tokens if part else 0
    return Usage(plain.input_tokens + cached, plain.output_tokens)
