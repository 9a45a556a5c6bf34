"""Who plays on a job shard: producers with their real books, workers with their real decisions."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from askonce_queue.inbox import Inbox
from askonce_queue.ledger import Ledger, Limits
from askonce_queue.positions import Positions
from askonce_queue.queue_scripts import LANES, Lane, SettleGroup
from askonce_queue.reply import ErrorInfo, Reply, WireReply, encode_replies
from askonce_worker.pool.decode import Bad, Decoder
from askonce_worker.pool.delivery import Delivery
from askonce_worker.pool.outbox import _groups
from tests.model.model_queue import Settled
from tests.support.resolving import StepModel, make_task
from tests.support.virtual_scripts import TAG

POOL = "default"
JOBS = tuple(Lane(TAG, POOL, lane) for lane in LANES)
EVERY_LANE = (*JOBS, *(lane.deferred for lane in JOBS))
LIMITS = Limits(max_backlog=6, max_unread=8)


class Producer:
    """One incarnation of a client: its books, and what it was handed."""

    def __init__(self, name: str) -> None:
        self.ledger = Ledger(name, pool=POOL, shards=1, limits=LIMITS)
        self.inbox = Inbox(self.ledger, ring=lambda: None)
        self.positions = Positions(self.ledger)
        self.asked: Counter[str] = Counter()
        """How often it awaited a reply to an id, with the word that its job was accepted."""
        self.handed: Counter[str] = Counter()
        self.early: Counter[str] = Counter()
        """Replies to an earlier incarnation."""

    @property
    def name(self) -> str:
        return self.ledger.name

    def resumed(self, job_ids: Sequence[str]) -> set[str]:
        """Those of which the reply is here already, to the job of an earlier incarnation."""
        return {job_id for job_id in job_ids if job_id in self.ledger._early}

    def take_replies(self) -> None:
        """Be handed what has arrived."""
        early = self.ledger.take_early()
        for delivered in early:
            self.early[delivered.reply.id] += 1
            self.ledger.handed(delivered.source)
        while self.inbox.arrived:
            delivered = self.inbox.arrived.popleft()
            self.handed[delivered.reply.id] += 1
            self.ledger.handed(delivered.source)

    def check(self) -> None:
        """Each job that was asked for has at most one reply."""
        assert self.handed <= self.asked, f"handed {self.handed}, asked {self.asked}"
        assert all(count == 1 for count in self.early.values()), f"handed again: {self.early}"


class Held(NamedTuple):
    """A delivery in a worker's hands: decoded, or bad."""

    lane: Lane
    job: Delivery | Bad

    @property
    def entry_id(self) -> bytes:
        return self.job.entry_id if isinstance(self.job, Delivery) else self.job.envelope.entry_id


class Hands:
    """What a worker holds, and what it makes of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.held: dict[tuple[str, bytes], Held] = {}
        self._decoder = Decoder(
            {"t": make_task(StepModel())}, _NoOutlet(), moment=lambda _: math.inf
        )

    def accept(self, lane: Lane, entries: Sequence[tuple[bytes, list[bytes] | None]]) -> None:
        good, bad = self._decoder.read(lane, entries)
        jobs: list[Delivery | Bad] = [*good, *bad]
        for job in jobs:
            one = Held(lane, job)
            self.held[lane.lane, one.entry_id] = one

    @property
    def bad(self) -> list[Held]:
        """What it holds and cannot answer."""
        return [one for one in self.held.values() if isinstance(one.job, Bad)]

    def deliveries(self, lane: Lane) -> list[Delivery]:
        """What it holds of a lane and can answer."""
        jobs = [one.job for one in self.held.values() if one.lane == lane]
        return [job for job in jobs if isinstance(job, Delivery)]

    def some(self, number: int) -> tuple[Lane, list[Delivery]]:
        """Some of what it holds of one lane and can answer."""
        held = list(self.held.values())
        lane = held[number % len(held)].lane
        jobs = self.deliveries(lane)
        which = number % (1 << len(jobs)) or -1
        return lane, [job for i, job in enumerate(jobs) if which >> i & 1]

    def drop(self, lane: Lane, entry_ids: Sequence[bytes]) -> None:
        for entry_id in entry_ids:
            self.held.pop((lane.lane, entry_id), None)

    def answer(
        self, jobs: Sequence[Delivery], now_ms: float
    ) -> tuple[list[SettleGroup], list[list[Settled]]]:
        """The groups of a settle as the outbox makes them, and what they say."""
        settled = [(job, self._reply(job)) for job in jobs]
        groups = _groups(settled, int(now_ms))
        by_entry = {job.entry_id: job for job in jobs}
        told: list[list[Settled]] = []
        for group in groups:
            lines = group.replies.splitlines()
            told.append(
                [
                    Settled(entry_id, record, group.address, line)
                    for (entry_id, record), line in zip(group.jobs, lines, strict=True)
                ]
            )
            for one in told[-1]:
                job = by_entry[one.entry_id]
                assert (one.record, one.address) == (job.record, job.address)
                assert msgspec.json.decode(one.line, type=Reply).id == job.job_id
        return groups, told

    def _reply(self, job: Delivery) -> WireReply:
        text = msgspec.json.encode({"label": job.text})
        return WireReply(id=job.job_id, answer=msgspec.Raw(text), source="model")

    @staticmethod
    def last_word(bad: Bad) -> Settled:
        """What a bury says of an entry that cannot be answered."""
        envelope = bad.envelope
        reply = WireReply(id=envelope.job_id, error=ErrorInfo(bad.code, bad.message))
        return Settled(
            envelope.entry_id,
            envelope.record,
            envelope.address if envelope.job_id else "",
            encode_replies([reply]).rstrip(b"\n"),
        )


class _NoOutlet:
    """Deliveries are settled by the machine's rules."""

    def crowded(self, stream: Lane, *, beyond: bool) -> bool:
        del stream, beyond
        return False

    def too_late(self, delivery: Delivery) -> None:
        raise AssertionError(f"no deadline passes by itself here: {delivery}")

    def put(self, delivery: Delivery, reply: WireReply) -> None:
        raise AssertionError(f"nothing answers by itself here: {delivery}, {reply}")

    def defer(self, delivery: Delivery) -> None:
        raise AssertionError(f"nothing is deferred by itself here: {delivery}")
