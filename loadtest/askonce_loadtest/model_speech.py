"""What an API of the stand-in model server is: how it is asked, and what it says."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from askonce_loadtest.model_behaviour import Fault
from askonce_loadtest.model_errors import Style

MALFORMED = b'{"label": '


class Asked(NamedTuple):
    """One question of a request: its text, the labels it offers, the body, its input tokens."""

    text: str
    labels: tuple[str, ...]
    body: Any
    tokens: int


class Speech(Protocol):
    """One API. Requests of those that take one question have one."""

    style: Style

    def read(self, body: bytes) -> list[Asked]:
        """Read a request. Raises `msgspec.MsgspecError` or `ValueError` for what is none."""
        ...

    def good(self, asks: Sequence[Asked], labels: Sequence[str | None]) -> bytes:
        """The body of an answer: each label, or one of the set, chosen by hashing the text."""
        ...

    def bad(self, fault: Fault, asks: Sequence[Asked]) -> bytes:
        """The body of a 200 that is no answer."""
        ...


def chosen(asked: Asked, label: str | None) -> str:
    """`label`, or one of the set by the hash of the text: equal questions have equal answers."""
    if label is not None:
        return label
    digest = hashlib.blake2b(asked.text.encode(), digest_size=8).digest()
    return asked.labels[int.from_bytes(digest, "big") % len(asked.labels)]


def text_of(content: Any) -> str:
    """The text of a message's content: a string, or parts."""
    if isinstance(content, str):
        return content
    parts: list[dict[str, Any]] = content or []
    return "".join(str(part.get("text", "")) for part in parts)


def last_text_of(messages: list[dict[str, Any]]) -> str:
    """The text of the last user message."""
    for message in reversed(messages):
        if message.get("role") == "user":
            return text_of(message.get("content"))
    return ""


def json_label(label: str) -> str:
    """A label as the models with a schema say it."""
    return msgspec.json.encode({"label": label}).decode()
