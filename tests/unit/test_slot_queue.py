"""Who gets a free slot: in turn within a lane, by weight between them, nobody starves."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askonce_queue.queue_scripts import LaneName
from askonce_worker.config import LaneWeights
from askonce_worker.flights import Flight
from askonce_worker.slot_queue import MOST_DEAD, SlotQueue
from tests.support.resolving import StepModel, Waiter, make_task

TASK = make_task(StepModel())


def flight(lane: LaneName, number: int = 0) -> Flight:
    return Flight(Waiter(TASK, f"{lane} {number}", lane=lane), 0, 0.0)


def flights(lane: LaneName, count: int) -> list[Flight]:
    return [flight(lane, number) for number in range(count)]


def filled(weights: LaneWeights, interactive: int, bulk: int) -> SlotQueue:
    queue = SlotQueue(weights)
    for one in (*flights("bulk", bulk), *flights("interactive", interactive)):
        queue.put(one)
    return queue


def served(queue: SlotQueue, count: int) -> list[str]:
    popped = [queue.pop() for _ in range(count)]
    return [one.lane for one in popped if one is not None]


weights = st.builds(LaneWeights, st.integers(1, 20), st.integers(1, 20))


def test_of_many_that_wait_none_is_forgotten() -> None:
    """Not those either that come as the dead are looked for."""
    queue = filled(LaneWeights(), 3 * MOST_DEAD, 3 * MOST_DEAD)
    assert len(queue) == 6 * MOST_DEAD
    assert len(served(queue, 7 * MOST_DEAD)) == 6 * MOST_DEAD


@given(weights, st.integers(1, 200))
def test_while_both_wait_each_has_its_share(weights: LaneWeights, slots: int) -> None:
    """Never off by more than one flight of each lane, however many slots were given."""
    counts = Counter(served(filled(weights, 200, 200), slots))
    for lane in ("interactive", "bulk"):
        assert abs(counts[lane] - slots * weights.share(lane)) <= 2


@given(weights, st.lists(st.sampled_from(["i", "b", "pop"]), max_size=200))
def test_nobody_starves_and_nobody_is_forgotten(weights: LaneWeights, steps: list[str]) -> None:
    """Bulk in front waits for at most its share's inverse of others, interactive likewise."""
    queue = SlotQueue(weights)
    waiting = {"interactive": list[Flight](), "bulk": list[Flight]()}
    passed = Counter[str]()
    for number, step in enumerate(steps):
        if step != "pop":
            lane: LaneName = "interactive" if step == "i" else "bulk"
            one = flight(lane, number)
            waiting[lane].append(one)
            queue.put(one)
            continue
        found = queue.pop()
        assert (found is None) == (not any(waiting.values()))
        if found is None:
            continue
        assert waiting[found.lane].pop(0) is found  # in turn
        other = "bulk" if found.lane == "interactive" else "interactive"
        passed[found.lane] = 0
        passed[other] = passed[other] + 1 if waiting[other] else 0
        assert passed[other] <= 1 / weights.share(other) + 1
    assert bool(queue) == any(waiting.values())


def test_an_interactive_flight_that_comes_alone_waits_for_no_bulk() -> None:
    queue = filled(LaneWeights(interactive=1, bulk=1000), 0, 100)
    assert served(queue, 10) == ["bulk"] * 10
    for _ in range(5):
        queue.put(flight("interactive"))
        # One that comes before its lane's last share is used up has one ahead of it at most.
        assert "interactive" in served(queue, 1001)
        queue = filled(LaneWeights(), 0, 100)
        served(queue, 10)
        queue.put(flight("interactive"))
        assert served(queue, 1) == ["interactive"]


@pytest.mark.parametrize("pause", [1, 10])
def test_with_the_usual_weights_an_interactive_flight_has_one_bulk_ahead_at_most(
    pause: int,
) -> None:
    """However often one comes: bulk that is owed a slot is owed one, not several."""
    queue = filled(LaneWeights(), 0, 2000)
    for _ in range(100):
        served(queue, pause)
        queue.put(flight("interactive"))
        assert "interactive" in served(queue, 2)


@pytest.mark.parametrize("idle", ["interactive", "bulk"])
def test_who_was_idle_has_saved_up_nothing(idle: LaneName) -> None:
    """Nor does who was served alone pay for it."""
    queue = SlotQueue(LaneWeights())
    for one in flights("bulk" if idle == "interactive" else "interactive", 300):
        queue.put(one)
    served(queue, 200)
    for one in flights(idle, 100):
        queue.put(one)
    assert 15 <= Counter(served(queue, 100))["bulk"] <= 25


def test_a_flight_that_becomes_interactive_waits_with_those() -> None:
    queue = filled(LaneWeights(), 3, 50)
    late = flight("bulk", 99)
    queue.put(late)
    late.join(Waiter(TASK, "bulk 99", lane="interactive"))
    queue.put(late)
    assert late.lane == "interactive"
    popped = [queue.pop() for _ in range(10)]
    assert popped.index(late) <= 5
    everything = [one for one in [*popped, *iter(queue.pop, None)] if one is not None]
    assert len(everything) == 54
    assert everything.count(late) == 1


def test_the_dead_are_forgotten() -> None:
    queue = SlotQueue(LaneWeights())
    queue.put(flight("bulk"))
    for one in flights("bulk", 20 * MOST_DEAD):
        queue.put(one)
        one.landed = True
    assert len(queue._flights["bulk"]) <= 2 * MOST_DEAD
    assert served(queue, 2) == ["bulk"]
    assert not queue
