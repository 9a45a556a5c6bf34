"""What workers do: they fetch, settle, bury, defer, hand back, reclaim, and die or act too late."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from askonce_queue import names, queue_scripts
from askonce_queue.queue_scripts import Lane
from askonce_queue.scripts import send_sync
from askonce_worker.pool.decode import Bad
from askonce_worker.pool.delivery import Delivery
from tests.model.queue_actors import EVERY_LANE, POOL, Hands, Held
from tests.model.queue_stage import QueueStage, count, pick, picks
from tests.model.wire import FATES, Fate
from tests.support.virtual_scripts import TAG

HEARTBEAT_MS = 10_000
MOST_WORKERS = 3
MOST_DEFERRED = 2
MOST_DEAD = 1_000

mosts = st.integers(1, 4)


class Working(QueueStage):
    @rule(
        who=picks,
        how=st.sampled_from(["starts", "starts", "is killed", "leaves"]),
        fate=FATES,
    )
    def worker_comes_or_goes(self, who: int, how: str, fate: Fate) -> None:
        """What one holds who goes, and has not given back, stays in its name."""
        if how == "starts" and len(self.workers) < MOST_WORKERS:
            self.start_worker()
        elif self.workers:
            worker = pick(self.workers, who)
            if how == "leaves":
                self.leave_as(worker.name, fate, only_if_dead=False)
            self.workers.remove(worker)

    def start_worker(self) -> None:
        self.workers.append(Hands(f"w{next(self.numbers)}"))
        self.beat(self.workers[-1].name)

    @rule(
        who=picks,
        strays=st.sampled_from([False, False, True]),
        where=picks,
        most=mosts,
        heard=st.sampled_from([True, True, False]),
    )
    def fetch(self, who: int, strays: bool, where: int, most: int, heard: bool) -> None:
        if not self.workers:
            self.start_worker()
        worker = pick(self.workers, who)
        if strays:
            self.take_strays(worker)
        lane = self.lane_of(where, lambda lane: self.model.has(lane.lane, None))
        self.fetch_from(worker, lane, most, heard=heard)

    def fetch_from(self, worker: Hands, lane: Lane, most: int, *, heard: bool) -> None:
        """A read is never sent again, but its reply may be lost."""
        words = ("COUNT", most, "STREAMS", lane.stream, ">")
        rows = send_sync(self.client, "XREADGROUP", "GROUP", names.GROUP, worker.name, *words)
        entries: list[tuple[bytes, list[bytes] | None]] = rows[0][1] if rows else []
        expected = self.model.fetch(lane.lane, worker.name, most)
        assert [entry_id for entry_id, _ in entries] == expected
        if heard:
            worker.accept(lane, entries)

    @rule(who=picks, where=picks, fate=FATES)
    def serve(self, who: int, where: int, fate: Fate) -> None:
        """As it should be, but perhaps for the reply to the settle."""
        self.fetch(who, False, where, 4, True)
        worker = pick(self.workers, who)
        if worker.held:
            self.finish_with(worker, who, fate)

    def take_strays(self, worker: Hands) -> None:
        """It finds what the server gave it and it does not hold."""
        for lane in EVERY_LANE:
            words = ("XPENDING", lane.stream, names.GROUP, "-", "+", 500, worker.name)
            for entry_id, _, _, deliveries in send_sync(self.client, *words):
                if (lane.lane, entry_id) not in worker.held:
                    claim = ("XCLAIM", lane.stream, names.GROUP, worker.name, 0, entry_id)
                    again = send_sync(self.client, *claim, "RETRYCOUNT", deliveries)
                    assert self.model.is_held_by(worker.name, lane.lane, entry_id)
                    worker.accept(lane, again)

    @precondition(lambda self: self.workers)
    @rule(
        who=picks,
        fresh=st.sampled_from([True, True, True, False]),
        where=picks,
        most=mosts,
        fate=FATES,
    )
    def claim(self, who: int, fresh: bool, where: int, most: int, fate: Fate) -> None:
        worker = pick(self.workers, who)
        if fresh:
            self.beat(worker.name)
        others = self.model.others_than(worker.name)
        self.claim_from(worker, self.lane_of(where, lambda lane: lane.lane in others), most, fate)

    def claim_from(self, worker: Hands, lane: Lane, most: int, fate: Fate) -> None:
        rows: list[Any] = []

        def read(raw: list[Any]) -> list[tuple[bytes, int, bool]]:
            rows[:] = raw
            return [(row[0], row[2], bool(row[3])) for row in raw]

        call = queue_scripts.claim(lane, worker.name, most)
        told = self.send(call, lambda: self.model.claim(lane.lane, worker.name, most), fate, read)
        if told is not None:
            worker.accept(lane, [(row[0], row[1]) for row in rows])

    @rule(who=picks, which=picks, fate=FATES)
    def finish_some(self, who: int, which: int, fate: Fate) -> None:
        """Settle what can be answered, bury what cannot."""
        for worker in self.one_that_holds(who):
            self.finish_with(worker, which, fate)

    def finish_with(self, worker: Hands, which: int, fate: Fate) -> None:
        lane, jobs = worker.some(which)
        if jobs:
            self.settle_jobs(worker, lane, jobs, fate)
        if worker.bad:
            self.bury_bad(worker, pick(worker.bad, which), fate)

    def settle_jobs(self, worker: Hands, lane: Lane, jobs: Sequence[Delivery], fate: Fate) -> None:
        groups, told = worker.answer(jobs, self.shard.now_ms)
        call = queue_scripts.settle(lane, groups)
        counted = self.send(call, lambda: self.model.settle(lane.lane, told), fate, count)
        if counted is not None:
            worker.drop(lane, [job.entry_id for job in jobs])

    def bury_bad(self, worker: Hands, one: Held, fate: Fate) -> None:
        lane, bad = one
        assert isinstance(bad, Bad)
        word = worker.last_word(bad)
        call = queue_scripts.bury(
            lane,
            address=word.address,
            entry_id=word.entry_id,
            record=word.record,
            reply=word.line + b"\n",
            max_dead=MOST_DEAD,
            code=bad.code,
            message=bad.message,
            fields=bad.fields,
        )
        told = self.send(
            call,
            lambda: self.model.bury(lane.lane, word, bad.code, bad.fields),
            fate,
            lambda raw: int(raw[0]),
        )
        if told is not None:
            worker.drop(lane, [word.entry_id])

    @rule(
        who=picks,
        which=picks,
        how=st.sampled_from(["defer", "defer", "give back", "give back", "try alone"]),
        fate=FATES,
    )
    def put_off(self, who: int, which: int, how: str, fate: Fate) -> None:
        for worker in self.one_that_holds(who):
            lane, jobs = worker.some(which)
            if how == "try alone":
                self.count_solo(pick(list(worker.held.values()), which), which % 3, fate)
            elif how == "give back":
                self.give_back(worker, lane, jobs, fate)
            elif jobs:
                self.defer(worker, lane, jobs, fate)

    def defer(self, worker: Hands, lane: Lane, some: Sequence[Delivery], fate: Fate) -> None:
        jobs = [(job.entry_id, job.record) for job in some]
        letters = self.send(
            queue_scripts.defer(lane, MOST_DEFERRED, jobs),
            lambda: self.model.defer(lane.lane, MOST_DEFERRED, jobs),
            fate,
            bytes.decode,
        )
        for (entry_id, _), letter in zip(jobs, letters or "", strict=False):
            if letter != "f":
                worker.drop(lane, [entry_id])

    @precondition(lambda self: any(self.model.due.values()))
    @rule(who=picks, where=picks, fate=FATES)
    def take_overdue(self, who: int, where: int, fate: Fate) -> None:
        """Out of their turn, which is still to come: then somebody else has them, too."""
        if not self.workers:
            self.start_worker()
        worker = pick(self.workers, who)
        lane = self.lane_of(where, lambda lane: bool(self.model.due[lane.lane]))
        rows: list[Any] = []

        def read(raw: Any) -> tuple[int, set[bytes]]:
            rows[:] = raw[1]
            return int(raw[0]), {row[0] for row in raw[1]}

        told = self.send(
            queue_scripts.take_overdue(lane, worker.name, 100),
            lambda: self.model.take_overdue(lane.lane, worker.name),
            fate,
            read,
        )
        if told is not None:
            worker.accept(lane, [(row[0], row[1]) for row in rows])

    def give_back(self, worker: Hands, lane: Lane, jobs: Sequence[Delivery], fate: Fate) -> None:
        """It goes on holding what it hands back, as a drain does until its replies are out."""
        ids = [job.entry_id for job in jobs]
        call = queue_scripts.give_back(lane, worker.name, ids)
        self.send(call, lambda: self.model.give_back(lane.lane, worker.name, ids), fate, count)

    def count_solo(self, one: Held, number: int, fate: Fate) -> None:
        token, place = f"try {number}", queue_scripts.solo_field(one.lane, one.entry_id)
        call = queue_scripts.count_solo(one.lane, one.entry_id, token)
        self.send(call, lambda: self.model.count_solo(place, token), fate, count)

    def beat(self, name: str) -> None:
        call = queue_scripts.beat(TAG, POOL, name, HEARTBEAT_MS)
        self.send(call, lambda: self.model.beat(name, HEARTBEAT_MS), Fate.FINE, count)

    def leave_as(self, name: str, fate: Fate, *, only_if_dead: bool) -> None:
        call = queue_scripts.leave(EVERY_LANE, name, only_if_dead=only_if_dead)
        self.send(call, lambda: self.model.leave(name, only_if_dead=only_if_dead), fate, count)

    def one_that_holds(self, who: int) -> list[Hands]:
        """A worker that holds something, if there is anything to hold."""
        if not any(worker.held for worker in self.workers):
            self.fetch(who, False, who, 4, True)
        holding = [worker for worker in self.workers if worker.held]
        return [pick(holding, who)] if holding else []
