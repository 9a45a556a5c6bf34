"""The circuit breaker of a model: what proves an outage, and how seldom a dead model is asked."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askonce_queue.reply import Answer
from askonce_worker.models.circuit import Circuit, CircuitBreaker, CircuitPolicy
from askonce_worker.models.protocol import ModelFailure, Rejection, TransientFailure

ANSWER = Answer(label="spam")
DEAD = TransientFailure("unavailable", "HTTP 500")
REFUSED = TransientFailure("unavailable", "connection refused", reached=False)
BUSY = TransientFailure("rate_limited", "HTTP 429", 1.0)
POLICY = CircuitPolicy(failures=8, unreachable=2, open_s=1.0, longest_open_s=30.0, probes=1)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def wall_ms(self) -> float:
        return self.now * 1000


class Rig:
    """A breaker and the calls that it lets through."""

    def __init__(self, policy: CircuitPolicy = POLICY, seed: int = 1) -> None:
        self.clock = Clock()
        self.breaker = CircuitBreaker(policy, self.clock, random.Random(seed))

    def call(self, outcome: Answer | ModelFailure | None, key: bytes = b"q") -> None:
        self.breaker.ended(outcome, key, self.breaker.began())

    def state(self) -> Circuit:
        return self.breaker.state

    def open(self) -> None:
        for number in range(8):
            self.call(DEAD, bytes([number]))
        assert self.state() is Circuit.OPEN

    def half_open(self) -> None:
        self.clock.now = self.breaker.until
        assert self.state() is Circuit.HALF_OPEN


def test_a_run_of_failures_of_several_questions_opens_it() -> None:
    rig = Rig()
    for number in range(7):
        rig.call(DEAD, bytes([number % 3]))
        assert rig.breaker.room > 0
    rig.call(DEAD, b"\0")
    assert rig.state() is Circuit.OPEN
    assert rig.breaker.room == 0


def test_one_question_that_always_fails_proves_nothing() -> None:
    rig = Rig()
    for number in range(100):
        rig.call(DEAD, bytes([number % 2]))
    assert rig.state() is Circuit.CLOSED


@pytest.mark.parametrize("alive", [ANSWER, Rejection("refused", "no")])
def test_whatever_is_answered_ends_the_run(alive: Answer | ModelFailure) -> None:
    rig = Rig()
    for _ in range(20):
        for number in range(7):
            rig.call(DEAD, bytes([number]))
        rig.call(alive)
    assert rig.state() is Circuit.CLOSED


def test_one_that_says_not_now_is_not_dead() -> None:
    rig = Rig()
    for number in range(50):
        rig.call(BUSY, bytes([number]))
    assert rig.state() is Circuit.CLOSED


def test_two_connections_that_could_not_be_made_will_do_even_of_one_question() -> None:
    rig = Rig()
    rig.call(REFUSED)
    assert rig.state() is Circuit.CLOSED
    rig.call(REFUSED)
    assert rig.state() is Circuit.OPEN


@pytest.mark.parametrize("outcome", [ANSWER, Rejection("refused", "no"), BUSY])
def test_one_probe_at_a_time_and_an_answer_closes_it(outcome: Answer | ModelFailure) -> None:
    rig = Rig()
    rig.open()
    rig.half_open()
    probe = rig.breaker.began()
    assert rig.breaker.room == 0
    rig.breaker.ended(outcome, b"q", probe)
    assert rig.state() is Circuit.CLOSED
    assert (rig.breaker.openings, rig.breaker.probes) == (1, 1)


def test_a_cancelled_probe_makes_room_for_another() -> None:
    rig = Rig()
    rig.open()
    rig.half_open()
    rig.call(None)
    assert rig.state() is Circuit.HALF_OPEN
    assert rig.breaker.room == 1


def test_each_probe_that_fails_doubles_the_time_up_to_the_longest() -> None:
    rig = Rig()
    rig.open()
    longest_s = POLICY.open_s
    for _ in range(10):
        open_s = rig.breaker.until - rig.clock.now
        assert longest_s / 2 <= open_s <= longest_s
        rig.half_open()
        rig.call(DEAD)
        longest_s = min(POLICY.longest_open_s, 2 * longest_s)
    assert rig.breaker.openings == 1


def test_what_began_before_it_opened_or_closed_proves_nothing() -> None:
    rig = Rig()
    old = [rig.breaker.began() for _ in range(100)]
    rig.open()
    rig.breaker.ended(ANSWER, b"q", old.pop())
    assert rig.state() is Circuit.OPEN
    rig.half_open()
    rig.breaker.ended(DEAD, b"q", old.pop())
    assert rig.breaker.room == 1
    rig.call(ANSWER)
    for number, ticket in enumerate(old):
        rig.breaker.ended(DEAD, bytes([number]), ticket)
    assert rig.state() is Circuit.CLOSED


def test_one_that_breaks_down_again_at_once_is_left_alone_for_longer() -> None:
    rig = Rig()
    rig.open()
    for _ in range(4):
        rig.half_open()
        rig.call(ANSWER)
        rig.open()
    assert rig.breaker.until - rig.clock.now >= 8
    rig.half_open()
    rig.call(ANSWER)
    rig.clock.now += 100
    rig.open()
    assert rig.breaker.until - rig.clock.now <= POLICY.open_s


def test_it_stays_open_for_as_long_as_the_model_asks_within_bounds() -> None:
    rig = Rig()
    for number in range(8):
        rig.call(TransientFailure("unavailable", "HTTP 503", 7.0), bytes([number]))
    assert rig.breaker.until - rig.clock.now == 7
    rig.half_open()
    rig.call(TransientFailure("unavailable", "HTTP 503", 7000.0))
    assert rig.breaker.until - rig.clock.now == POLICY.longest_open_s


@given(st.integers(0, 2**32), st.lists(st.floats(0.001, 5.0), min_size=1, max_size=300))
def test_calls_to_a_dead_model_are_bounded(seed: int, steps: list[float]) -> None:
    """The formula of docs/MODELS.md, for a worker that tries a call at every chance it gets."""
    rig = Rig(seed=seed)
    rig.open()
    calls, began = 0, rig.clock.now
    for step in steps:
        rig.clock.now += step
        while rig.breaker.room:
            rig.call(DEAD, bytes([calls % 256]))
            calls += 1
    elapsed = rig.clock.now - began
    doubling = 1 + 5  # log2(longest_open_s / open_s), rounded up
    assert calls <= POLICY.probes * (doubling + 2 * elapsed / POLICY.longest_open_s)
