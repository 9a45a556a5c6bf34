"""A model that is a Python callable of many texts: `def` or `async def (texts: list[str]) -> list`.

What it returns has one item a text, in order: each what a callable of one text may return
(`models/python.py`), or a `ModelFailure` of that text alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from askonce_queue.reply import Answer
from askonce_worker.models.batching import Outcome, outcome_of
from askonce_worker.models.protocol import ModelFailure, Prompt, Question, Rejection
from askonce_worker.models.python import Call, PythonModel, checked_answer, single_text


class PythonManyModel:
    """Asks a Python callable of many texts; implements `ManyModel`.

    See `PythonModel` for what its arguments mean: each call takes one of the threads, whatever the
    number of its texts.
    """

    def __init__(self, call: Call, *, name: str, timeout_s: float, max_threads: int) -> None:
        self._name = name
        self._python = PythonModel(call, name=name, timeout_s=timeout_s, max_threads=max_threads)

    async def ask(self, prompt: Prompt, question: Question) -> Answer:
        """See `Model.ask`: a list of one."""
        (outcome,) = await self.ask_many(prompt, [question])
        if isinstance(outcome, Answer):
            return outcome
        raise outcome

    def group(self, question: Question) -> Hashable | None:
        """See `ManyModel.group`: a callable sees the text only."""
        return "" if question.text is not None else None

    async def ask_many(self, prompt: Prompt, questions: Sequence[Question]) -> Sequence[Outcome]:
        """See `ManyModel.ask_many`."""
        texts = [single_text(question) for question in questions]
        results = self._listed(await self._python.called(texts), len(texts))
        return [outcome_of(partial(_answer, result, prompt, self._name)) for result in results]

    async def check(self) -> str:
        """See `Model.check`."""
        return await self._python.check()

    async def aclose(self) -> None:
        """See `Model.aclose`."""
        await self._python.aclose()

    def _listed(self, results: Any, count: int) -> list[Any]:
        """The results, one a text. Raises `Rejection`."""
        kind = type(results).__name__
        if isinstance(results, str | bytes | Mapping) or not hasattr(results, "__len__"):
            raise Rejection("unparsable", f"{self._name} must return a list, not {kind}")
        listed = list(cast("Iterable[Any]", results))
        if len(listed) != count:
            wrong = f"{len(listed)} results for {count} texts"
            raise Rejection("unparsable", f"{self._name} returned {wrong}")
        return listed


def _answer(result: Any, prompt: Prompt, name: str) -> Answer:
    if isinstance(result, ModelFailure):
        raise result
    return checked_answer(result, prompt.labels, name)
