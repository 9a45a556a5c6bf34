"""Text classification servers with `/predict`: TEI (text-embeddings-inference) and its like.

The format is that of TEI's OpenAPI document, `/predict`: one text in, a list of labels with scores
out; or a list of texts, each in a list of its own (two in one list would be a pair), and a list of
such lists. The model's own labels must be the task's, if it has any.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from askonce_queue.reply import Answer
from askonce_worker.models.batching import Outcome, outcome_of
from askonce_worker.models.http_model import Request, bearer, merged_params, only_text
from askonce_worker.models.http_reply import Response
from askonce_worker.models.labels import known_label
from askonce_worker.models.protocol import Prompt, Question, Rejection


class _Prediction(msgspec.Struct):
    label: str
    score: float


_decoder = msgspec.json.Decoder(list[_Prediction])
_many_decoder = msgspec.json.Decoder(list[list[_Prediction]])


class Predict:
    """`POST /predict`; no system prompt, no temperature: the model is fixed."""

    probe = "/info"

    def headers(self, key: str) -> dict[str, str]:
        """See `Dialect.headers`."""
        return bearer(key)

    def request(self, model: str, prompt: Prompt, question: Question) -> Request:
        """See `Dialect.request`. The server has one model: its name is for people and the key."""
        del model
        return _request(only_text(question, "classification models"), prompt, question)

    def request_many(self, model: str, prompt: Prompt, questions: Sequence[Question]) -> Request:
        """See `ManyDialect.request_many`."""
        del model
        return _request([[question.text] for question in questions], prompt, questions[0])

    def answer(self, response: Response, prompt: Prompt) -> Answer:
        """See `Dialect.answer`."""
        return _answer(response.read(_decoder, "prediction"), prompt, response)

    def answers(self, response: Response, prompt: Prompt) -> Sequence[Outcome]:
        """See `ManyDialect.answers`."""
        return [
            outcome_of(partial(_answer, predictions, prompt, response))
            for predictions in response.read(_many_decoder, "list of predictions")
        ]


def _request(inputs: Any, prompt: Prompt, question: Question) -> Request:
    params = merged_params(prompt, question, ("inputs", "raw_scores"))
    return Request("/predict", {"inputs": inputs, "truncate": False} | params)


def _answer(predictions: list[_Prediction], prompt: Prompt, response: Response) -> Answer:
    if not predictions:
        raise Rejection("unparsable", "the server predicts nothing")
    best = max(predictions, key=lambda one: one.score)
    return Answer(
        label=known_label(best.label, prompt.labels, response),
        score=round(best.score, 6),
        scores={one.label: one.score for one in predictions},
    )
