"""The schedule: reproducible, complete, and never two faults at once on one target."""

from __future__ import annotations

import itertools
from collections import defaultdict

import pytest

from askonce_loadtest.chaos.plan import Plan
from askonce_loadtest.chaos.schedule import LAST_S, LINKS, RECIPES, Fault, make_schedule

ALL = tuple(RECIPES)


def plan(seed: int = 1, minutes: float = 0.6, kinds: tuple[str, ...] = ALL) -> Plan:
    return Plan(seed=seed, minutes=minutes, kinds=kinds)


def test_the_seed_decides_everything() -> None:
    assert make_schedule(plan(7)) == make_schedule(plan(7))
    assert make_schedule(plan(7)) != make_schedule(plan(8))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("minutes", [0.5, 1.0, 3.0])
def test_every_kind_strikes_in_every_round(seed: int, minutes: float) -> None:
    rounds = max(1, round(minutes))
    counts: defaultdict[str, int] = defaultdict(int)
    for fault in make_schedule(plan(seed, minutes)):
        counts[fault.kind] += 1
    for kind, recipe in RECIPES.items():
        targets = len(LINKS) if recipe.target == "link" else 1
        assert counts[kind] == rounds * targets * recipe.per_round, kind


@pytest.mark.parametrize("seed", range(5))
def test_a_target_suffers_one_fault_at_a_time(seed: int) -> None:
    by_target: defaultdict[str, list[Fault]] = defaultdict(list)
    for fault in make_schedule(plan(seed, 2.0)):
        if fault.target != "data":
            by_target[fault.target].append(fault)
    for faults in by_target.values():
        for before, after in itertools.pairwise(faults):
            assert before.at_s + before.for_s < after.at_s, (before, after)


@pytest.mark.parametrize("seed", range(5))
def test_faults_begin_in_order_and_end_before_the_load_does(seed: int) -> None:
    faults = make_schedule(plan(seed))
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)
    assert all(fault.at_s + fault.for_s <= 36.0 - LAST_S + 0.01 for fault in faults)


def test_only_what_was_asked_for_strikes() -> None:
    faults = make_schedule(plan(kinds=("drop", "poison")))
    assert {fault.kind for fault in faults} == {"drop", "poison"}
    assert {fault.target for fault in faults if fault.kind == "drop"} == set(LINKS)
    assert make_schedule(plan(kinds=())) == []


def test_poison_comes_first_because_it_takes_its_time() -> None:
    assert make_schedule(plan(kinds=("kill-worker", "poison", "invalidate")))[0].kind == "poison"
