"""Verdicts of shadow checks: how they are counted, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askonce_queue.reply import Answer
from askonce_worker.cache.policy import Policy
from askonce_worker.shadow.guard import age_limit
from askonce_worker.shadow.verdicts import (
    AGES,
    LEAST_CHECKS,
    MOST_LABELS,
    Rate,
    Verdicts,
    cumulative,
    of_all_labels,
    place,
    tally,
)
from askonce_worker.verifier import agree

DAY_S = 86_400.0


def found(*bands: tuple[int, int], label: str = "") -> Verdicts:
    """Verdicts of one label: checks and how many differ, from the youngest band on."""
    rates = [Rate(*band) for band in bands]
    return {label: tuple(rates + [Rate()] * (len(AGES) - len(rates)))}


def limit(*bands: tuple[int, int], most: float = 0.02, ttl_s: float = 30 * DAY_S) -> float:
    policy = Policy(verify_share=0.1, max_disagreement=most, ttl_s=ttl_s)
    return age_limit(policy, found(*bands))


# --- counting ---


def names(places: Iterable[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    return [(task, f"verify_{rest}", amount) for task, rest, amount in places]


@pytest.mark.parametrize(
    ("age_s", "band"),
    [(0, 0), (60, 0), (60.1, 1), (3600, 2), (3601, 3), (DAY_S, 4), (7 * DAY_S, 5), (1e9, 6)],
)
def test_an_age_belongs_to_the_band_that_it_is_at_most(age_s: float, band: int) -> None:
    counted = tally(names([("t", f"differ:{place(age_s, 'a', ('a',))}", 3)]))
    assert [rate.differ for rate in counted["t"]["a"]] == [3 * (i == band) for i in range(7)]


@given(st.text(max_size=20), st.sampled_from([30.0, 1e5]), st.sampled_from(["agree", "differ"]))
def test_any_label_of_a_task_comes_back(label: str, age_s: float, verdict: str) -> None:
    counted_as = place(age_s, label, (label,))
    ((_, verdicts),) = tally(names([("t", f"{verdict}:{counted_as}", 1)])).items()
    assert list(verdicts) == [label]


def test_labels_that_a_task_does_not_name_are_one() -> None:
    many = tuple(map(str, range(MOST_LABELS + 1)))
    assert place(1, "free text", ()) == place(1, None, ("a",)) == "1m:"
    assert place(1, many[-2], many) == f"1m:{many[-2]}"
    assert place(1, many[-1], many) == "1m:"


def test_verdicts_add_up_and_other_counters_are_passed_over() -> None:
    counted = tally(
        [
            ("t", "verify_agree", 9),
            ("t", "verify_agree:1m:a", 4),
            ("t", "verify_differ:1m:a", 1),
            ("t", "verify_differ:24h:b", 2),
            ("t", "verify_differ:new band:b", 2),
            ("t", "memory", 2),
            ("u", "calls_verify", 2),
        ]
    )
    assert list(counted) == ["t"]
    assert cumulative(of_all_labels(counted["t"])) == (
        *[Rate(5, 1)] * 4,
        *[Rate(7, 3)] * 3,
    )


# --- comparing ---


def test_answers_agree_by_label_or_else_by_value() -> None:
    assert agree(Answer(label="a", score=0.9), Answer(label="a", score=0.1))
    assert not agree(Answer(label="a"), Answer(label="b"))
    assert not agree(Answer(label="a"), Answer(value="a"))
    assert agree(Answer(value={"x": 1, "y": 2.0}), Answer(value={"y": 2, "x": 1.0}))
    assert not agree(Answer(value=[1, 2]), Answer(value=[2, 1]))
    assert agree(Answer(value=2**70), Answer(value=2**70))  # no canonical text


# --- guarding ---


def test_no_limit_without_enough_evidence() -> None:
    few = LEAST_CHECKS - 1
    assert limit() == limit((few, few)) == math.inf
    assert limit((LEAST_CHECKS, LEAST_CHECKS)) == 0.0
    assert age_limit(Policy(), found((1000, 1000))) == math.inf


def test_a_rate_that_may_be_fine_by_chance_is_fine() -> None:
    assert limit((100, 4)) == math.inf  # 4 %, but down to 1.6 %
    assert limit((1000, 40)) == 0.0  # 4 %, and not below 2.9 %


def test_answers_may_be_as_old_as_the_last_band_that_is_fine() -> None:
    fine = (1000, 1)
    assert limit(fine, fine, fine, fine, (1000, 100)) == 21_600.0
    assert limit(fine, (0, 0), (1000, 500), fine) == 300.0
    assert limit(fine, fine, fine, fine, fine, fine, (1000, 500)) == 7 * DAY_S


def test_younger_hits_do_not_outvote_an_old_band() -> None:
    assert limit((1_000_000, 100), (0, 0), (50, 25)) == 300.0


def test_thin_bands_count_together() -> None:
    thin = (LEAST_CHECKS - 1, 10)
    assert limit((LEAST_CHECKS - 1, 0), thin, thin) == 60.0


def test_a_limit_beyond_all_that_is_kept_is_none() -> None:
    old = ((0, 0),) * 4
    assert limit(*old, (1000, 500), ttl_s=6 * 3600) == math.inf
    assert limit(*old, (1000, 500), ttl_s=7 * 3600) == 6 * 3600
