"""A caller's function as the resolver sees it: a question with its answer, and an ask."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from askonce_queue.errors import AskonceError
from askonce_queue.queue_scripts import LaneName
from askonce_queue.reply import Answer, ErrorInfo, Source
from askonce_worker.cache.entry import Entry
from askonce_worker.cache.policy import Control
from askonce_worker.models.protocol import Prompt, Question, Rejection
from askonce_worker.tasks import Task


class CallFailed(AskonceError):
    """The call failed in another process a moment ago, or for reasons of the cache itself.

    Where it failed in this process, its own exception is raised instead.
    """


class CallQuestion(Question, frozen=True, kw_only=True):
    """A question that brings along what answers it."""

    call: Callable[[], Awaitable[Any]]


class CallModel:
    """A `Model` that runs the callable of the question."""

    async def ask(self, prompt: Prompt, question: Question) -> Answer:
        """See `Model.ask`; what the callable raised is the cause of the `Rejection`."""
        del prompt
        assert isinstance(question, CallQuestion)
        try:
            value = await question.call()
        except Exception as error:
            raise Rejection("model_failed", f"{type(error).__name__}: {error}") from error
        try:
            return Answer(value=msgspec.to_builtins(value))
        except (TypeError, msgspec.MsgspecError) as error:
            raise Rejection("model_failed", f"the value is not JSON: {error}") from error

    async def check(self) -> str:
        """See `Model.check`."""
        return "calls functions of this process"

    async def aclose(self) -> None:
        """Nothing to release."""


class CallAsk:
    """One caller's wait for one key."""

    def __init__(
        self,
        task: Task,
        key: bytes,
        question: CallQuestion,
        *,
        tags: Sequence[str],
        tenant: str,
        cacheable: bool,
        control: Control | None,
    ) -> None:
        self.task = task
        self.key = key
        self.tags = tags
        self.tenant = tenant
        self.cacheable = cacheable
        self.control = control
        self.lane: LaneName = "interactive"
        self.deadline = math.inf
        """A caller that waits no longer cancels its wait."""
        self.outcome: asyncio.Future[tuple[Entry, Source, float]] = (
            asyncio.get_running_loop().create_future()
        )
        self._question = question

    def question(self) -> Question:
        """See `Ask.question`."""
        return self._question

    def key_for(self, task: Task) -> bytes:
        """See `Ask.key_for`."""
        raise AssertionError(f"a caller's function has no fallback: {task.name}")

    def may_defer(self) -> bool:
        """See `Ask.may_defer`: never."""
        return False

    def deferred(self) -> None:
        """See `Ask.deferred`."""
        raise AssertionError("a caller in this process waits here")

    def answered(self, entry: Entry, source: Source, age_s: float) -> None:
        """See `Ask.answered`."""
        if not self.outcome.done():  # the caller may have been cancelled
            self.outcome.set_result((entry, source, age_s))

    def failed(self, error: ErrorInfo, cause: Exception | None) -> None:
        """See `Ask.failed`."""
        if not self.outcome.done():
            self.outcome.set_exception(cause or CallFailed(f"{error.code}: {error.message}"))
