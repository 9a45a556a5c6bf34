"""Flights and their map: who joins whom, and which flight later asks find."""

from __future__ import annotations

import pytest

from askonce_worker.cache.store_tier import Leased
from askonce_worker.flights import Flight, FlightEnd, Flights
from tests.support.resolving import StepModel, Waiter, make_task

LEASE = Leased(b"t" * 16, 1234.0, 2, 99.5, takeover=True)


@pytest.fixture
async def flight() -> Flight:
    return Flight(Waiter(make_task(StepModel()), "x", tags=["red"]), 3, 10.0)


async def test_a_flight_begins_with_its_first_ask() -> None:
    task = make_task(StepModel(), "intent")
    ask = Waiter(task, "x", tags=["red", "blue"])
    flight = Flight(ask, 3, 10.0)
    assert (flight.key, flight.task, flight.shard) == (ask.key, task, 3)
    assert flight.question.text == "x"
    assert flight.asks == [ask]
    assert flight.tags == {"task:intent", "red", "blue"}
    assert flight.began == 10.0
    assert flight.token is None
    assert flight.attempt == 1
    for state in (flight.flying, flight.landed, flight.leased_once, flight.takeover):
        assert state is False


async def test_a_lease_lets_it_fly(flight: Flight) -> None:
    flight.hold(LEASE)
    assert (flight.token, flight.built, flight.attempt) == (b"t" * 16, 1234.0, 2)
    assert flight.lease_until == 99.5
    assert flight.takeover
    assert flight.leased_once
    assert flight.flying


async def test_joining_unites_tags_of_all_and_of_their_tasks(flight: Flight) -> None:
    """Two tasks that ask the same share a flight: either one's invalidation takes the answer."""
    other = Waiter(make_task(StepModel(), "other"), "x", tags=["red", "green"])
    question = flight.question
    flight.join(other)
    assert flight.asks[1] is other
    assert flight.tags == {"task:t", "task:other", "red", "green"}
    assert flight.question is question


async def test_the_map_knows_the_newest_flight_of_a_key() -> None:
    task = make_task(StepModel())
    flights = Flights()
    old, new = (Flight(Waiter(task, "x"), 0, 0.0) for _ in range(2))
    other = Flight(Waiter(task, "y"), 0, 0.0)
    assert flights.get(old.key) is None
    flights.register(old)
    flights.register(other)
    assert flights.get(old.key) is old
    flights.register(new)
    assert flights.get(old.key) is new
    assert len(flights) == 2
    flights.remove(old)  # it lands later than the one that replaced it
    assert flights.get(old.key) is new
    flights.remove(new)
    flights.remove(new)
    assert list(flights) == [other]


async def test_the_map_may_change_while_it_is_walked() -> None:
    task = make_task(StepModel())
    flights = Flights()
    for number in range(5):
        flights.register(Flight(Waiter(task, str(number)), 0, 0.0))
    for flight in flights:
        flights.remove(flight)
    assert len(flights) == 0


def test_every_end_has_a_name_of_its_own() -> None:
    assert len({end.value for end in FlightEnd}) == len(FlightEnd)
    assert {end.value for end in FlightEnd} >= {
        "hit",
        "filled",
        "fenced",
        "invalidated",
        "unkept",
        "rejected",
        "exhausted",
    }
