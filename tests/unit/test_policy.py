"""Decisions about what is kept and accepted, without a store."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askonce_queue.answer_scripts import Demand
from askonce_queue.errors import InvalidJob
from askonce_queue.job import CacheControl, Job, check_control, encode_payload
from askonce_queue.reply import Answer
from askonce_worker.cache.entry import Entry, encode_json
from askonce_worker.cache.policy import Control, Policy, demand_of

SECONDS = st.floats(0, 1e6, allow_nan=False)
NOW = 1e7


def entry_of(*, age_s: float, left_s: float) -> Entry:
    answer = Answer(label="a")
    return Entry(
        answer,
        encode_json(answer),
        born=NOW - age_s,
        built=0.0,
        kept=NOW + left_s,
        tags=(),
        shard=0,
        fresh_until=NOW + left_s,
    )


# --- cacheability ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "asked", "params", "cacheable"),
    [
        ({}, None, None, True),
        ({"cacheable": False}, None, None, False),
        ({"cacheable": False}, {"cacheable": True}, None, True),
        ({}, {"cacheable": False}, None, False),
        ({}, {"ttl_s": 5.0}, None, True),
        ({}, None, {"temperature": 0}, True),
        ({}, None, {"temperature": 0.0}, True),
        ({}, None, {"temperature": None}, True),
        ({}, None, {"temperature": 0.7}, False),
        ({}, {"cacheable": True}, {"temperature": 0.7}, False),
        ({"deterministic": True}, None, {"temperature": 0.7}, True),
        ({"deterministic": True, "cacheable": False}, None, {"temperature": 0.7}, False),
        ({}, None, {"top_k": 5}, True),
    ],
)
def test_the_caller_decides_and_sampling_is_not_kept(
    policy: dict[str, Any],
    asked: dict[str, Any] | None,
    params: dict[str, Any] | None,
    cacheable: bool,
) -> None:
    control = CacheControl(**asked) if asked is not None else None
    why = Policy(**policy).why_not_cacheable(control, params)
    assert (why is None) == cacheable


# --- admission and lifetimes -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "answer", "admitted"),
    [
        ({}, Answer(label="a", score=0.0), True),
        ({"min_confidence": 0.5}, Answer(label="a", score=0.49), False),
        ({"min_confidence": 0.5}, Answer(label="a", score=0.5), True),
        ({"min_confidence": 0.5}, Answer(label="a"), True),
        ({"never_cache_labels": frozenset({"human"})}, Answer(label="human", score=1.0), False),
        ({"never_cache_labels": frozenset({"human"})}, Answer(label="spam"), True),
        ({"never_cache_labels": frozenset({"human"})}, Answer(value=["human"]), True),
    ],
)
def test_admission(policy: dict[str, Any], answer: Answer, admitted: bool) -> None:
    assert Policy(**policy).admits(answer) is admitted


@given(st.floats(0.001, 1e6), st.floats(0, 0.5), st.floats(0.001, 1e6), SECONDS, st.integers())
def test_a_life_is_never_longer_than_any_bound(
    ttl_s: float, jitter: float, most_s: float, stale_s: float, seed: int
) -> None:
    policy = Policy(ttl_s=ttl_s, jitter=jitter, stale_if_error_s=stale_s, memory_ttl_s=300.0)
    fresh_ms, keep_ms, memory_s = policy.lifetime(Answer(label="a"), most_s, random.Random(seed))
    bound_ms = min(ttl_s, most_s) * 1000
    assert bound_ms * (1 - jitter) - 2 <= fresh_ms <= max(1, bound_ms)
    assert memory_s <= min(300.0, fresh_ms / 1000 + 0.002)
    assert abs(keep_ms - fresh_ms - stale_s * 1000) <= 2


def test_ttls_have_bounds() -> None:
    faults: list[dict[str, Any]] = [
        {"ttl_s": 0},
        {"memory_ttl_s": 1e12},
        {"ttl_by_label_s": {"a": -1}},
    ]
    for fault in faults:
        with pytest.raises(ValueError, match=r"must be from 0\.001 to"):
            Policy(**fault)


# --- what an asker accepts -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("directives", "age_s", "left_s", "accepted"),
    [
        ({}, 1e6, 1, True),
        ({}, 0, 0, False),
        ({"no_cache": True}, 0, 1e6, False),
        ({"max_age_s": 10.0}, 10, 100, True),
        ({"max_age_s": 10.0}, 11, 100, False),
        ({"max_age_s": 0.0}, 1, 100, False),
        ({"ttl_s": 10.0}, 11, 100, False),
        ({"ttl_s": 10.0, "max_age_s": 5.0}, 6, 100, False),
        ({"min_fresh_s": 10.0}, 0, 11, True),
        ({"min_fresh_s": 10.0}, 0, 9, False),
        ({"max_stale_s": 10.0}, 100, -9, True),
        ({"max_stale_s": 10.0}, 100, -11, False),
        ({"no_store": True}, 0, 1, True),
    ],
)
def test_what_will_do(
    directives: dict[str, Any], age_s: float, left_s: float, accepted: bool
) -> None:
    control = Policy().control(CacheControl(**directives))
    assert control.accepts(entry_of(age_s=age_s, left_s=left_s), NOW) is accepted


controls = st.builds(
    Control,
    max_age_s=st.one_of(st.just(math.inf), SECONDS),
    least_left_s=st.floats(-1e6, 1e6),
    stale_if_error_s=SECONDS,
)


@given(st.lists(controls, min_size=1, max_size=4), SECONDS, st.floats(-1e6, 1e6))
def test_a_demand_is_that_of_all(some: list[Control], age_s: float, left_s: float) -> None:
    """What the store may serve for a flight is good enough for everyone who waits for it."""
    demand = demand_of(some) or Demand()
    served = age_s * 1000 <= demand.max_age_ms and left_s * 1000 > demand.least_left_ms
    entry = entry_of(age_s=age_s, left_s=left_s)
    tolerance = entry_of(age_s=age_s - 1e-3, left_s=left_s + 1e-3)
    if served:
        assert all(one.accepts(tolerance, NOW) for one in some)
    elif not all(one.accepts(entry, NOW) for one in some):
        return
    else:
        worse = entry_of(age_s=age_s + 1e-3, left_s=left_s - 1e-3)
        assert not all(one.accepts(worse, NOW) for one in some)


def test_nothing_special_is_no_demand() -> None:
    assert demand_of([Control(), Policy().plain]) is None


# --- bad directives --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("directives", "message"),
    [
        ({"max_age_s": -1.0}, "cache.max_age_s is from 0"),
        ({"ttl_s": math.nan}, "cache.ttl_s is from 0"),
        ({"stale_if_error_s": math.inf}, "cache.stale_if_error_s is from 0"),
        ({"min_fresh_s": 1.0, "max_stale_s": 1.0}, "max_stale_s cannot be met"),
        ({"only_if_cached": True, "no_cache": True}, "only_if_cached cannot be met"),
        ({"namespace": "a\nb"}, "cache.namespace"),
        ({"namespace": "n" * 201}, "cache.namespace"),
    ],
)
def test_directives_that_mean_nothing(directives: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidJob, match=message):
        check_control(CacheControl(**directives))
    with pytest.raises(InvalidJob, match=message):
        encode_payload(Job(task="t", text="x", cache=CacheControl(**directives)))
