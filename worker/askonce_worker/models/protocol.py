"""What a model is to askonce: something that answers one question, or says clearly why not.

Every way a call can end is named here: an `Answer`, a `TransientFailure` (worth another attempt), a
`Rejection` (the same question would fail again). Neither failure is ever kept as an answer.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from askonce_queue.errors import AskonceError
from askonce_queue.reply import Answer, ErrorCode


class Question(msgspec.Struct, frozen=True):
    """What the model is asked: the input as the cache key saw it, already normalised.

    Exactly one of `text` and `messages` is given. `params` are further request parameters.
    """

    text: str | None = None
    messages: list[dict[str, Any]] | None = None
    params: dict[str, Any] | None = None


class ModelFailure(AskonceError):
    """A model call that gave no answer. `code` is the reply's error code."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        self.code: ErrorCode = code
        self.message = message
        super().__init__(f"{code}: {message}")

    def alike(self) -> ModelFailure:
        """The same once more, for another who waited: a raised exception belongs to one."""
        return type(self)(self.code, self.message)


class TransientFailure(ModelFailure):
    """Worth another attempt: `timeout`, `unavailable`, `rate_limited`, `model_failed`.

    `retry_after_s` is what the API asked for (None when it did not say). `reached`: whether there
    was anybody to ask; if not, it says nothing about the question.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        retry_after_s: float | None = None,
        *,
        reached: bool = True,
    ) -> None:
        super().__init__(code, message)
        self.retry_after_s = retry_after_s
        self.reached = reached

    def alike(self) -> TransientFailure:
        """See `ModelFailure.alike`."""
        return type(self)(self.code, self.message, self.retry_after_s)


class Rejection(ModelFailure):
    """Deterministic: asking the same again would fail the same way.

    `refused`, `truncated`, `unparsable`, `out_of_set`, `rejected`, `unauthorized`,
    `quota_exceeded`.
    """


class Prompt(msgspec.Struct, frozen=True):
    """The task's share of a request: what `Model.ask` needs beside the question."""

    system: str | None = None
    labels: tuple[str, ...] = ()
    temperature: float | None = None
    max_tokens: int | None = None
    params: dict[str, Any] | None = None


class Model(Protocol):
    """Answers one question at a time; asyncio-safe; owns no retries (the flight does)."""

    async def ask(self, prompt: Prompt, question: Question) -> Answer:
        """Answer `question`. Raises `TransientFailure` or `Rejection`; nothing else on purpose.

        The answer's label is in `prompt.labels` when there are labels.
        """
        ...

    async def check(self) -> str:
        """Ask cheaply whether the model can be reached; return a line for people.

        Raises `ModelFailure` when it cannot. Used by `askonce doctor`.
        """
        ...

    async def aclose(self) -> None:
        """Release connections and threads."""
        ...
