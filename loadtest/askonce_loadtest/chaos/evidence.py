"""What is known of a run besides the journals: what was done to it when. Times are monotonic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from askonce_loadtest.chaos.plan import DEADLY_TASK, STAMP_BOUND_S, TASK
from askonce_loadtest.chaos.schedule import Fault
from askonce_loadtest.chaos.workload import GROUPS, Asked


class Done(msgspec.Struct, kw_only=True):
    """A fault as it happened: from just before it began until it was over."""

    fault: Fault
    began: float
    ended: float
    note: str = ""
    failed: bool = False


class Invalidation(msgspec.Struct, kw_only=True):
    """An invalidation. The epochs of `groups` rose at the model between `raised` and `began`.

    `tasks` are those whose answers it takes back altogether. `confirmed` is when the command had
    ended with success, None when it never did.
    """

    groups: list[int]
    tasks: list[str]
    raised: float
    began: float
    confirmed: float | None

    def concerns(self, asked: Asked) -> bool:
        """Whether answers to this are taken back by it."""
        return asked.task in self.tasks or asked.group in self.groups


ALL_GROUPS = list(range(GROUPS))
ALL_TASKS = [TASK, DEADLY_TASK]


class Violation(msgspec.Struct):
    """Something that may never happen: of which kind, what exactly, and where to read on."""

    kind: str
    what: str
    where: str = ""


class Span(NamedTuple):
    """A stretch of time, in monotonic seconds."""

    began: float
    ended: float

    def touches(self, began: float, ended: float) -> bool:
        """Whether it shares an instant with another one."""
        return self.began <= ended and began <= self.ended


class Epochs:
    """Which epochs of a group an answer may be of, by what was invalidated when."""

    def __init__(self, invalidations: Iterable[Invalidation]) -> None:
        self._raised: list[list[float]] = [[] for _ in range(GROUPS)]
        self._binding: list[list[float | None]] = [[] for _ in range(GROUPS)]
        for one in sorted(invalidations, key=lambda one: one.raised):
            for group in one.groups:
                self._raised[group].append(one.raised)
                confirmed = one.confirmed
                binding = None if confirmed is None else confirmed + STAMP_BOUND_S
                self._binding[group].append(binding)

    def oldest(self, group: int, enqueued: float) -> int:
        """The oldest epoch that may be served to a job whose enqueue began then."""
        bound = [at is not None and at < enqueued for at in self._binding[group]]
        return max((epoch for epoch, holds in enumerate(bound, 1) if holds), default=0)

    def newest(self, group: int, replied: float) -> int:
        """The newest epoch that there was when the reply came."""
        return sum(raised <= replied for raised in self._raised[group])


MARGIN_S = 15.0
"""How long a fault is felt after it has ended: time limits, retries, backoff."""


def model_trouble(done: Sequence[Done]) -> list[Span]:
    """When calls could fail: the model or its link was out of order, or callers were stopped."""
    return [
        Span(one.began, one.ended + MARGIN_S)
        for one in done
        if one.fault.target in ("model", "model-server") or one.fault.kind == "stop-worker"
    ]


def store_trouble(done: Sequence[Done]) -> list[Span]:
    """When a worker's writes could fail: the store or the link to it was out of order."""
    return [
        Span(one.began, one.ended + MARGIN_S)
        for one in done
        if one.fault.target in ("workers", "store") or one.fault.kind == "stop-worker"
    ]
