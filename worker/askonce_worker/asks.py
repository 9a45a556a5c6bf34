"""An ask: one request for an answer, whoever makes it, and how it is told of the outcome."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from askonce_queue.queue_scripts import LaneName
from askonce_queue.reply import ErrorInfo, Source
from askonce_worker.cache.entry import Entry
from askonce_worker.cache.policy import Control
from askonce_worker.models.protocol import Question
from askonce_worker.tasks import Task


class Ask(Protocol):
    """One request for an answer, from a stream, over HTTP or from a caller in this process."""

    @property
    def task(self) -> Task:
        """The task that is asked."""
        ...

    @property
    def key(self) -> bytes:
        """The cache key, 32 bytes."""
        ...

    @property
    def tags(self) -> Sequence[str]:
        """All by which its answer can be invalidated: its own tags and its task's."""
        ...

    @property
    def tenant(self) -> str:
        """Who asks, for the accounts; empty for nobody in particular."""
        ...

    @property
    def lane(self) -> LaneName:
        """How urgent it is."""
        ...

    @property
    def deadline(self) -> float:
        """Until when an answer is worth a model call, monotonic; infinite: however long it takes.

        Then it is told the error `deadline_exceeded`.
        """
        ...

    @property
    def cacheable(self) -> bool:
        """Whether an answer may be shared and kept; else the model is asked for this ask alone."""
        ...

    @property
    def control(self) -> Control | None:
        """What it accepts and allows, if that is not what its task says."""
        ...

    def question(self) -> Question:
        """What the model is asked, normalised."""
        ...

    def key_for(self, task: Task) -> bytes:
        """The key of the same question under another task."""
        ...

    def may_defer(self) -> bool:
        """Whether this ask should rather come again later than wait here for a free slot."""
        ...

    def deferred(self) -> None:
        """Come again later. Called instead of `answered` and `failed`, after `may_defer`."""
        ...

    def answered(self, entry: Entry, source: Source, age_s: float) -> None:
        """Take the answer. Called at most once, never together with `failed`."""
        ...

    def failed(self, error: ErrorInfo, cause: Exception | None) -> None:
        """Take the failure, with the exception behind it where it happened in this process.

        Called at most once, never together with `answered`.
        """
        ...


class SeenHit(NamedTuple):
    """An ask that was served a stored answer."""

    ask: Ask
    entry: Entry
    source: Source
    age_s: float


HitWatcher = Callable[[Sequence[SeenHit]], None]
"""Is told of hits that are `watched` or `noted` by their task, and maybe others, as they happen.

It neither awaits nor takes long."""
