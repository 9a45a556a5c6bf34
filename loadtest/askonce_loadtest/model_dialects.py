"""The APIs that the stand-in model server speaks: what each is asked, and what it says.

Chat completions are in `model_replies.py`. A fault that an API has no word for is a body that is
not what was agreed.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from askonce_loadtest.model_behaviour import Fault
from askonce_loadtest.model_replies import (
    OUT_OF_SET_LABEL,
    ChatRequest,
    bad_completion,
    completion,
    last_user_text,
)

PREDICTED = ("positive", "negative")
"""The labels of the model behind `/predict`."""
CATEGORIES = ("harassment", "hate", "self-harm", "sexual", "violence")
_CHARS_PER_TOKEN = 4
_MALFORMED = b'{"label": '


class Asked(NamedTuple):
    """One request, understood: its text, the labels it offers, and the body as it came."""

    text: str
    labels: tuple[str, ...]
    body: Any


class Speech(Protocol):
    """One API."""

    def read(self, body: bytes) -> Asked:
        """Read a request. Raises `msgspec.MsgspecError` or `ValueError` for what is none."""
        ...

    def good(self, asked: Asked, label: str | None) -> bytes:
        """The body of an answer: `label`, or one of the set, chosen by hashing the text."""
        ...

    def bad(self, fault: Fault, asked: Asked) -> bytes:
        """The body of a 200 that is no answer."""
        ...


class Chat:
    """OpenAI's chat completions."""

    def read(self, body: bytes) -> Asked:
        """See `Speech.read`."""
        chat = msgspec.json.decode(body, type=ChatRequest)
        if chat.stream or chat.n != 1:
            raise ValueError("this server does no streams and only n=1")
        return Asked(last_user_text(chat.messages), tuple(chat.labels()[1]), chat)

    def good(self, asked: Asked, label: str | None) -> bytes:
        """See `Speech.good`."""
        return completion(asked.body, asked.text, label)

    def bad(self, fault: Fault, asked: Asked) -> bytes:
        """See `Speech.bad`."""
        return bad_completion(fault, asked.body)


class Messages:
    """Anthropic's messages; a label is the input of the one tool that is offered."""

    def read(self, body: bytes) -> Asked:
        """See `Speech.read`."""
        given: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
        if "max_tokens" not in given:
            raise ValueError("max_tokens: field required")
        tools: list[dict[str, Any]] = given.get("tools") or []
        labels: tuple[str, ...] = ()
        if tools:
            labels = tuple(tools[0]["input_schema"]["properties"]["label"]["enum"])
        return Asked(_text_of(given["messages"]), labels, given)

    def good(self, asked: Asked, label: str | None) -> bytes:
        """See `Speech.good`."""
        if not asked.labels:
            text = label or f"echo: {asked.text}"
            return self._message(asked, [{"type": "text", "text": text}], "end_turn")
        return self._label(asked, chosen(asked, label))

    def bad(self, fault: Fault, asked: Asked) -> bytes:
        """See `Speech.bad`."""
        match fault:
            case "truncate":
                return self._message(asked, [{"type": "text", "text": '{"lab'}], "max_tokens")
            case "refuse":
                return self._message(asked, [], "refusal")
            case "out_of_set" if asked.labels:
                return self._label(asked, OUT_OF_SET_LABEL)
            case "empty_choices":
                return self._message(asked, [], "end_turn")
            case _:
                return _MALFORMED

    def _label(self, asked: Asked, label: str) -> bytes:
        name = asked.body["tools"][0]["name"]
        block = {"type": "tool_use", "id": "toolu_1", "name": name, "input": {"label": label}}
        return self._message(asked, [block], "tool_use")

    def _message(self, asked: Asked, content: list[dict[str, Any]], reason: str) -> bytes:
        return msgspec.json.encode(
            {
                "id": "msg_stand-in",
                "type": "message",
                "role": "assistant",
                "model": asked.body["model"],
                "content": content,
                "stop_reason": reason,
                "usage": {"input_tokens": _tokens(asked.text), "output_tokens": 4},
            }
        )


class Responses:
    """OpenAI's responses."""

    def read(self, body: bytes) -> Asked:
        """See `Speech.read`."""
        given: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
        text: dict[str, Any] = given.get("text") or {}
        format_: dict[str, Any] = text.get("format") or {}
        labels: tuple[str, ...] = ()
        if format_.get("type") == "json_schema":
            labels = tuple(format_["schema"]["properties"]["label"]["enum"])
        asked = given["input"]
        return Asked(asked if isinstance(asked, str) else _text_of(asked), labels, given)

    def good(self, asked: Asked, label: str | None) -> bytes:
        """See `Speech.good`."""
        if not asked.labels:
            return self._response(asked, label or f"echo: {asked.text}")
        return self._response(asked, _json_label(chosen(asked, label)))

    def bad(self, fault: Fault, asked: Asked) -> bytes:
        """See `Speech.bad`."""
        match fault:
            case "truncate":
                return self._response(asked, '{"lab', status="incomplete")
            case "refuse":
                return self._response(asked, None)
            case "out_of_set" if asked.labels:
                return self._response(asked, _json_label(OUT_OF_SET_LABEL))
            case "malformed" if asked.labels:
                return self._response(asked, '{"label": ')
            case "empty_choices":
                return self._response(asked, "")
            case _:
                return _MALFORMED

    def _response(
        self,
        asked: Asked,
        text: str | None,
        status: Literal["completed", "incomplete"] = "completed",
    ) -> bytes:
        part: dict[str, Any] = {"type": "output_text", "text": text, "annotations": []}
        if text is None:
            part = {"type": "refusal", "refusal": "I cannot help with that."}
        details = {"reason": "max_output_tokens"} if status == "incomplete" else None
        return msgspec.json.encode(
            {
                "id": "resp_stand-in",
                "object": "response",
                "status": status,
                "incomplete_details": details,
                "error": None,
                "model": asked.body["model"],
                "output": [
                    {"type": "reasoning", "summary": []},
                    {"type": "message", "role": "assistant", "status": status, "content": [part]},
                ],
                "usage": {"input_tokens": _tokens(asked.text), "output_tokens": 4},
            }
        )


class Moderations:
    """OpenAI's moderations: the label is a category, or nothing is flagged."""

    def read(self, body: bytes) -> Asked:
        """See `Speech.read`."""
        given: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
        asked = given["input"]
        text = asked if isinstance(asked, str) else _text_of([{"role": "user", "content": asked}])
        return Asked(text, (*CATEGORIES, ""), given)

    def good(self, asked: Asked, label: str | None) -> bytes:
        """See `Speech.good`."""
        return self._moderation(asked, chosen(asked, label if label in CATEGORIES else None))

    def bad(self, fault: Fault, asked: Asked) -> bytes:
        """See `Speech.bad`."""
        if fault == "out_of_set":
            return self._moderation(asked, OUT_OF_SET_LABEL)
        if fault == "empty_choices":
            return msgspec.json.encode({"id": "modr", "model": "m", "results": []})
        return _MALFORMED

    def _moderation(self, asked: Asked, label: str) -> bytes:
        names = dict.fromkeys((*CATEGORIES, label)) if label else dict.fromkeys(CATEGORIES)
        result = {
            "flagged": bool(label),
            "categories": {name: name == label for name in names},
            "category_scores": {name: 0.97 if name == label else 0.01 for name in names},
        }
        return msgspec.json.encode(
            {"id": "modr_stand-in", "model": asked.body["model"], "results": [result]}
        )


class Predict:
    """A text classification server (TEI)."""

    def read(self, body: bytes) -> Asked:
        """See `Speech.read`."""
        given: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
        if not isinstance(given["inputs"], str):
            raise ValueError("inputs: one text")  # noqa: TRY004 -- the request's fault, not ours
        return Asked(given["inputs"], PREDICTED, given)

    def good(self, asked: Asked, label: str | None) -> bytes:
        """See `Speech.good`."""
        best = chosen(asked, label)
        rest = [{"label": name, "score": 0.02} for name in asked.labels if name != best]
        return msgspec.json.encode([{"label": best, "score": 0.98}, *rest])

    def bad(self, fault: Fault, asked: Asked) -> bytes:
        """See `Speech.bad`."""
        del asked
        if fault == "out_of_set":
            return msgspec.json.encode([{"label": OUT_OF_SET_LABEL, "score": 0.9}])
        return b"[]" if fault == "empty_choices" else _MALFORMED


SPEECHES: dict[str, Speech] = {
    "/v1/chat/completions": Chat(),
    "/v1/messages": Messages(),
    "/v1/responses": Responses(),
    "/v1/moderations": Moderations(),
    "/predict": Predict(),
}
"""Path → the API that is spoken there."""


def chosen(asked: Asked, label: str | None) -> str:
    """`label`, or one of the set by the hash of the text: equal questions have equal answers."""
    if label is not None:
        return label
    digest = hashlib.blake2b(asked.text.encode(), digest_size=8).digest()
    return asked.labels[int.from_bytes(digest, "big") % len(asked.labels)]


def _text_of(messages: list[dict[str, Any]]) -> str:
    """The text of the last user message."""
    for message in reversed(messages):
        if message.get("role") == "user":
            content: Any = message.get("content")
            if isinstance(content, str):
                return content
            parts: list[dict[str, Any]] = content or []
            return "".join(str(part.get("text", "")) for part in parts)
    return ""


def _tokens(text: str) -> int:
    return len(text) // _CHARS_PER_TOKEN + 1


def _json_label(label: str) -> str:
    return msgspec.json.encode({"label": label}).decode()
