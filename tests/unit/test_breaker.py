"""The circuit breaker of one shard: who may ask it when."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from redis.exceptions import ConnectionError as StoreDown

from askonce_queue.breaker import FIRST_PAUSE_S, LONGEST_PAUSE_S, Breaker

DOWN = StoreDown("down")


def opened(times: int, now: float = 0.0) -> Breaker:
    """A breaker that has just failed so often, one probe after the other."""
    breaker = Breaker(random.Random(1))
    for _ in range(times):
        assert breaker.admit(now)
        breaker.failed(now, DOWN)
        now += LONGEST_PAUSE_S
    return breaker


def test_everybody_may_ask_while_the_shard_answers() -> None:
    breaker = Breaker(random.Random())
    for now in range(5):
        assert breaker.admit(now)
        assert breaker.closed
    breaker.succeeded()
    assert breaker.closed


def test_the_first_probe_goes_at_once_and_alone() -> None:
    breaker = opened(1)
    assert not breaker.closed
    assert breaker.last_error is DOWN
    assert breaker.admit(0.0)
    assert not breaker.admit(0.0)
    assert not breaker.admit(1e9)


def test_a_probe_that_succeeds_lets_everybody_in_again() -> None:
    breaker = opened(3)
    assert breaker.admit(1e9)
    breaker.succeeded()
    assert breaker.closed
    assert [breaker.admit(1e9) for _ in range(3)] == [True] * 3
    # And forgets how long the outage was.
    breaker.failed(1e9, DOWN)
    assert breaker.admit(1e9)


def test_the_pauses_grow_up_to_a_bound() -> None:
    breaker, now, last_s = opened(1), 0.0, 0.0
    for attempt in range(12):
        most_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt)
        assert breaker.admit(now)
        breaker.failed(now, DOWN)
        assert not breaker.admit(now + 0.499 * most_s)
        assert breaker.admit(now + most_s)
        breaker.abandoned()
        now += most_s
        last_s = most_s
    assert last_s == LONGEST_PAUSE_S


def test_those_who_were_under_way_when_it_failed_add_no_pause() -> None:
    breaker = Breaker(random.Random(1))
    assert all(breaker.admit(0.0) for _ in range(10))
    for _ in range(10):
        breaker.failed(0.0, DOWN)
    assert breaker.admit(0.0)
    breaker.failed(0.0, DOWN)
    assert breaker.admit(FIRST_PAUSE_S)


def test_a_cancelled_probe_leaves_its_place_to_another() -> None:
    breaker = opened(2, now=0.0)
    assert breaker.admit(100.0)
    assert not breaker.admit(100.0)
    breaker.abandoned()
    assert breaker.admit(100.0)


class Callers(RuleBasedStateMachine):
    """Callers that come, succeed, fail and are cancelled in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(random.Random(0))
        self.now = 0.0
        self.asking = 0

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def ask(self) -> None:
        self.asking += self.breaker.admit(self.now)

    @rule(how=st.sampled_from(["succeeded", "failed", "abandoned"]))
    def end(self, how: str) -> None:
        if not self.asking:
            return
        self.asking -= 1
        match how:
            case "succeeded":
                self.breaker.succeeded()
                assert self.breaker.admit(self.now), "it is open to a shard that answers"
            case "failed":
                self.breaker.failed(self.now, DOWN)
                assert not self.breaker.closed
            case _:
                self.breaker.abandoned()

    @invariant()
    def somebody_gets_through(self) -> None:
        """Nobody waits for ever: once all callers are back and the pause is over, one may ask."""
        if self.asking == 0:
            assert self.breaker.admit(self.now + LONGEST_PAUSE_S)
            self.breaker.abandoned()


TestCallers = Callers.TestCase
TestCallers.settings = settings(deadline=None, max_examples=60)
