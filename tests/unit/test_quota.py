"""A worker's share of shared limits: what it does with what it is granted. No store."""

from __future__ import annotations

import asyncio
import math
import random
from typing import cast

import pytest

from askonce_queue.quota_scripts import Grant
from askonce_queue.reply import Answer, Usage
from askonce_worker.backend import Backend
from askonce_worker.clock import SystemClock
from askonce_worker.config import LimitsConfig
from askonce_worker.models.availability import Availability
from askonce_worker.models.batching import BatchedModel, ManyModel
from askonce_worker.models.circuit import CircuitBreaker, CircuitPolicy
from askonce_worker.models.protocol import Model, TransientFailure
from askonce_worker.quota import VALID_S, Quota, rates_of

TTL_S = 10.0


class StepClock(SystemClock):
    now = 100.0

    def monotonic(self) -> float:
        return self.now


class Rig:
    """A quota of a backend with plenty of slots, in which flights wait."""

    def __init__(self, waiting: int = 100, model: Model | None = None, **limits: int) -> None:
        self.clock = StepClock()
        self.backend = Backend("m", cast("Model", model), 1000, 60.0)
        self.backend.who_waits.append(lambda _: waiting)
        self.quota = Quota(
            self.backend,
            LimitsConfig(**limits),
            ttl_s=TTL_S,
            clock=self.clock,
            rng=random.Random(1),
        )
        self.backend.limits.append(self.quota)

    def grant(self, *, slots: int = 0, calls: int = 0, age_us: int = 0, after_s: float = 0) -> None:
        self.quota.request()
        self.clock.now += after_s
        self.quota.answered(Grant(slots, slots, False, calls, 0, age_us, 10, 0, 1))


@pytest.mark.parametrize("limit", [1, 2, 10, 59, 60, 1000, 123_456])
def test_the_formula_of_a_minute(limit: int) -> None:
    """What was in the bucket VALID_S before a minute, and all that came in until its end."""
    rates = rates_of(LimitsConfig(requests_per_minute=limit))
    assert math.floor(rates.most_calls + rates.calls_per_s * (60 + VALID_S)) <= limit
    assert rates.calls_per_s * 60 >= 0.98 * limit
    assert rates.most_calls > 0.99


def test_calls_are_good_for_a_moment_from_when_they_were_asked_for() -> None:
    rig = Rig(requests_per_minute=600)
    assert rig.backend.free_slots == 0
    rig.grant(calls=5, after_s=0.1)
    assert rig.backend.free_slots == 5
    rig.clock.now += VALID_S - 0.11
    assert rig.backend.free_slots == 5
    rig.clock.now += 0.02
    assert rig.backend.free_slots == 0


def test_an_answer_that_comes_too_late_is_worth_nothing() -> None:
    rig = Rig(requests_per_minute=600)
    rig.grant(calls=5, after_s=VALID_S)
    assert rig.backend.free_slots == 0


def test_what_was_granted_to_a_request_before_it_was_sent_again_is_older() -> None:
    rig = Rig(requests_per_minute=600)
    first = rig.quota.request()
    rig.quota.failed()
    rig.clock.now += 0.3
    again = rig.quota.request()
    assert again.number == first.number
    rig.quota.answered(Grant(0, 0, False, 5, 0, 300_000, 10, 0, 1))
    assert rig.backend.free_slots == 5
    rig.clock.now += 0.11
    assert rig.backend.free_slots == 0


def test_slots_are_good_until_shortly_before_their_end() -> None:
    rig = Rig(concurrency=4)
    rig.grant(slots=4)
    assert rig.backend.free_slots == 4
    rig.clock.now += 0.89 * TTL_S
    assert rig.backend.free_slots == 4
    rig.clock.now += 0.02 * TTL_S
    assert rig.backend.free_slots == 0


def batched_rig(**limits: int) -> Rig:
    return Rig(model=BatchedModel(cast("ManyModel", None), size=32, wait_s=0.005), **limits)


def test_a_call_has_seats_for_as_many_questions_as_a_request() -> None:
    rig = batched_rig(requests_per_minute=60)
    backend = rig.backend
    assert (backend.free_slots, rig.quota.request().calls_wanted) == (0, 4)  # for 100 that wait
    rig.quota.answered(Grant(0, 0, False, 2, 0, 0, 10, 0, 1))
    assert backend.free_slots == 64
    backend.in_flight = 40
    assert backend.free_slots == 24  # forty are about to board
    for _ in range(32):
        backend.began()
    backend.request_began()
    assert backend.free_slots == 24
    backend.pausing = 8  # these failed, and come again later
    assert backend.free_slots == 32


def test_a_slot_has_seats_for_as_many_questions_as_a_request() -> None:
    rig = batched_rig(concurrency=4)
    backend = rig.backend
    rig.grant(slots=3)
    assert backend.free_slots == 96
    backend.in_flight = 5
    for _ in range(5):
        backend.began()
    backend.request_began()
    assert backend.free_slots == 64  # the rest of a request that has begun is nobody's


async def test_requests_that_wait_come_before_more_questions() -> None:
    rig = batched_rig(requests_per_minute=60)
    backend = rig.backend
    alone = [asyncio.create_task(rig.quota.admit()) for _ in range(2)]
    await asyncio.sleep(0)
    backend.in_flight = 2
    rig.quota.request()
    rig.quota.answered(Grant(0, 0, False, 3, 0, 0, 10, 0, 1))
    assert backend.free_slots == 32
    for one in alone:
        one.cancel()
    await asyncio.gather(*alone, return_exceptions=True)
    assert backend.free_slots == 94


async def test_a_batch_gives_way_if_the_model_went_down_while_it_waited() -> None:
    """And asks nothing; of a call that has begun, the rest may go on while it is the probe."""
    rig = batched_rig(requests_per_minute=60)
    breaker = CircuitBreaker(CircuitPolicy(unreachable=1), rig.clock, random.Random(1))
    availability = Availability(clock=rig.clock, breaker=breaker)
    backend = rig.backend
    backend.availability, backend.admission = availability, rig.quota
    assert isinstance(backend.model, BatchedModel)
    watcher = backend.model.watcher
    batch = asyncio.create_task(watcher.admit(again=False))
    await asyncio.sleep(0)
    dead = TransientFailure("unavailable", "connection refused", reached=False)
    breaker.ended(dead, b"q", breaker.began())
    rig.grant(calls=2)
    assert await batch is False
    assert not await watcher.admit(again=True)
    rig.clock.now = breaker.until
    rig.grant(calls=2)
    assert await watcher.admit(again=False)
    backend.began()
    assert not await watcher.admit(again=False)
    assert await watcher.admit(again=True)


async def test_a_call_that_is_tried_again_waits_for_its_turn_and_comes_first() -> None:
    rig = Rig(requests_per_minute=600)
    rig.grant(calls=1)
    await rig.quota.admit()
    rig.backend.began()
    rig.backend.ended(TransientFailure("unavailable", "it failed"), b"", 0)
    retry = asyncio.create_task(rig.quota.admit())
    await asyncio.sleep(0)
    rig.clock.now += 1
    rig.grant(calls=1)
    assert rig.backend.free_slots == 0  # it is the retry's
    await retry


async def test_one_who_is_cancelled_while_it_waits_is_forgotten() -> None:
    rig = Rig(requests_per_minute=600)
    retry = asyncio.create_task(rig.quota.admit())
    await asyncio.sleep(0)
    retry.cancel()
    await asyncio.gather(retry, return_exceptions=True)
    rig.grant(calls=1)
    assert rig.backend.free_slots == 1


def test_what_calls_have_used_is_told_once() -> None:
    rig = Rig(waiting=0, tokens_per_minute=6000)
    rig.grant(calls=3)
    for _ in range(3):
        rig.backend.began()
    rig.backend.ended(Answer(usage=Usage(input_tokens=7, output_tokens=5)), b"", 0)
    rig.backend.ended(Answer(), b"", 0)
    rig.backend.ended(None, b"", 0)
    assert rig.quota.due() < math.inf
    rig.clock.now += 1
    told = rig.quota.request()
    assert (told.reported, told.tokens, told.charged) == (1, 12, 10)
    rig.quota.failed()
    assert rig.quota.request()[-3:] == told[-3:]  # with the number by which it is known
    rig.quota.answered(Grant(0, 0, False, 0, 0, 0, 10, 0, 1))
    assert rig.quota.request().reported == 0


def test_nothing_is_due_where_nobody_waits() -> None:
    rig = Rig(waiting=0, concurrency=3, requests_per_minute=60, tokens_per_minute=60)
    assert rig.quota.due() == math.inf
    rig.quota.wanted()
    assert rig.quota.due() < rig.clock.now
