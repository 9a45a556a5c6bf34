"""A delivery: a job in this worker's hands, from fetch to settle. It is an ask of the resolver."""

from __future__ import annotations

import enum
import math
from typing import Protocol

import msgspec

from askonce_queue.job import Payload
from askonce_queue.queue_scripts import Lane, LaneName
from askonce_queue.reply import ErrorInfo, Source, WireReply
from askonce_worker.cache.entry import Entry
from askonce_worker.cache.policy import Control
from askonce_worker.models.protocol import Question
from askonce_worker.observe.money import NANO
from askonce_worker.tasks import Task


class DeliveryEnd(enum.Enum):
    """Every way a delivery can end."""

    SETTLED = "settled"
    """Answered or failed, and replied."""
    BURIED = "buried"
    """Undecodable or poison: an error reply and a dead letter."""
    RETURNED = "returned"
    """Handed to `returned` by a drain, for any worker to take."""
    DEFERRED = "deferred"
    """Moved out of the way of hits, to wait in the store for room at its model."""
    RECLAIMED = "reclaimed"
    """Taken by another worker because this one looked dead; its settle changes nothing."""


class Outlet(Protocol):
    """Where settled deliveries go: the outbox."""

    def crowded(self, stream: Lane, *, beyond: bool) -> bool:
        """Whether so many deliveries wait here that others of a lane should wait in the store.

        `beyond`: of those that get some places more.
        """
        ...

    def put(self, delivery: Delivery, reply: WireReply) -> None:
        """Take the one reply of a delivery."""
        ...

    def defer(self, delivery: Delivery) -> None:
        """Have a delivery wait in the store."""
        ...

    def too_late(self, delivery: Delivery) -> None:
        """Reply to a delivery that came when its deadline had passed."""
        ...


class Delivery(msgspec.Struct, eq=False, gc=False):
    """One job that was decoded and has a key. A struct, because one is made for every job.

    `stream` is where it came from, `lane` the name of the lane it was enqueued in. `record` is the
    field of its id record, `address` where its reply goes; `text` is normalised. `deadline` is
    monotonic; `origin_ms` is when a deferred job was enqueued, by the store's clock, 0 where the
    entry's id says it. `only_looked_at`: it was deferred, its turn has not come, it may go back.
    """

    stream: Lane
    lane: LaneName
    entry_id: bytes
    job_id: str
    record: str
    address: str
    task: Task
    payload: Payload
    text: str | None
    key: bytes
    tags: tuple[str, ...]
    cacheable: bool
    outlet: Outlet
    tenant: str = ""
    control: Control | None = None
    deadline: float = math.inf
    origin_ms: int = 0
    only_looked_at: bool = False

    def question(self) -> Question:
        """The input as the key saw it."""
        payload = self.payload
        return Question(self.text, payload.messages, payload.params)

    def key_for(self, task: Task) -> bytes:
        """The key under another task."""
        asked = self.payload.cache
        namespace = asked.namespace if asked is not None else ""
        return task.key_maker.question_key(self.question(), self.tenant, namespace)

    def answered(self, entry: Entry, source: Source, age_s: float) -> None:
        """Reply with an answer."""
        reply = WireReply(id=self.job_id, answer=entry.json, source=source, age_s=round(age_s, 3))
        if source == "model":
            reply.cost = entry.cost_nano / NANO
        self.outlet.put(self, reply)

    def may_defer(self) -> bool:
        """Whether this job should rather wait in the store; one whose turn has come stays."""
        if self.stream.is_deferred and not self.only_looked_at:
            return False
        # Who has come past those that wait for a dead model need not be told to come again by them.
        backend = self.task.backend
        beyond = self.only_looked_at and not (backend.outage or backend.down)
        return self.outlet.crowded(self.stream, beyond=beyond)

    def deferred(self) -> None:
        """Wait in the store."""
        self.outlet.defer(self)

    def failed(self, error: ErrorInfo, cause: Exception | None) -> None:
        """Reply with an error."""
        del cause  # it was logged where it happened; the reply has code and message
        self.outlet.put(self, WireReply(id=self.job_id, error=error))
