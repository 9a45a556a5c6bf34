"""The adaptive limit and the hold: fewer calls to a busy model, none before it says so."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from askonce_queue.reply import Answer
from askonce_worker.models.adaptive import AdaptiveLimit
from askonce_worker.models.hold import Hold
from askonce_worker.models.protocol import ModelFailure, TransientFailure
from tests.unit.test_circuit import ANSWER, BUSY, DEAD, Clock

LATE = TransientFailure("timeout", "no answer within 30 s")


def round_trip(limit: AdaptiveLimit, outcome: Answer | ModelFailure | None = ANSWER) -> int:
    """As many calls at once as it allows, all of which end so; how many that were."""
    count = limit.limit
    for _ in range(count):
        limit.began()
    for _ in range(count):
        limit.ended(outcome)
    return count


def test_it_begins_with_the_configured_maximum_and_never_exceeds_it() -> None:
    limit = AdaptiveLimit(64)
    assert [round_trip(limit) for _ in range(3)] == [64, 64, 64]
    assert limit.room(60) == 4


def test_a_round_trip_of_429s_or_timeouts_halves_it_once() -> None:
    for outcome in (BUSY, LATE):
        limit = AdaptiveLimit(64)
        round_trip(limit, outcome)
        assert limit.limit == 32
        round_trip(limit, outcome)
        assert limit.limit == 16


def test_other_failures_leave_it_alone() -> None:
    limit = AdaptiveLimit(64)
    round_trip(limit, DEAD)
    round_trip(limit, None)
    assert limit.limit == 64


def test_it_grows_by_about_one_a_round_trip() -> None:
    limit = AdaptiveLimit(64)
    round_trip(limit, BUSY)
    for number in range(10):
        before = limit.limit
        round_trip(limit)
        assert before <= limit.limit <= before + 1, number
    assert limit.limit > 36


def test_congestion_of_a_few_brings_it_down_to_those_and_it_soon_recovers() -> None:
    limit = AdaptiveLimit(64)
    for _ in range(4):
        limit.began()
    limit.ended(BUSY)
    assert limit.limit == 4
    for _ in range(3):
        limit.ended(ANSWER)
    for _ in range(5):
        round_trip(limit)
    assert limit.limit >= 32


def test_after_an_outage_it_begins_with_one_and_doubles() -> None:
    limit = AdaptiveLimit(64)
    limit.restart()
    seen = [round_trip(limit) for _ in range(7)]
    assert seen[:6] == [1, 2, 4, 8, 16, 32]
    assert seen[6] == 32  # the half of what was too much: from here by one


def test_it_does_not_grow_while_it_is_not_used() -> None:
    limit = AdaptiveLimit(64)
    round_trip(limit, BUSY)
    for _ in range(1000):
        limit.began()
        limit.ended(ANSWER)
    assert limit.limit <= 32 + 1  # what had begun while it was used still counts


@given(st.integers(1, 300), st.lists(st.sampled_from(["began", ANSWER, BUSY, LATE, DEAD, None])))
def test_it_stays_within_one_and_the_maximum(most: int, events: list[object]) -> None:
    limit, in_flight = AdaptiveLimit(most), 0
    for event in events:
        if event == "began":
            limit.began()
            in_flight += 1
        elif in_flight:
            assert event is None or isinstance(event, Answer | ModelFailure)
            limit.ended(event)
            in_flight -= 1
        assert 1 <= limit.limit <= most


def test_a_hold_lasts_as_long_as_the_longest_that_was_asked_for_up_to_a_cap() -> None:
    clock = Clock()
    hold = Hold(clock, 60.0)
    hold.ended(DEAD)
    hold.ended(ANSWER)
    assert not hold.holds
    hold.ended(TransientFailure("rate_limited", "", 5.0))
    hold.ended(BUSY)
    assert hold.until == clock.now + 5
    clock.now += 4.9
    assert hold.holds
    clock.now += 0.2
    assert not hold.holds
    hold.ended(TransientFailure("rate_limited", "", 5000.0))
    assert hold.until == clock.now + 60
