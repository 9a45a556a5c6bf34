"""A policy with a limit on age: what is accepted, kept and asked under it."""

from __future__ import annotations

import random

import pytest

from askonce_queue.job import CacheControl
from askonce_queue.reply import Answer
from askonce_worker.cache.policy import Control, Policy, demand_of
from askonce_worker.tasks import Task
from tests.support.resolving import StepModel, make_task

LIMITED = Policy(ttl_s=3600, ttl_by_label_s={"a": 7200}, max_age_s=60)


def test_nobody_accepts_what_is_older_whatever_they_ask() -> None:
    assert LIMITED.plain.max_age_s == 60
    assert LIMITED.control(CacheControl()).max_age_s == 60
    assert LIMITED.control(CacheControl(max_age_s=600, max_stale_s=900)).max_age_s == 60
    assert LIMITED.control(CacheControl(max_age_s=6)).max_age_s == 6
    demand = demand_of([LIMITED.plain])
    assert demand is not None
    assert demand.max_age_ms == 60_000


def test_nothing_is_kept_for_longer() -> None:
    for label in ("a", "b"):
        lifetime = LIMITED.lifetime(Answer(label=label), 600, random.Random(1))
        assert (lifetime.fresh_ms, lifetime.memory_s) == (60_000, 60)


def test_at_zero_nothing_is_shared_even_if_the_caller_says_so() -> None:
    off = Policy(max_age_s=0)
    why = off.why_not_cacheable(CacheControl(cacheable=True), None)
    assert why is not None
    assert why.startswith("max_disagreement: ")
    assert LIMITED.why_not_cacheable(None, None) is None


def state(task: Task) -> tuple[bool, Control, bool]:
    return task.cacheable, task.plain_control, task.plain_demand is not None


def test_a_task_follows_a_new_policy() -> None:
    task = make_task(StepModel())
    assert state(task) == (True, Policy().plain, False)
    task.follow(LIMITED)
    assert state(task) == (True, LIMITED.plain, True)
    task.follow(Policy(max_age_s=0))
    assert state(task)[0] is False
    task.follow(Policy())
    assert state(task) == (True, Policy().plain, False)


@pytest.mark.parametrize(("share", "watched"), [(0.0, False), (0.01, True)])
def test_hits_are_told_only_of_tasks_that_check_them(share: float, watched: bool) -> None:
    assert make_task(StepModel(), verify_share=share).watched is watched
