"""Every API that the stand-in model server speaks, as tests ask it."""

from __future__ import annotations

from typing import NamedTuple

from askonce_worker.models.anthropic import AnthropicMessages
from askonce_worker.models.chat import ChatCompletions
from askonce_worker.models.http_model import Dialect
from askonce_worker.models.moderations import Moderations
from askonce_worker.models.predict import Predict
from askonce_worker.models.protocol import Prompt
from askonce_worker.models.responses import Responses

WORDS = ("spam", "ham", "eggs")


class Api(NamedTuple):
    dialect: Dialect
    root: str
    """What of the server's address belongs to the base URL."""
    labels: tuple[str, ...] = WORDS
    talks: bool = True
    """Whether it is a language model, which can refuse and be cut off."""


APIS = {
    "chat": Api(ChatCompletions(), "/v1"),
    "anthropic 2023": Api(AnthropicMessages("2023-06-01"), ""),
    "anthropic 2026": Api(AnthropicMessages("2026-10-21"), ""),
    "responses": Api(Responses(), "/v1"),
    "moderations": Api(Moderations(), "/v1", ("hate", "sexual", "violence", "fine"), talks=False),
    "predict": Api(Predict(), "", ("positive", "negative"), talks=False),
}


def prompt_of(api: Api) -> Prompt:
    """What a task tells it."""
    return Prompt(system="Classify." if api.talks else None, labels=api.labels, temperature=0.0)
