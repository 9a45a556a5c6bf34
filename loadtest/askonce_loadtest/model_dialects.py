"""The APIs that the stand-in model server speaks: what each is asked, and what it says.

Here are those of language models; chat completions are in `model_replies.py`, classifiers in
`model_classifiers.py`. A fault that an API has no word for is a body that is not what was agreed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from askonce_loadtest.model_behaviour import Fault
from askonce_loadtest.model_classifiers import Moderations, Predict
from askonce_loadtest.model_errors import Style
from askonce_loadtest.model_replies import (
    OUT_OF_SET_LABEL,
    ChatRequest,
    bad_completion,
    completion,
    input_tokens,
    last_user_text,
    tokens_of,
)
from askonce_loadtest.model_speech import (
    MALFORMED,
    Asked,
    Speech,
    chosen,
    json_label,
    last_text_of,
    text_of,
)


class Chat:
    """OpenAI's chat completions."""

    style: Style = "openai"

    def read(self, body: bytes) -> list[Asked]:
        """See `Speech.read`."""
        chat = msgspec.json.decode(body, type=ChatRequest)
        if chat.stream or chat.n != 1:
            raise ValueError("this server does no streams and only n=1")
        text, labels = last_user_text(chat.messages), tuple(chat.labels()[1])
        return [Asked(text, labels, chat, input_tokens(chat))]

    def good(self, asks: Sequence[Asked], labels: Sequence[str | None]) -> bytes:
        """See `Speech.good`."""
        return completion(asks[0].body, asks[0].text, labels[0])

    def bad(self, fault: Fault, asks: Sequence[Asked]) -> bytes:
        """See `Speech.bad`."""
        return bad_completion(fault, asks[0].body)


class Messages:
    """Anthropic's messages; a label is the input of the one tool that is offered."""

    style: Style = "anthropic"

    def read(self, body: bytes) -> list[Asked]:
        """See `Speech.read`."""
        given: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
        if "max_tokens" not in given:
            raise ValueError("max_tokens: field required")
        tools: list[dict[str, Any]] = given.get("tools") or []
        labels: tuple[str, ...] = ()
        if tools:
            labels = tuple(tools[0]["input_schema"]["properties"]["label"]["enum"])
        messages: list[dict[str, Any]] = given["messages"]
        texts = [text_of(message.get("content")) for message in messages]
        tokens = tokens_of(text_of(given.get("system")), *texts)
        return [Asked(last_text_of(messages), labels, given, tokens)]

    def good(self, asks: Sequence[Asked], labels: Sequence[str | None]) -> bytes:
        """See `Speech.good`."""
        asked, label = asks[0], labels[0]
        if not asked.labels:
            return self._text(asked, label or f"echo: {asked.text}", "end_turn")
        return self._label(asked, chosen(asked, label))

    def bad(self, fault: Fault, asks: Sequence[Asked]) -> bytes:
        """See `Speech.bad`."""
        asked = asks[0]
        match fault:
            case "truncate":
                return self._text(asked, '{"lab', "max_tokens")
            case "refuse":
                return self._text(asked, "I cannot help with that.", "refusal")
            case "content_filter":  # its streaming classifiers leave nothing but the reason
                return self._message(asked, [], "refusal", 1)
            case "out_of_set" if asked.labels:
                return self._label(asked, OUT_OF_SET_LABEL)
            case "empty_choices":
                return self._message(asked, [], "end_turn", 1)
            case _:
                return MALFORMED

    def _label(self, asked: Asked, label: str) -> bytes:
        name = asked.body["tools"][0]["name"]
        block = {"type": "tool_use", "id": "toolu_1", "name": name, "input": {"label": label}}
        return self._message(asked, [block], "tool_use", tokens_of(json_label(label)))

    def _text(self, asked: Asked, text: str, reason: str) -> bytes:
        return self._message(asked, [{"type": "text", "text": text}], reason, tokens_of(text))

    def _message(
        self, asked: Asked, content: list[dict[str, Any]], reason: str, output_tokens: int
    ) -> bytes:
        return msgspec.json.encode(
            {
                "id": "msg_stand-in",
                "type": "message",
                "role": "assistant",
                "model": asked.body["model"],
                "content": content,
                "stop_reason": reason,
                "usage": {"input_tokens": asked.tokens, "output_tokens": output_tokens},
            }
        )


class Responses:
    """OpenAI's responses."""

    style: Style = "openai"

    def read(self, body: bytes) -> list[Asked]:
        """See `Speech.read`."""
        given: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
        text: dict[str, Any] = given.get("text") or {}
        format_: dict[str, Any] = text.get("format") or {}
        labels: tuple[str, ...] = ()
        if format_.get("type") == "json_schema":
            labels = tuple(format_["schema"]["properties"]["label"]["enum"])
        asked: Any = given["input"]
        messages: list[dict[str, Any]] = (
            [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        )
        texts = [text_of(message.get("content")) for message in messages]
        tokens = tokens_of(given.get("instructions") or "", *texts)
        return [Asked(last_text_of(messages), labels, given, tokens)]

    def good(self, asks: Sequence[Asked], labels: Sequence[str | None]) -> bytes:
        """See `Speech.good`."""
        asked, label = asks[0], labels[0]
        if not asked.labels:
            return self._response(asked, label or f"echo: {asked.text}")
        return self._response(asked, json_label(chosen(asked, label)))

    def bad(self, fault: Fault, asks: Sequence[Asked]) -> bytes:
        """See `Speech.bad`."""
        asked = asks[0]
        match fault:
            case "truncate" | "content_filter":
                cut_by = "max_output_tokens" if fault == "truncate" else fault
                return self._response(asked, '{"lab', cut_by=cut_by)
            case "refuse":
                return self._response(asked, None)
            case "out_of_set" if asked.labels:
                return self._response(asked, json_label(OUT_OF_SET_LABEL))
            case "malformed" if asked.labels:
                return self._response(asked, '{"label": ')
            case "empty_choices":
                return self._response(asked, "")
            case _:
                return MALFORMED

    def _response(
        self,
        asked: Asked,
        text: str | None,
        cut_by: Literal["max_output_tokens", "content_filter"] | None = None,
    ) -> bytes:
        part: dict[str, Any] = {"type": "output_text", "text": text, "annotations": []}
        if text is None:
            part = {"type": "refusal", "refusal": "I cannot help with that."}
        status = "incomplete" if cut_by else "completed"
        return msgspec.json.encode(
            {
                "id": "resp_stand-in",
                "object": "response",
                "status": status,
                "incomplete_details": {"reason": cut_by} if cut_by else None,
                "error": None,
                "model": asked.body["model"],
                "output": [
                    {"type": "reasoning", "summary": []},
                    {"type": "message", "role": "assistant", "status": status, "content": [part]},
                ],
                "usage": {"input_tokens": asked.tokens, "output_tokens": tokens_of(text or "")},
            }
        )


SPEECHES: dict[str, Speech] = {
    "/v1/chat/completions": Chat(),
    "/v1/messages": Messages(),
    "/v1/responses": Responses(),
    "/v1/moderations": Moderations(),
    "/predict": Predict(),
}
"""Path → the API that is spoken there."""
