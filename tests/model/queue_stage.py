"""The stage of the queue machine: a shard on the server, its model, and who is there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant

from askonce_queue import queue_scripts
from askonce_queue.queue_scripts import Lane
from askonce_queue.scripts import Call
from tests.model.model_queue import QueueModel
from tests.model.queue_actors import EVERY_LANE, JOBS, Hands, Producer
from tests.model.queue_snapshot import compare
from tests.model.wire import Fate, Wire
from tests.support.virtual_scripts import VirtualShard

T = TypeVar("T")

TEN_YEARS_MS = 10 * 365 * 86_400_000
"""Ahead of the real clock, of which the ids of entries are."""

picks = st.integers(0, 999)
"""Picks one of however many there are, so that what is drawn never depends on the server."""
lanes = st.sampled_from(JOBS)


class QueueStage(RuleBasedStateMachine):
    def __init__(self, client: redis.Redis) -> None:
        super().__init__()
        client.flushall()
        self.client = client
        self.shard = VirtualShard(client)
        self.shard.advance(TEN_YEARS_MS)
        self.model = QueueModel(self.shard.now_ms)
        self.wire = Wire(self.shard.run)
        self.numbers = itertools.count(1)
        self.producers: list[Producer] = []
        self.displaced: list[Producer] = []
        """Producers whose name another one has, which they have not noticed yet."""
        self.workers: list[Hands] = []
        for lane in EVERY_LANE:
            self.shard.run(queue_scripts.ensure_group(lane))

    def send(
        self, call: Call, model: Callable[[], T], fate: Fate, read: Callable[[Any], T]
    ) -> T | None:
        return self.wire.send(call, model, read, fate)

    def advance(self, ms: float) -> None:
        self.shard.advance(ms)
        self.model.now_ms = self.shard.now_ms

    def lane_of(self, number: int, where: Callable[[Lane], bool]) -> Lane:
        """One of the lanes for which something holds, if there are any."""
        some = [lane for lane in EVERY_LANE if where(lane)] or list(EVERY_LANE)
        return some[number % len(some)]

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        compare(self.client, self.model)
        self.model.check()
        for producer in self.producers:
            producer.check()


def pick(some: Sequence[T], number: int) -> T:
    """One of them, the newest first."""
    return some[-1 - number % len(some)]


def count(raw: Any) -> int:
    """A result that is a number."""
    return int(raw)


def nothing(raw: Any) -> None:
    """A result that says nothing."""
    assert raw is None


def dropped(raw: Sequence[Any]) -> int:
    """What a sweep dropped."""
    return int(raw[1])
