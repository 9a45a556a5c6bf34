"""A fallback model: asked instead of a task's own while that is unavailable, under keys of its own.

The fallback is a task of the same name with another model, so its answers have other keys: none is
ever served as the first model's. Who waits for the first model waits as a `Redirected` for the
fallback; that looks for a stored answer of the fallback, or asks it, like anybody.
"""

from __future__ import annotations

from collections.abc import Sequence

from askonce_queue.queue_scripts import LaneName
from askonce_queue.reply import ErrorInfo, Source
from askonce_worker.asks import Ask
from askonce_worker.cache.entry import Entry
from askonce_worker.cache.policy import Control
from askonce_worker.models.protocol import Question
from askonce_worker.tasks import Task

UNAVAILABLE = frozenset(
    (
        *("timeout", "unavailable", "rate_limited", "model_failed"),
        *("unauthorized", "quota_exceeded"),
    )
)
"""Errors of a model that another one may not have. What is wrong with the question, is for both."""


class Redirected:
    """An ask that waits for the fallback of its task. `why`: what kept the first model from it."""

    def __init__(self, ask: Ask, fallback: Task, why: ErrorInfo) -> None:
        self.task = fallback
        self.key = ask.key_for(fallback)
        self._ask = ask
        self._why = why

    @property
    def tags(self) -> Sequence[str]:
        """See `Ask.tags`: an invalidation of the task reaches the answers of both models."""
        return self._ask.tags

    @property
    def tenant(self) -> str:
        """See `Ask.tenant`."""
        return self._ask.tenant

    @property
    def lane(self) -> LaneName:
        """See `Ask.lane`."""
        return self._ask.lane

    @property
    def deadline(self) -> float:
        """See `Ask.deadline`."""
        return self._ask.deadline

    @property
    def cacheable(self) -> bool:
        """See `Ask.cacheable`."""
        return self._ask.cacheable

    @property
    def control(self) -> Control | None:
        """See `Ask.control`."""
        return self._ask.control

    def question(self) -> Question:
        """See `Ask.question`."""
        return self._ask.question()

    def key_for(self, task: Task) -> bytes:
        """See `Ask.key_for`."""
        return self._ask.key_for(task)

    def may_defer(self) -> bool:
        """See `Ask.may_defer`."""
        return self._ask.may_defer()

    def deferred(self) -> None:
        """See `Ask.deferred`: it begins again with the first model."""
        self._ask.deferred()

    def answered(self, entry: Entry, source: Source, age_s: float) -> None:
        """See `Ask.answered`."""
        self._ask.answered(entry, source, age_s)

    def failed(self, error: ErrorInfo, cause: Exception | None) -> None:
        """See `Ask.failed`: neither model has answered."""
        fallback, first = self.task.backend.name, self._why.message
        why = f"{error.message} (fallback {fallback!r}; before that: {first})"
        self._ask.failed(ErrorInfo(error.code, why), cause)
