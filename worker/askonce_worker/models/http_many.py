"""A model behind an HTTP API that takes several questions in one POST (`models/batching.py`)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

import aiohttp
import orjson

from askonce_queue.reply import Answer
from askonce_worker.models.batching import Outcome
from askonce_worker.models.http_model import Dialect, HttpModel, Request
from askonce_worker.models.http_reply import Response
from askonce_worker.models.protocol import Prompt, Question


class ManyDialect(Dialect, Protocol):
    """One API that takes many inputs. `request` and `answer` are for those asked alone."""

    def request_many(self, model: str, prompt: Prompt, questions: Sequence[Question]) -> Request:
        """What to post: questions with a text each and equal parameters."""
        ...

    def answers(self, response: Response, prompt: Prompt) -> Sequence[Outcome]:
        """The outcomes in a response, in order. Raises the failure of the response as a whole."""
        ...


class HttpManyModel:
    """Asks a server in its dialect, one question or many at a time; implements `ManyModel`.

    See `HttpModel` for what its arguments mean, and what it raises.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        dialect: ManyDialect,
        *,
        base_url: str,
        model: str,
        api_key: Callable[[], str | None],
        timeout_s: float,
    ) -> None:
        self._dialect = dialect
        self._model = model
        self._one = HttpModel(
            session, dialect, base_url=base_url, model=model, api_key=api_key, timeout_s=timeout_s
        )

    async def ask(self, prompt: Prompt, question: Question) -> Answer:
        """See `Model.ask`."""
        return await self._one.ask(prompt, question)

    def group(self, question: Question) -> Hashable | None:
        """See `ManyModel.group`: texts with equal parameters; conversations and images go alone."""
        if not question.text:
            return None
        try:
            return orjson.dumps(question.params or {}, option=orjson.OPT_SORT_KEYS)
        except TypeError:  # no JSON, which is said of this one alone
            return None

    async def ask_many(self, prompt: Prompt, questions: Sequence[Question]) -> Sequence[Outcome]:
        """See `ManyModel.ask_many`."""
        request = self._dialect.request_many(self._model, prompt, questions)
        return self._dialect.answers(await self._one.post(request), prompt)

    async def check(self) -> str:
        """See `Model.check`."""
        return await self._one.check()

    async def aclose(self) -> None:
        """See `Model.aclose`."""
        await self._one.aclose()
