"""Job shards against their model: invariants 1 and 8, whatever happens in whatever order.

Producers enqueue, read, hand over, die and come back under their name while the old one may still be
there; workers fetch, settle, bury, defer, hand back, reclaim from the dead, and die or act on what
they lost long ago; replies are lost, requests arrive twice or late. In the end everything accepted
has been replied, once, and nothing is left.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import redis
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from askonce_queue import Job, names, queue_scripts
from askonce_queue.connections import connect_sync
from askonce_queue.errors import ClientNameInUse
from askonce_queue.job import encode_payload
from askonce_queue.ledger import NAME_TTL_MS
from askonce_queue.queue_scripts import Lane
from askonce_queue.scripts import send_sync
from askonce_worker.pool.decode import Bad
from askonce_worker.pool.delivery import Delivery
from tests.model.effort import TIMEOUT, effort
from tests.model.model_queue import Entry, NewJob, QueueModel
from tests.model.queue_actors import EVERY_LANE, JOBS, LIMITS, POOL, Hands, Producer
from tests.model.queue_snapshot import compare
from tests.model.wire import FATES, Fate, Wire
from tests.support.virtual_scripts import TAG, VirtualShard

pytestmark = TIMEOUT

CLIENTS = ("ada", "bob")
IDS = ("j1", "j2", "j3", None, None)
HEARTBEAT_MS = 10_000
RETAIN_MS = 600_000
MOST_WORKERS = 3
MOST_DEFERRED = 2
PAUSES_MS = (1, 1_000, HEARTBEAT_MS + 1, NAME_TTL_MS + 1)
GARBAGE = (
    {b"x": b"y"},
    {b"v": b"1", b"c": b"stranger", b"i": b"1", b"p": b"{"},
    {b"v": b"9", b"c": b"stranger", b"i": b"2", b"p": b"{}"},
)
"""Entries that nobody enqueued through the script."""

picks = st.integers(0, 999)
lanes = st.sampled_from(JOBS)
every_lane = st.sampled_from(EVERY_LANE)
ends = st.booleans()
jobs = st.lists(
    st.tuples(st.sampled_from(IDS), st.sampled_from(["t", "t", "t", "nobody's"])),
    min_size=1,
    max_size=3,
)


class QueueMachine(RuleBasedStateMachine):
    def __init__(self, client: redis.Redis) -> None:
        super().__init__()
        client.flushall()
        self.client = client
        self.shard = VirtualShard(client)
        self.shard.advance(10 * 365 * 86_400_000)  # the ids of entries are of the real clock
        self.model = QueueModel(self.shard.now_ms)
        self.wire = Wire(self.shard.run)
        self.numbers = itertools.count(1)
        self.producers: list[Producer] = []
        self.workers: list[Hands] = []
        for lane in EVERY_LANE:
            self.shard.run(queue_scripts.ensure_group(lane))

    # Producers

    @rule(name=st.sampled_from(CLIENTS), fate=FATES)
    def open(self, name: str, fate: Fate) -> None:
        """One who finds the name taken ends; one who is no longer heard may still be there."""
        producer = Producer(name)
        if self.claim_name(producer, fate):
            self.producers = [*self.producers[-3:], producer]

    def claim_name(self, producer: Producer, fate: Fate) -> bool:
        name, token = producer.name, producer.ledger.token
        return bool(
            self.wire.send(
                queue_scripts.claim_name(TAG, name, token, NAME_TTL_MS),
                lambda: self.model.claim_name(name, token, NAME_TTL_MS),
                int,
                fate,
            )
        )

    @precondition(lambda self: self.producers)
    @rule(who=picks, new=jobs, lane=lanes, named=st.sampled_from([None, None, "n"]), fate=FATES)
    def enqueue(
        self,
        who: int,
        new: list[tuple[str | None, str]],
        lane: Lane,
        named: str | None,
        fate: Fate,
    ) -> None:
        producer = self.pick_producer(who)
        ledger, inbox = producer.ledger, producer.inbox
        wanted = [Job(task=task, text=f"about {job_id}", id=job_id) for job_id, task in new]
        ids = ledger.assign_ids(wanted)
        (call,) = ledger.prepare(ids, wanted, lane=lane.lane, reply_to=named)
        awaited = inbox.begin(ids) if named is None else set[str]()
        jobs = [
            NewJob(job_id, encode_payload(job, LIMITS.max_job_bytes), "")
            for job_id, job in zip(ids, wanted, strict=True)
        ]
        address = f"@{named}" if named else ""
        bounds = (LIMITS.max_backlog, LIMITS.max_unread)
        token = ledger.token
        letters = self.wire.send(
            call.call,
            lambda: self.model.enqueue(lane.lane, producer.name, token, address, bounds, jobs),
            bytes.decode,
            fate,
        )
        failed = set(ids)
        if letters is not None:
            try:
                error = ledger.read_verdicts([(call, letters.encode())])
                failed = ledger.not_accepted(error, ids) if error else set()
            except ClientNameInUse:
                pass
        producer.asked.update(awaited - failed)
        if named is None:
            inbox.end(awaited, ids, failed)

    @precondition(lambda self: self.producers)
    @rule(who=picks, take=st.booleans())
    def read(self, who: int, take: bool) -> None:
        self.read_all(self.pick_producer(who), take=take)

    def read_all(self, producer: Producer, *, take: bool) -> None:
        _, words = producer.positions.read([TAG], 0.0)
        while producer.positions.take(send_sync(self.client, *words)):
            _, words = producer.positions.read([TAG], 0.0)
        if take:
            producer.take_replies()

    @precondition(lambda self: self.producers)
    @rule(who=picks)
    def rewind(self, who: int) -> None:
        """After a failed read it begins anew."""
        self.pick_producer(who).positions.rewind([TAG])

    @precondition(lambda self: self.producers)
    @rule(who=picks, fate=FATES)
    def hand_over(self, who: int, fate: Fate) -> None:
        producer = self.pick_producer(who)
        for entries, tag, call in producer.ledger.take_handed():
            told = self.wire.send(
                call,
                lambda part=tuple(entries): self.model.hand_over(producer.name, part),
                int,
                fate,
            )
            if told is None:
                producer.ledger.put_back_handed(tag, entries)
            else:
                producer.ledger.deleted(tag, entries)

    @precondition(lambda self: self.producers)
    @rule(who=picks, fate=FATES)
    def renew_name(self, who: int, fate: Fate) -> None:
        self.claim_name(self.pick_producer(who), fate)

    @precondition(lambda self: self.producers)
    @rule(who=picks, fate=FATES)
    def close(self, who: int, fate: Fate) -> None:
        producer = self.pick_producer(who)
        self.hand_over(who, fate)
        self.wire.send(
            queue_scripts.release_name(TAG, producer.name, producer.ledger.token),
            lambda: self.model.release_name(producer.name, producer.ledger.token),
            int,
            fate,
        )
        self.producers.remove(producer)

    @precondition(lambda self: self.producers)
    @rule(who=picks)
    def kill_producer(self, who: int) -> None:
        self.producers.remove(self.pick_producer(who))

    @rule()
    def read_named(self) -> None:
        """Whoever reads a named stream deletes what it has read."""
        self.client.delete(names.replies(TAG, "@n"))
        self.model.mail.pop("@n", None)

    def pick_producer(self, number: int) -> Producer:
        return self.producers[-1 - number % len(self.producers)]

    # Workers

    @precondition(lambda self: len(self.workers) < MOST_WORKERS)
    @rule()
    def start_worker(self) -> None:
        self.workers.append(Hands(f"w{next(self.numbers)}"))
        self.beat(0, Fate.FINE)

    @precondition(lambda self: self.workers)
    @rule(who=picks)
    def kill_worker(self, who: int) -> None:
        self.workers.remove(self.pick_worker(who))

    @precondition(lambda self: self.workers)
    @rule(who=picks, fate=FATES)
    def beat(self, who: int, fate: Fate) -> None:
        name = self.pick_worker(who).name
        call = queue_scripts.beat(TAG, POOL, name, HEARTBEAT_MS)
        self.wire.send(call, lambda: self.model.beat(name, HEARTBEAT_MS), lambda _: None, fate)

    @precondition(lambda self: self.workers)
    @rule(who=picks, lane=every_lane, most=st.integers(1, 4), heard=st.sampled_from([True, True, False]))
    def fetch(self, who: int, lane: Lane, most: int, heard: bool) -> None:
        """A read is never sent again, but its reply may be lost."""
        worker = self.pick_worker(who)
        words = ("COUNT", most, "STREAMS", lane.stream, ">")
        rows = send_sync(self.client, "XREADGROUP", "GROUP", names.GROUP, worker.name, *words)
        entries = rows[0][1] if rows else []
        expected = self.model.fetch(lane.lane, worker.name, most)
        assert [entry_id for entry_id, _ in entries] == expected
        if heard:
            worker.accept(lane, entries)

    @precondition(lambda self: self.workers)
    @rule(who=picks, lane=every_lane)
    def take_strays(self, who: int, lane: Lane) -> None:
        """It finds what the server gave it and it does not hold."""
        worker = self.pick_worker(who)
        words = ("XPENDING", lane.stream, names.GROUP, "-", "+", 500, worker.name)
        for entry_id, _, _, deliveries in send_sync(self.client, *words):
            if (lane.lane, entry_id) not in worker.held:
                claim = ("XCLAIM", lane.stream, names.GROUP, worker.name, 0, entry_id)
                again = send_sync(self.client, *claim, "RETRYCOUNT", deliveries)
                self.model.take_again(lane.lane, worker.name, entry_id)
                worker.accept(lane, again)

    @precondition(lambda self: self.workers)
    @rule(who=picks, lane=every_lane, most=st.integers(1, 4), fate=FATES)
    def claim(self, who: int, lane: Lane, most: int, fate: Fate) -> None:
        worker = self.pick_worker(who)
        rows: list[Any] = []

        def read(raw: list[Any]) -> list[tuple[bytes, int, bool]]:
            rows[:] = raw
            return [(row[0], row[2], bool(row[3])) for row in raw]

        call = queue_scripts.claim(lane, worker.name, most)
        told = self.wire.send(
            call, lambda: self.model.claim(lane.lane, worker.name, most), read, fate
        )
        if told is not None:
            worker.accept(lane, [(row[0], row[1]) for row in rows])

    @precondition(lambda self: self.workers)
    @rule(who=picks, lane=every_lane, which=st.integers(1, 15), fate=FATES)
    def settle(self, who: int, lane: Lane, which: int, fate: Fate) -> None:
        worker = self.pick_worker(who)
        jobs = worker.deliveries(lane, which)
        if jobs:
            self.settle_jobs(worker, lane, jobs, fate)

    def settle_jobs(
        self, worker: Hands, lane: Lane, jobs: Sequence[Delivery], fate: Fate
    ) -> None:
        groups, told = worker.answer(jobs, self.shard.now_ms)
        counted = self.wire.send(
            queue_scripts.settle(lane, groups),
            lambda: self.model.settle(lane.lane, told),
            int,
            fate,
        )
        if counted is not None:
            worker.drop(lane, [job.entry_id for job in jobs])

    @precondition(lambda self: self.workers)
    @rule(who=picks, which=picks, fate=FATES)
    def bury(self, who: int, which: int, fate: Fate) -> None:
        """Bad entries only; and once in a while one that killed whoever tried it."""
        worker = self.pick_worker(who)
        one = worker.pick(which)
        if one is not None and isinstance(one.job, Bad):
            self.bury_bad(worker, one.lane, one.job, fate)

    def bury_bad(self, worker: Hands, lane: Lane, bad: Bad, fate: Fate) -> None:
        word = worker.last_word(bad)
        call = queue_scripts.bury(
            lane,
            address=word.address,
            entry_id=word.entry_id,
            record=word.record,
            reply=word.line + b"\n",
            max_dead=1_000,
            code=bad.code,
            message=bad.message,
            fields=bad.fields,
        )
        told = self.wire.send(
            call,
            lambda: self.model.bury(lane.lane, word, bad.code, bad.fields),
            lambda raw: int(raw[0]),
            fate,
        )
        if told is not None:
            worker.drop(lane, [word.entry_id])

    @precondition(lambda self: self.workers)
    @rule(who=picks, lane=lanes, which=st.integers(1, 15), fate=FATES)
    def defer(self, who: int, lane: Lane, which: int, fate: Fate) -> None:
        worker = self.pick_worker(who)
        jobs = [(job.entry_id, job.record) for job in worker.deliveries(lane, which)]
        if not jobs:
            return
        letters = self.wire.send(
            queue_scripts.defer(lane, MOST_DEFERRED, jobs),
            lambda: self.model.defer(lane.lane, MOST_DEFERRED, jobs),
            bytes.decode,
            fate,
        )
        for (entry_id, _), letter in zip(jobs, letters or "", strict=False):
            if letter != "f":
                worker.drop(lane, [entry_id])

    @precondition(lambda self: self.workers)
    @rule(who=picks, lane=every_lane, which=st.integers(1, 15), fate=FATES)
    def give_back(self, who: int, lane: Lane, which: int, fate: Fate) -> None:
        worker = self.pick_worker(who)
        entry_ids = [job.entry_id for job in worker.deliveries(lane, which)]
        if not entry_ids:
            return
        call = queue_scripts.give_back(lane, worker.name, entry_ids)
        self.wire.send(
            call, lambda: self.model.give_back(lane.lane, worker.name, entry_ids), int, fate
        )

    @precondition(lambda self: self.workers)
    @rule(who=picks, fate=FATES)
    def leave(self, who: int, fate: Fate) -> None:
        """It drains and ends; what it could not give back is still in its name."""
        worker = self.pick_worker(who)
        self.leave_as(worker.name, fate, only_if_dead=False)
        self.workers.remove(worker)

    @precondition(lambda self: self.workers)
    @rule(who=picks, try_=st.integers(1, 3), which=picks, fate=FATES)
    def count_solo(self, who: int, try_: int, which: int, fate: Fate) -> None:
        one = self.pick_worker(who).pick(which)
        if one is None:
            return
        token = f"try {try_}"
        place = queue_scripts.solo_field(one.lane, one.entry_id)
        call = queue_scripts.count_solo(one.lane, one.entry_id, token)
        self.wire.send(call, lambda: self.model.count_solo(place, token), int, fate)

    def leave_as(self, name: str, fate: Fate, *, only_if_dead: bool) -> None:
        self.wire.send(
            queue_scripts.leave(EVERY_LANE, name, only_if_dead=only_if_dead),
            lambda: self.model.leave(name, only_if_dead=only_if_dead),
            int,
            fate,
        )

    def pick_worker(self, number: int) -> Hands:
        return self.workers[-1 - number % len(self.workers)]

    # The world

    @rule(fields=st.sampled_from(GARBAGE), lane=lanes)
    def add_garbage(self, fields: dict[bytes, bytes], lane: Lane) -> None:
        words = [word for pair in fields.items() for word in pair]
        send_sync(self.client, "XADD", lane.stream, "*", *words)
        self.model.streams[lane.lane].append(Entry(lane.lane, tuple(words)))

    @rule(fate=FATES)
    def sweep(self, fate: Fate) -> None:
        records = queue_scripts.sweep_records(
            names.ids(TAG, POOL), EVERY_LANE, cursor=0, count=500, where="value", grace_ms=0
        )
        self.wire.send(records, lambda: 0, second, fate)
        solo = queue_scripts.sweep_records(
            names.solo(TAG, POOL), EVERY_LANE, cursor=0, count=500, where="field", grace_ms=0
        )
        self.wire.send(solo, self.model.sweep_solo, second, fate)
        for consumer in list(self.model.beats):
            self.leave_as(consumer, fate, only_if_dead=True)

    @precondition(lambda self: self.wire.echoes)
    @rule(number=picks)
    def echo_arrives(self, number: int) -> None:
        self.wire.execute(self.wire.echoes.pop(number % len(self.wire.echoes)))

    @rule(ms=st.sampled_from(PAUSES_MS))
    def pass_time(self, ms: int) -> None:
        self.shard.advance(ms)
        self.model.now_ms = self.shard.now_ms

    # What holds after every step, and in the end

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        compare(self.client, self.model)
        for producer in self.producers:
            producer.check()

    def teardown(self) -> None:
        if sys.exc_info()[0] is None:
            self.finish()

    def finish(self) -> None:
        """The network calms down, the living do their work, and nothing is left."""
        while self.wire.echoes:
            self.echo_arrives(0)
        self.all_is_as_it_should_be()
        self.start_last_worker()
        self.work_off()
        for producer in [*self.producers]:
            self.finish_producer(producer)
        self.pass_time(NAME_TTL_MS + 1)
        for name in CLIENTS:
            heir = Producer(name)
            assert self.claim_name(heir, Fate.FINE)
            self.producers.append(heir)
            self.finish_producer(heir)
        self.read_named()
        self.sweep(Fate.FINE)
        self.all_is_as_it_should_be()
        self.check_nothing_is_left()

    def start_last_worker(self) -> None:
        self.pass_time(HEARTBEAT_MS + 1)
        self.workers = [Hands("last")]
        self.beat(0, Fate.FINE)

    def work_off(self) -> None:
        for lane in EVERY_LANE:
            self.claim(0, lane, 1000, Fate.FINE)
            self.fetch(0, lane, 1000, heard=True)
            (worker,) = self.workers
            jobs = worker.deliveries(lane, -1)
            if jobs:
                self.settle_jobs(worker, lane, jobs, Fate.FINE)
            for one in list(worker.held.values()):
                assert isinstance(one.job, Bad)
                self.bury_bad(worker, one.lane, one.job, Fate.FINE)
        self.all_is_as_it_should_be()
        self.leave_as("last", Fate.FINE, only_if_dead=False)

    def finish_producer(self, producer: Producer) -> None:
        self.read_all(producer, take=True)
        self.hand_over(self.producers[::-1].index(producer), Fate.FINE)
        producer.check()
        assert producer.ledger.outstanding == 0
        self.close(self.producers[::-1].index(producer), Fate.FINE)

    def check_nothing_is_left(self) -> None:
        model = self.model
        assert model.accepted == model.replied
        assert not any(model.streams.values())
        assert not model.records
        assert not model.owed
        assert not model.names
        assert not any(model.mail.values())
        assert not model.beats
        for lane in EVERY_LANE:
            rows = send_sync(self.client, "XINFO", "CONSUMERS", lane.stream, names.GROUP)
            assert {row[1] for row in rows} <= {names.RETURNED}


def second(raw: Sequence[bytes]) -> int:
    """What a sweep dropped."""
    return int(raw[1])


@pytest.fixture
def client(store_url: str) -> Iterator[redis.Redis]:
    client = connect_sync(store_url, role="commands")
    yield client
    client.close()


def test_a_job_shard_does_what_its_model_does(client: redis.Redis) -> None:
    run_state_machine_as_test(lambda: QueueMachine(client), settings=effort(examples=150, steps=50))
