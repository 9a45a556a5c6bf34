"""Chat completions of the stand-in model server, good ones and others, in OpenAI's format.

Tokens, in every API that counts them: a text has one for each four characters it begins, and one
more. Input is all texts of a request, output is the answer's.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from askonce_loadtest.model_behaviour import Fault

OUT_OF_SET_LABEL = "a-label-nobody-offered"
_CHARS_PER_TOKEN = 4
_ECHO_CHARS = 40
_CREATED = 0
"""The `created` field: fixed, because equal questions shall get equal responses."""


class ChatMessage(msgspec.Struct):
    """One message of a request; content is a text, or a list of parts."""

    role: str
    content: str | list[dict[str, Any]] | None = None


class _Property(msgspec.Struct):
    enum: list[str] | None = None


class _ObjectSchema(msgspec.Struct):
    properties: dict[str, _Property] = {}


class _NamedSchema(msgspec.Struct):
    schema: _ObjectSchema | None = None


class _ResponseFormat(msgspec.Struct):
    json_schema: _NamedSchema | None = None


class ChatRequest(msgspec.Struct):
    """The fields of a chat completion request that the server reads."""

    model: str
    messages: list[ChatMessage]
    response_format: _ResponseFormat | None = None
    n: int = 1
    stream: bool = False

    def labels(self) -> tuple[str, list[str]]:
        """Return (property, enum) of the first enum in the JSON schema; empty without one."""
        named = self.response_format.json_schema if self.response_format else None
        if named is not None and named.schema is not None:
            for name, rule in named.schema.properties.items():
                if rule.enum:
                    return name, rule.enum
        return "", []


def last_user_text(messages: list[ChatMessage]) -> str:
    """Return the text of the last user message: what calls are counted by."""
    for message in reversed(messages):
        if message.role == "user":
            return _text(message)
    return ""


def completion(chat: ChatRequest, text: str, label: str | None) -> bytes:
    """Return the JSON of a good completion: `label`, or one of the set chosen by hashing `text`."""
    name, labels = chat.labels()
    if not labels:
        return _completion(chat, label or f"echo: {text[:_ECHO_CHARS]}")
    chosen = label or labels[_hash(text) % len(labels)]
    return _completion(chat, _json_text({name: chosen}))


def bad_completion(fault: Fault, chat: ChatRequest) -> bytes:
    """Return a 200's body that is no answer."""
    name, labels = chat.labels()
    match fault:
        case "truncate":
            return _completion(chat, '{"lab', finish_reason="length")
        case "malformed":
            return _completion(chat, '{"label": ' if labels else None)
        case "refuse":
            return _completion(chat, None, refusal="I cannot help with that.")
        case "content_filter":
            return _completion(chat, None, finish_reason="content_filter")
        case "out_of_set":
            return _completion(chat, _json_text({name or "label": OUT_OF_SET_LABEL}))
        case "empty_choices":
            return _completion(chat, "", choices=False)
        case _:
            raise ValueError(f"{fault!r} is not a fault of the body")


def _completion(
    chat: ChatRequest,
    content: str | None,
    *,
    finish_reason: str = "stop",
    refusal: str | None = None,
    choices: bool = True,
) -> bytes:
    read_tokens = input_tokens(chat)
    output_tokens = tokens_of(content or refusal or "")
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content, "refusal": refusal},
        "logprobs": None,
        "finish_reason": finish_reason,
    }
    return msgspec.json.encode(
        {
            "id": "chatcmpl-stand-in",
            "object": "chat.completion",
            "created": _CREATED,
            "model": chat.model,
            "choices": [choice] if choices else [],
            "usage": {
                "prompt_tokens": read_tokens,
                "completion_tokens": output_tokens,
                "total_tokens": read_tokens + output_tokens,
            },
        }
    )


def input_tokens(chat: ChatRequest) -> int:
    """The tokens of what a model reads."""
    return tokens_of(*map(_text, chat.messages))


def tokens_of(*texts: str) -> int:
    """The tokens of texts, by the rule of this server."""
    return sum(map(len, texts)) // _CHARS_PER_TOKEN + 1


def _text(message: ChatMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(str(part.get("text", "")) for part in message.content or [])


def _json_text(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
