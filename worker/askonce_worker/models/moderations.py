"""OpenAI's moderations. The format is that of OpenAI's API reference, "Create moderation".

The API has categories of its own. A task's labels say which of them count: the answer is the label
among them with the highest score if it is flagged. `flagged` stands for any category, and the one
label that names none of them for "nothing was flagged". Without labels the answer is the flagged
category with the highest score, or `ok`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from askonce_queue.reply import Answer
from askonce_worker.models.batching import Outcome, outcome_of
from askonce_worker.models.http_model import Request, bearer, merged_params
from askonce_worker.models.http_reply import Response, model_id
from askonce_worker.models.labels import known_label
from askonce_worker.models.protocol import Prompt, Question, Rejection

FLAGGED, OK = "flagged", "ok"


class _Result(msgspec.Struct):
    flagged: bool
    categories: dict[str, bool | None]
    category_scores: dict[str, float | None]


class _Moderation(msgspec.Struct):
    results: list[_Result]
    model: Any = None


_decoder = msgspec.json.Decoder(_Moderation)


class Moderations:
    """`POST /moderations`: texts, or the parts of one message (text and images)."""

    probe = "/models"

    def headers(self, key: str) -> dict[str, str]:
        """See `Dialect.headers`."""
        return bearer(key)

    def request(self, model: str, prompt: Prompt, question: Question) -> Request:
        """See `Dialect.request`. A conversation is judged by its last message."""
        params = merged_params(prompt, question, ("input", "model"))
        given: object = question.text
        if question.messages is not None:
            given = question.messages[-1].get("content") if question.messages else None
        if not given:
            raise Rejection("rejected", "there is nothing to moderate")
        return Request("/moderations", {"model": model, "input": given} | params)

    def request_many(self, model: str, prompt: Prompt, questions: Sequence[Question]) -> Request:
        """See `ManyDialect.request_many`."""
        params = merged_params(prompt, questions[0], ("input", "model"))
        texts = [question.text for question in questions]
        return Request("/moderations", {"model": model, "input": texts} | params)

    def answer(self, response: Response, prompt: Prompt) -> Answer:
        """See `Dialect.answer`. `score` is the label's; of "nothing flagged": 1 − the highest."""
        moderation = response.read(_decoder, "moderation")
        if len(moderation.results) != 1:
            raise Rejection("unparsable", f"expected one result, got {len(moderation.results)}")
        return answer_of(moderation.results[0], moderation.model, prompt, response)

    def answers(self, response: Response, prompt: Prompt) -> Sequence[Outcome]:
        """See `ManyDialect.answers`."""
        moderation = response.read(_decoder, "moderation")
        return [
            outcome_of(partial(answer_of, result, moderation.model, prompt, response))
            for result in moderation.results
        ]


def answer_of(result: _Result, model: object, prompt: Prompt, response: Response) -> Answer:
    """The answer of one result."""
    scores = {name: score for name, score in result.category_scores.items() if score is not None}
    any_counts = not prompt.labels or FLAGGED in prompt.labels
    counted = [name for name in result.categories if any_counts or name in prompt.labels]
    flagged = [name for name in counted if result.categories[name]]
    top = max(flagged, key=lambda name: scores.get(name, 0.0), default=None)
    if top is None:
        highest = max((scores.get(name, 0.0) for name in counted), default=0.0)
        label, score = _nothing(result, prompt), 1.0 - highest
    else:
        is_any = top not in prompt.labels and FLAGGED in prompt.labels
        label, score = FLAGGED if is_any else top, scores.get(top, 1.0)
    return Answer(
        label=known_label(label, prompt.labels, response),
        score=round(min(1.0, max(0.0, score)), 6),
        scores=scores,
        model=model_id(model),
    )


def _nothing(result: _Result, prompt: Prompt) -> str:
    """The label that stands for nothing flagged."""
    named = {FLAGGED, *result.categories}
    others = [label for label in prompt.labels if label not in named]
    if not prompt.labels:
        return OK
    if len(others) != 1:
        raise Rejection(
            "out_of_set",
            "the task's labels need exactly one that is no category, for nothing flagged; "
            f"they have {len(others)}",
        )
    return others[0]
