"""What is kept of a hit: made in the worker, so that nothing else ever leaves it."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from askonce_queue.queue_scripts import LoggedHit
from askonce_queue.reply import Answer
from askonce_worker.asks import SeenHit
from askonce_worker.hits.inputs import shown_input
from askonce_worker.hits.redact import CUT, redact

MOST_INPUT_CHARS = 2_000
MOST_LABEL_CHARS = 200
MOST_ANSWER_BYTES = 2_000
"""An answer that is larger, redacted, is logged without its value and scores."""
MOST_DEPTH = 8
"""How deep a value is looked into; what is deeper is not kept."""


class LoggedAnswer(msgspec.Struct, omit_defaults=True):
    """What is kept of an answer. `cut`: its value or scores were left out."""

    label: str | None = None
    score: float | None = None
    scores: dict[str, float] | None = None
    value: Any = None
    model: str | None = None
    cut: bool = False


def record(hit: SeenHit) -> LoggedHit:
    """A hit as its task wants it logged: redacted, or with no more of the input than the key."""
    ask = hit.ask
    config = ask.task.hit_log
    assert config is not None, "only tasks with a hit log are noted"
    with_text = config.input == "redacted"
    answer = logged_answer(hit.entry.answer, ask.task.prompt.labels, with_text=with_text)
    return LoggedHit(
        key=ask.key.hex(),
        task=ask.task.name,
        source=hit.source,
        age_ms=round(1000 * max(0.0, hit.age_s)),
        answer=msgspec.json.encode(answer),
        input=redact(shown_input(ask.question()), MOST_INPUT_CHARS) if with_text else "",
        tenant=ask.tenant if config.tenant else "",
    )


def logged_answer(answer: Answer, labels: tuple[str, ...], *, with_text: bool) -> LoggedAnswer:
    """An answer, redacted like an input: a model may repeat what it was told.

    Labels of the task are no one's data; others are, and without text they are not kept.
    """
    logged = LoggedAnswer(score=answer.score, model=answer.model)
    if answer.label in labels:
        logged.label = answer.label
    elif with_text and answer.label is not None:
        logged.label = redact(answer.label, MOST_LABEL_CHARS)
    if not with_text:
        logged.cut = answer.value is not None or (answer.label is not None and not logged.label)
        return logged
    full = msgspec.structs.replace(
        logged,
        scores=_redacted(answer.scores, labels, MOST_DEPTH),
        value=_redacted(answer.value, labels, MOST_DEPTH),
    )
    if len(msgspec.json.encode(full)) <= MOST_ANSWER_BYTES:
        return full
    logged.cut = True
    return logged


def _redacted(value: Any, labels: tuple[str, ...], depth: int) -> Any:
    """A JSON value with its texts and long numbers redacted, object keys included."""
    if isinstance(value, str | int) and not isinstance(value, bool):
        text = str(value)
        clean = text if text in labels else redact(text, MOST_ANSWER_BYTES)
        return value if clean == text else clean
    if depth and isinstance(value, dict):
        items = cast("dict[object, Any]", value).items()
        return {
            _redacted(str(name), labels, depth): _redacted(item, labels, depth - 1)
            for name, item in items
        }
    if depth and isinstance(value, list | tuple):
        return [_redacted(item, labels, depth - 1) for item in cast("list[Any]", value)]
    return value if value is None or isinstance(value, bool | float) else CUT
