"""What producers do: they enqueue, read, hand over, die, and come back under their name."""

from __future__ import annotations

from functools import partial

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from askonce_queue import Job, names, queue_scripts
from askonce_queue.errors import ClientNameInUse
from askonce_queue.job import encode_payload
from askonce_queue.ledger import NAME_TTL_MS, Enqueue
from askonce_queue.queue_scripts import Lane
from askonce_queue.scripts import send_sync
from tests.model.model_queue import NewJob
from tests.model.queue_actors import LIMITS, Producer
from tests.model.queue_stage import QueueStage, count, lanes, pick, picks
from tests.model.wire import FATES, Fate
from tests.support.virtual_scripts import TAG

CLIENTS = ("ada", "bob")
JOBS = (
    *(("j1", "t"), ("j1", "t"), ("j2", "t"), ("j3", "nobody's"), ("j1", "nobody's")),
    *((None, "t"), (None, "t"), (None, "t")),
)
"""Id and task of what is asked for; a task that no worker knows makes a bad job."""
NAMED = "n"
BOUNDS = (LIMITS.max_backlog, LIMITS.max_unread)

jobs = st.lists(st.sampled_from(JOBS), min_size=1, max_size=3)


class Producing(QueueStage):
    def open(self, name: str, fate: Fate) -> None:
        """Whose name it takes, if they still live, have been silent for too long."""
        producer = Producer(name)
        if self.claim_name(producer, fate):
            self.displaced += [one for one in self.producers if one.name == name]
            self.producers = [one for one in self.producers if one.name != name]
            self.producers.append(producer)

    @rule(
        who=picks,
        new=jobs,
        lane=lanes,
        named=st.sampled_from([None, None, None, NAMED]),
        deadline_s=st.sampled_from([None, 600.0]),
        fate=FATES,
    )
    def enqueue(
        self,
        who: int,
        new: list[tuple[str | None, str]],
        lane: Lane,
        named: str | None,
        deadline_s: float | None,
        fate: Fate,
    ) -> None:
        """As the client's `enqueue_many`."""
        if not self.producers:
            self.open(CLIENTS[0], Fate.FINE)
        if self.producers:
            self.enqueue_by(pick(self.producers, who), new, lane, named, deadline_s, fate)

    def enqueue_by(
        self,
        producer: Producer,
        new: list[tuple[str | None, str]],
        lane: Lane,
        named: str | None,
        deadline_s: float | None,
        fate: Fate,
    ) -> None:
        ledger, inbox = producer.ledger, producer.inbox
        some = [
            Job(task=task, text=f"about {job_id}", id=job_id, deadline_s=deadline_s)
            for job_id, task in new
        ]
        ids = ledger.assign_ids(some)
        (call,) = ledger.prepare(ids, some, lane=lane.lane, reply_to=named)
        resumed = producer.resumed(ids) if named is None else set[str]()
        awaited = inbox.begin(ids) if named is None else set[str]()
        letters = self.send_enqueue(producer, call, ids, some, lane, named, fate)
        failed = set(ids)
        if letters is not None:
            try:
                error = ledger.read_verdicts([(call, letters.encode())])
                failed = ledger.not_accepted(error, ids) if error else set[str]()
            except ClientNameInUse:
                assert letters == "!"
        producer.asked.update(resumed | awaited - failed)
        if named is None:
            inbox.end(awaited, ids, failed)

    def send_enqueue(
        self,
        producer: Producer,
        call: Enqueue,
        ids: list[str],
        some: list[Job],
        lane: Lane,
        named: str | None,
        fate: Fate,
    ) -> str | None:
        new = [
            NewJob(
                job_id,
                encode_payload(job, LIMITS.max_job_bytes),
                "",
                round(1000 * job.deadline_s) if job.deadline_s else 0,
            )
            for job_id, job in zip(ids, some, strict=True)
        ]
        name, token, address = producer.name, producer.ledger.token, f"@{named}" if named else ""
        return self.send(
            call.call,
            lambda: self.model.enqueue(lane.lane, name, token, address, BOUNDS, new),
            fate,
            bytes.decode,
        )

    @precondition(lambda self: self.producers)
    @rule(
        who=picks,
        anew=st.sampled_from([False, False, False, True]),
        take=st.sampled_from([True, True, False]),
        fate=st.one_of(st.none(), FATES, FATES),
    )
    def read(self, who: int, anew: bool, take: bool, fate: Fate | None) -> None:
        """After a failed read it begins `anew`; `fate` is that of the hand-over, if any."""
        producer = pick(self.producers, who)
        if anew:
            producer.positions.rewind([TAG])
        self.read_all(producer, take=take)
        if fate is not None:
            self.delete_handed(producer, fate)

    @rule(
        who=picks,
        how=st.sampled_from(["opens", "opens", "is killed", "closes"]),
        name=st.sampled_from(CLIENTS),
        fate=FATES,
    )
    def producer_comes_or_goes(self, who: int, how: str, name: str, fate: Fate) -> None:
        if how == "opens":
            self.open(name, fate)
        elif self.producers:
            producer = pick(self.producers, who)
            if how == "closes":
                self.delete_handed(producer, fate)
                self.release_name(producer, fate)
            self.producers.remove(producer)

    @precondition(lambda self: self.displaced)
    @rule(who=picks, new=jobs, lane=lanes, fate=FATES)
    def wake_up(self, who: int, new: list[tuple[str | None, str]], lane: Lane, fate: Fate) -> None:
        """One who has lost its name tries to go on, and ends."""
        producer = self.displaced.pop(who % len(self.displaced))
        some = [Job(task=task, text=f"about {job_id}", id=job_id) for job_id, task in new]
        ids = producer.ledger.assign_ids(some)
        (call,) = producer.ledger.prepare(ids, some, lane=lane.lane, reply_to=None)
        self.send_enqueue(producer, call, ids, some, lane, None, fate)
        self.release_name(producer, fate)

    def read_named(self) -> None:
        """Whoever reads a named stream deletes what it has read."""
        self.client.delete(names.replies(TAG, f"@{NAMED}").decode())
        self.model.mail.pop(f"@{NAMED}", None)

    def claim_name(self, producer: Producer, fate: Fate) -> bool:
        name, token = producer.name, producer.ledger.token
        call = queue_scripts.claim_name(TAG, name, token, NAME_TTL_MS)
        told = self.send(call, lambda: self.model.claim_name(name, token, NAME_TTL_MS), fate, count)
        return bool(told)

    def release_name(self, producer: Producer, fate: Fate) -> None:
        name, token = producer.name, producer.ledger.token
        call = queue_scripts.release_name(TAG, name, token)
        self.send(call, lambda: self.model.release_name(name, token), fate, count)

    def read_all(self, producer: Producer, *, take: bool) -> None:
        _, words = producer.positions.read([TAG], 0.0)
        while producer.positions.take(send_sync(self.client, *words)):
            _, words = producer.positions.read([TAG], 0.0)
        if take:
            producer.take_replies()

    def delete_handed(self, producer: Producer, fate: Fate) -> None:
        for entries, tag, call in producer.ledger.take_handed():
            name, some = producer.name, tuple(entries)
            told = self.send(call, partial(self.model.hand_over, name, some), fate, count)
            if told is None:
                producer.ledger.put_back_handed(tag, entries)
            else:
                producer.ledger.deleted(tag, entries)
