"""The text of a question, whatever its shape: what people read, and what rules match."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from askonce_worker.models.protocol import Question


def input_text(question: Question) -> str:
    """All text of the input, as the cache key saw it; that of chat messages joined by line breaks.

    Parts of messages that are no text (images, tool calls) are left out.
    """
    if question.text is not None:
        return question.text
    return "\n".join(part for message in question.messages or () for part in _texts(message))


def shown_input(question: Question) -> str:
    """The input for people: chat messages with their roles, other parts by their kind."""
    if question.text is not None:
        return question.text
    return "\n".join(
        f"{message.get('role', '?')}: {' '.join(_texts(message, others=True))}"
        for message in question.messages or ()
    )


def _texts(message: dict[str, Any], *, others: bool = False) -> Iterator[str]:
    content = message.get("content")
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in cast("list[object]", content):
            if isinstance(part, dict):
                fields = cast("dict[str, object]", part)
                text = fields.get("text")
                if isinstance(text, str):
                    yield text
                elif others:
                    yield f"({fields.get('type', 'part')})"
