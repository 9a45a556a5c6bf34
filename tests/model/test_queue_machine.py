"""Job shards against their model: invariants 1 and 8, whatever happens in whatever order.

Producers enqueue, read, hand over, die and come back under their name; workers fetch, settle, bury,
defer, hand back, reclaim from the dead, and die or act on what they lost long ago; replies are
lost, requests arrive twice or late. In the end everything accepted has been replied, once, and
nothing is left.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import redis
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from askonce_queue import names, queue_scripts
from askonce_queue.connections import connect_sync
from askonce_queue.ledger import NAME_TTL_MS
from askonce_queue.queue_scripts import Lane
from askonce_queue.scripts import send_sync
from tests.model.effort import TIMEOUT, effort
from tests.model.model_queue import Entry
from tests.model.queue_actors import EVERY_LANE, POOL, Hands, Producer
from tests.model.queue_producing import CLIENTS, Producing
from tests.model.queue_stage import dropped, lanes, picks
from tests.model.queue_working import HEARTBEAT_MS, Working
from tests.model.wire import FATES, Fate
from tests.support.virtual_scripts import TAG

pytestmark = TIMEOUT

RETAIN_MS = 600_000
PAUSES_MS = (1, 1_000, 1_000, HEARTBEAT_MS + 1, NAME_TTL_MS + 1, RETAIN_MS + NAME_TTL_MS + 1)
ALL = 1_000
GARBAGE = (
    {b"x": b"y"},
    {b"v": b"1", b"c": b"stranger", b"i": b"1", b"p": b"{"},
    {b"v": b"9", b"c": b"stranger", b"i": b"2", b"p": b"{}"},
)
"""Entries that nobody enqueued through the script."""
NOBODY = {"", "stranger"}


class QueueMachine(Producing, Working):
    def __init__(self, client: redis.Redis) -> None:
        super().__init__(client)
        self.open(CLIENTS[0], Fate.FINE)
        self.start_worker()

    @precondition(lambda self: not any(one.client in NOBODY for one in self.model))
    @rule(fields=st.sampled_from(GARBAGE), lane=lanes)
    def add_garbage(self, fields: dict[bytes, bytes], lane: Lane) -> None:
        words = [word for pair in fields.items() for word in pair]
        send_sync(self.client, "XADD", lane.stream, "*", *words)
        self.model.streams[lane.lane].append(Entry(lane.lane, tuple(words)))

    @rule(what=st.sampled_from(["records", "consumers", "clients", "named"]), fate=FATES)
    def tidy_up(self, what: str, fate: Fate) -> None:
        match what:
            case "records":
                self.sweep_records(fate)
            case "consumers":
                self.sweep_consumers(fate)
            case "clients":
                self.sweep_clients(fate)
            case _:
                self.read_named()

    def sweep_records(self, fate: Fate) -> None:
        """Every record is of a job that is there, so there is nothing to drop."""
        records = queue_scripts.sweep_records(
            names.ids(TAG, POOL), EVERY_LANE, cursor=0, count=500, where="value", grace_ms=0
        )
        self.send(records, lambda: 0, fate, dropped)
        solo = queue_scripts.sweep_records(
            names.solo(TAG, POOL), EVERY_LANE, cursor=0, count=500, where="field", grace_ms=0
        )
        self.send(solo, self.model.sweep_solo, fate, dropped)

    def sweep_consumers(self, fate: Fate) -> None:
        for consumer in {*self.model.beats, *self.consumers()} - {names.RETURNED.decode()}:
            self.leave_as(consumer, fate, only_if_dead=True)

    def sweep_clients(self, fate: Fate) -> None:
        clients = queue_scripts.sweep_clients(TAG, cursor=0, count=500, retain_ms=RETAIN_MS)
        self.send(clients, lambda: self.model.sweep_clients(RETAIN_MS), fate, dropped)
        owed = queue_scripts.sweep_owed(TAG, cursor=0, count=500)
        self.send(owed, self.model.sweep_owed, fate, dropped)

    def consumers(self) -> set[str]:
        """Whoever the server knows as a consumer."""
        return {
            row[1].decode()
            for lane in EVERY_LANE
            for row in send_sync(self.client, "XINFO", "CONSUMERS", lane.stream, names.GROUP)
        }

    @precondition(lambda self: self.wire.echoes)
    @rule(number=picks)
    def echo_arrives(self, number: int) -> None:
        self.wire.execute(self.wire.echoes.pop(number % len(self.wire.echoes)))

    @rule(ms=st.sampled_from(PAUSES_MS), asleep=st.integers(0, 31))
    def pass_time(self, ms: int, asleep: int) -> None:
        """Who is not asleep keeps its heartbeat fresh, and its name."""
        self.advance(ms)
        actors: list[Hands | Producer] = [*self.workers, *self.producers]
        for i, one in enumerate(actors):
            if not asleep >> i & 1:
                if isinstance(one, Producer):
                    self.claim_name(one, Fate.FINE)
                else:
                    self.beat(one.name)

    def teardown(self) -> None:
        if sys.exc_info()[0] is None:
            self.finish()

    def finish(self) -> None:
        """The network calms down, the living do their work, and nothing is left."""
        while self.wire.echoes:
            self.echo_arrives(0)
            self.all_is_as_it_should_be()
        self.work_off()
        for producer in list(self.producers):
            self.finish_producer(producer)
        self.advance(NAME_TTL_MS + 1)
        for name in CLIENTS:
            heir = Producer(name)
            assert self.claim_name(heir, Fate.FINE)
            self.finish_producer(heir)
        self.read_named()
        self.sweep_records(Fate.FINE)
        self.sweep_consumers(Fate.FINE)
        self.all_is_as_it_should_be()
        self.check_nothing_is_left()

    def work_off(self) -> None:
        """Those who were here are dead; one comes who does all that is left."""
        self.advance(HEARTBEAT_MS + 1)
        worker = Hands("last")
        self.workers = [worker]
        self.beat(worker.name)
        for lane in EVERY_LANE:
            self.claim_from(worker, lane, ALL, Fate.FINE)
            self.fetch_from(worker, lane, ALL, heard=True)
            jobs = worker.deliveries(lane)
            if jobs:
                self.settle_jobs(worker, lane, jobs, Fate.FINE)
        for one in worker.bad:
            self.bury_bad(worker, one, Fate.FINE)
        self.leave_as(worker.name, Fate.FINE, only_if_dead=False)
        self.all_is_as_it_should_be()

    def finish_producer(self, producer: Producer) -> None:
        self.read_all(producer, take=True)
        self.delete_handed(producer, Fate.FINE)
        producer.check()
        if producer.name not in self.model.swept:
            assert producer.ledger.outstanding == 0
        self.release_name(producer, Fate.FINE)

    def check_nothing_is_left(self) -> None:
        model = self.model
        assert model.accepted == model.promised()
        for one in (model.records, model.owed, model.names, model.beats, model.solo):
            assert not one
        assert not list(model)
        assert not any(model.mail.values())
        assert self.consumers() <= {names.RETURNED.decode()}


@pytest.fixture
def client(store_url: str) -> Iterator[redis.Redis]:
    client = connect_sync(store_url, role="commands")
    yield client
    client.close()


def test_a_job_shard_does_what_its_model_does(client: redis.Redis) -> None:
    class Machine(QueueMachine):
        def __init__(self) -> None:
            super().__init__(client)

    run_state_machine_as_test(Machine, settings=effort(examples=150, steps=50))
