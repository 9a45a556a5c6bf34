"""Classifiers that the stand-in model server speaks for: moderations, and TEI's `/predict`.

Both take one question a request, or many.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from askonce_loadtest.model_behaviour import Fault
from askonce_loadtest.model_errors import Style
from askonce_loadtest.model_replies import OUT_OF_SET_LABEL, tokens_of
from askonce_loadtest.model_speech import MALFORMED, Asked, chosen, text_of

PREDICTED = ("positive", "negative")
"""The labels of the model behind `/predict`."""
CATEGORIES = ("harassment", "hate", "self-harm", "sexual", "violence")
MAX_CLIENT_BATCH = 32
"""Inputs of a request to `/predict`: TEI's default."""


class Moderations:
    """OpenAI's moderations: the label is a category, or nothing is flagged.

    `input` is a text, a list of texts (a result each), or the parts of one message.
    """

    style: Style = "openai"

    def read(self, body: bytes) -> list[Asked]:
        """See `Speech.read`."""
        given: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
        asked = msgspec.convert(given["input"], str | list[str | dict[str, Any]])
        texts = [one for one in asked if isinstance(one, str)]
        if isinstance(asked, str) or not texts:
            texts = [text_of(asked)]
        return [Asked(text, (*CATEGORIES, ""), given, tokens_of(text)) for text in texts]

    def good(self, asks: Sequence[Asked], labels: Sequence[str | None]) -> bytes:
        """See `Speech.good`."""
        known = {*CATEGORIES, OUT_OF_SET_LABEL}
        results = [
            _result(chosen(asked, label if label in known else None))
            for asked, label in zip(asks, labels, strict=True)
        ]
        return msgspec.json.encode(
            {"id": "modr_stand-in", "model": asks[0].body["model"], "results": results}
        )

    def bad(self, fault: Fault, asks: Sequence[Asked]) -> bytes:
        """See `Speech.bad`."""
        if fault == "out_of_set":
            return self.good(asks, [OUT_OF_SET_LABEL] * len(asks))
        if fault == "empty_choices":
            return msgspec.json.encode({"id": "modr", "model": "m", "results": []})
        return MALFORMED


def _result(label: str) -> dict[str, Any]:
    names = dict.fromkeys((*CATEGORIES, label)) if label else dict.fromkeys(CATEGORIES)
    return {
        "flagged": bool(label),
        "categories": {name: name == label for name in names},
        "category_scores": {name: 0.97 if name == label else 0.01 for name in names},
    }


class Predict:
    """A text classification server (TEI): `inputs` is a text, or a list of lists of one text."""

    style: Style = "tei"

    def read(self, body: bytes) -> list[Asked]:
        """See `Speech.read`."""
        given: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
        inputs = msgspec.convert(given["inputs"], str | list[tuple[str]])
        texts = [inputs] if isinstance(inputs, str) else [text for (text,) in inputs]
        if not 0 < len(texts) <= MAX_CLIENT_BATCH:
            most = f"batch size {len(texts)} > maximum allowed batch size {MAX_CLIENT_BATCH}"
            raise ValueError(most)
        return [Asked(text, PREDICTED, given, tokens_of(text)) for text in texts]

    def good(self, asks: Sequence[Asked], labels: Sequence[str | None]) -> bytes:
        """See `Speech.good`."""
        lists = [_predictions(asked, label) for asked, label in zip(asks, labels, strict=True)]
        single = isinstance(asks[0].body["inputs"], str)
        return msgspec.json.encode(lists[0] if single else lists)

    def bad(self, fault: Fault, asks: Sequence[Asked]) -> bytes:
        """See `Speech.bad`."""
        if fault == "out_of_set":
            return self.good(asks, [OUT_OF_SET_LABEL] * len(asks))
        return b"[]" if fault == "empty_choices" else MALFORMED


def _predictions(asked: Asked, label: str | None) -> list[dict[str, Any]]:
    best = chosen(asked, label)
    rest = [{"label": name, "score": 0.02} for name in asked.labels if name != best]
    return [{"label": best, "score": 0.98}, *rest]
