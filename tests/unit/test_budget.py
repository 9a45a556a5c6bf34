"""What a task may spend in a day, as one worker knows it: decisions without a store."""

from __future__ import annotations

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from askonce_worker.clock import SystemClock
from askonce_worker.observe.budget import DAY_MS, Budget
from askonce_worker.observe.money import NANO

NOON_MS = 20_000 * DAY_MS + DAY_MS / 2


class SetClock(SystemClock):
    """A clock that stands still until it is moved."""

    def __init__(self, now_ms: float = NOON_MS) -> None:
        self.now_ms = now_ms

    def monotonic(self) -> float:
        return self.now_ms / 1000 - 1e6

    def wall_ms(self) -> float:
        return self.now_ms

    def advance(self, seconds: float) -> None:
        self.now_ms += seconds * 1000


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def budget(clock: SetClock) -> Budget:
    return Budget("tone", 5.0, currency="EUR", clock=clock)


def test_it_ends_with_what_is_spent_here_and_elsewhere(budget: Budget) -> None:
    budget.spend(2 * NANO)
    assert not budget.exceeded
    assert budget.take() == {20_000: 2 * NANO}
    budget.told(NOON_MS, 3 * NANO)
    budget.spend(2 * NANO - 1)
    assert not budget.exceeded
    budget.spend(1)
    assert budget.exceeded


def test_a_refusal_says_whose_how_much_and_until_when(budget: Budget) -> None:
    budget.spend(int(5.25 * NANO))
    for part in ("'tone'", "5.25", "of 5 EUR", "2024-10-05 00:00 UTC", "still served"):
        assert part in budget.refusal


def test_the_next_day_begins_by_the_clock_of_the_store(clock: SetClock, budget: Budget) -> None:
    """It says that it is half a day later than this machine believes."""
    budget.told(NOON_MS + DAY_MS / 2 - 10_000, 5 * NANO)
    clock.advance(9.9)
    assert budget.exceeded
    clock.advance(0.2)
    assert not budget.exceeded
    assert budget.spent_nano == 0


def test_several_days_without_a_store(clock: SetClock, budget: Budget) -> None:
    budget.spend(5 * NANO)
    clock.advance(3.25 * 86_400)
    assert budget.spent_nano == 0
    budget.spend(NANO)
    assert budget.take() == {20_000: 5 * NANO, 20_003: NANO}
    assert "2024-10-08 00:00 UTC" in budget.refusal


def test_one_warning_a_day(clock: SetClock, budget: Budget) -> None:
    with structlog.testing.capture_logs() as logs:
        budget.spend(4 * NANO - 1)
        assert not logs
        budget.spend(1)
        budget.spend(NANO)
        budget.told(clock.now_ms, 5 * NANO)
        (line,) = logs
        assert (line["log_level"], line["task"], line["spent"]) == ("warning", "tone", 4.0)
        clock.advance(86_400)
        budget.told(clock.now_ms, 4 * NANO)
        assert len(logs) == 2


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("spend"), st.integers(0, 10)),
            st.tuples(st.just("others spend"), st.integers(0, 10)),
            st.tuples(st.just("flush"), st.booleans()),
        )
    )
)
def test_nothing_is_forgotten_and_nothing_counted_twice(steps: list[tuple[str, int]]) -> None:
    """What it knows is all that was spent here, and what others had at the last flush."""
    budget = Budget("tone", 1e9, clock=SetClock())
    stored = mine = others_known = 0
    for step, value in steps:
        match step:
            case "spend":
                budget.spend(value)
                mine += value
            case "others spend":
                stored += value
                others_known += value
            case _:
                sent = sum(budget.take().values())
                if value:
                    stored += sent
                    budget.told(NOON_MS, stored)
                else:
                    budget.take_back()
        unsent = mine - (stored - others_known)
        assert mine <= budget.spent_nano <= stored + unsent
