"""Text classification servers with `/predict`: TEI (text-embeddings-inference) and its like.

The format is that of TEI's OpenAPI document, `/predict`: one text in, a list of labels with scores
out. The model's own labels must be the task's, if it has any.
"""

from __future__ import annotations

import msgspec

from askonce_queue.reply import Answer
from askonce_worker.models.http_model import Request, bearer, merged_params, only_text
from askonce_worker.models.http_reply import Response
from askonce_worker.models.labels import known_label
from askonce_worker.models.protocol import Prompt, Question, Rejection


class _Prediction(msgspec.Struct):
    label: str
    score: float


_decoder = msgspec.json.Decoder(list[_Prediction])


class Predict:
    """`POST /predict`; no system prompt, no temperature: the model is fixed."""

    probe = "/info"

    def headers(self, key: str) -> dict[str, str]:
        """See `Dialect.headers`."""
        return bearer(key)

    def request(self, model: str, prompt: Prompt, question: Question) -> Request:
        """See `Dialect.request`. The server has one model: its name is for people and the key."""
        del model
        params = merged_params(prompt, question, ("inputs", "raw_scores"))
        text = only_text(question, "classification models")
        return Request("/predict", {"inputs": text, "truncate": False} | params)

    def answer(self, response: Response, prompt: Prompt) -> Answer:
        """See `Dialect.answer`."""
        predictions = response.read(_decoder, "prediction")
        if not predictions:
            raise Rejection("unparsable", "the server predicts nothing")
        best = max(predictions, key=lambda one: one.score)
        return Answer(
            label=known_label(best.label, prompt.labels, response),
            score=round(best.score, 6),
            scores={one.label: one.score for one in predictions},
        )
