"""Labels: how a model is held to the set, and how its label is read from what it says. No I/O."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import msgspec

from askonce_worker.models.http_reply import Response
from askonce_worker.models.protocol import Rejection


class _LabelObject(msgspec.Struct, forbid_unknown_fields=True):
    label: str


_label_decoder = msgspec.json.Decoder(_LabelObject)


def label_schema(labels: tuple[str, ...]) -> dict[str, Any]:
    """Return the JSON schema of `{"label": one of labels}`, strict."""
    return {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": labels}},
        "required": ["label"],
        "additionalProperties": False,
    }


def label_in(text: str, labels: tuple[str, ...], response: Response) -> str:
    """Return the label in `text`: `{"label": …}` as agreed, or exactly one bare label.

    Servers that ignore the schema are common (older Ollama, llama.cpp builds, proxies); a text that
    is nothing but one label of the set cannot be misread, so it counts.
    Raises `Rejection` `unparsable` or `out_of_set`.
    """
    try:
        label = _label_decoder.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        bare = text.strip()
        unquoted = bare[1:-1] if len(bare) > 1 and bare[0] == bare[-1] in "\"'" else bare
        for candidate in (bare, unquoted):
            if candidate in labels:
                return candidate
        raise Rejection(
            "unparsable", f'the answer is not {{"label": …}}: {response.shown(text)}'
        ) from None
    return known_label(label.label, labels, response)


def known_label(label: str, labels: tuple[str, ...], response: Response) -> str:
    """Return `label` if it is in the set, or if there is none. Raises `Rejection` `out_of_set`."""
    if labels and label not in labels:
        raise Rejection("out_of_set", f"not a label of the task: {response.shown(label)!r}")
    return label


def probability(log_probabilities: Iterable[float]) -> float | None:
    """The probability of a text from those of its tokens, 0 to 1; None without any.

    A model's probability of all tokens that it wrote, the agreed frame around the label included,
    of which it is nearly always sure. No calibration: compare it only with itself.
    """
    given = list(log_probabilities)
    if not given or not all(math.isfinite(one) for one in given):
        return None
    return round(min(1.0, math.exp(math.fsum(given))), 6)
