"""Figures from counts: verdicts, costs, names of counters, packed hits. No server."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from askonce_queue.buckets import MOST_FIELDS, SIZES, Bucket, read_bucket, rounded_ms
from askonce_worker.observe.counters import Counters, Counts
from askonce_worker.observe.fields import field_of, of_tenant, read_field, tenant_in
from askonce_worker.observe.figures import (
    HIT_SOURCES,
    NeverRead,
    TaskTotals,
    Tokens,
    by_task,
    by_tenant,
    never_read_of,
    totals_of,
)
from askonce_worker.observe.money import NANO, Cost, Price, cost_of, store_share
from askonce_worker.observe.tally import (
    IDLE_S,
    MOST_TENANTS,
    MOST_TOKENS,
    ONE_HIT,
    KnownTenants,
    unpacked,
    worth_of,
)
from askonce_worker.observe.totals import FleetState, WindowState
from askonce_worker.observe.verdict import ADVICE, LEAST_ANSWERS, verdict_of
from askonce_worker.observe.windows import WINDOWS, Cohort

# Verdicts


@pytest.mark.parametrize(
    ("hits", "answered", "expected"),
    [
        (0, 99, None),
        (0, 100, "running Redis for sport"),
        (99, 1000, "running Redis for sport"),
        (100, 1000, "paying, barely"),
        (299, 1000, "paying, barely"),
        (300, 1000, "paying"),
        (1000, 1000, "paying"),
    ],
)
def test_the_verdict(hits: int, answered: int, expected: str | None) -> None:
    assert verdict_of(hits, answered) == expected


def test_advice_is_for_those_who_need_it() -> None:
    assert ADVICE["paying"] == ()
    assert any("prefix caching" in line for line in ADVICE["paying, barely"])
    for word in ("prefix caching", "smaller model", "date", "user's name"):
        assert any(word in line for line in ADVICE["running Redis for sport"])


# Rates


def test_rates() -> None:
    counts = Counts({("t", "memory"): 6, ("t", "coalesced"): 2, ("u", "model"): 2})
    counts += Counts({("t", "waits"): 5, ("*", "jobs_settled"): 10, ("\0acme", "hits"): 8})
    totals = totals_of(counts)
    assert (totals.answered, totals.hit_rate, totals.stampede_rate) == (10, 0.8, 2.5)
    assert list(by_task(counts)) == ["t", "u"]
    assert list(by_tenant(counts)) == ["acme"]


def test_nothing_has_no_rates() -> None:
    totals = totals_of(Counts())
    assert (totals.hit_rate, totals.stampede_rate, totals.verdict) == (None, None, None)
    assert (totals.cost.per_call, totals.cost.effective_per_1000) == (None, None)
    assert totals.cost.spent == totals.cost.avoided == 0


def test_what_nobody_read() -> None:
    found = never_read_of([Cohort(10, 4), None, Cohort(0, 0)], [Cohort(5, 2)])
    assert (found.fills, found.never_read, found.rate, found.not_read_yet) == (10, 6, 0.6, 3)
    # Counts that were flushed twice are no reason for a negative rate.
    assert never_read_of([Cohort(3, 5)], []).rate == 0
    assert never_read_of([None], []).fills is None


# Money


def test_the_formula_of_the_effective_cost() -> None:
    """C × (1 − h) + store cost, for 1,000 answers: 90 % hits of calls that cost 0.002."""
    share = store_share(0.05, 7200, 10_000)
    cost = cost_of(
        spent_nano=2 * NANO,
        avoided_nano=18 * NANO,
        misses=1_000,
        answered=10_000,
        store_per_answer=share,
    )
    assert cost.per_call == 0.002
    assert cost.calls_per_1000 == pytest.approx(1000 * 0.002 * (1 - 0.9))
    assert cost.store_per_1000 == pytest.approx(1000 * 0.05 * 2 / 10_000)
    assert cost.effective_per_1000 == pytest.approx(0.2 + 0.01)
    assert cost.uncached_per_1000 == pytest.approx(2.0)
    assert store_share(0.05, 7200, 0) is None


# Names in the store


names = st.text(min_size=1, max_size=20).filter(lambda text: not text.startswith("\0"))


@given(task=names, tenant=st.text(max_size=20), name=names)
def test_names_of_counters_survive_whatever_tasks_and_tenants_are_called(
    task: str, tenant: str, name: str
) -> None:
    for key in (task, of_tenant(tenant)):
        try:
            field = field_of(key, name).encode()
        except UnicodeEncodeError:  # a lone surrogate: no job can have one
            return
        assert read_field(field) == (key, name)
    assert field_of(task, name) != field_of(of_tenant(tenant), name)
    assert tenant_in(of_tenant(tenant)) == tenant


def test_counters_may_have_parts_of_their_own() -> None:
    assert read_field(b"t|verify_agree|1h") == ("t", "verify_agree|1h")
    assert field_of("t", "model") == "t|model"
    assert field_of("*", "jobs_settled") == "*|jobs_settled"


# Tallies


@given(st.lists(st.tuples(st.integers(0, MOST_TOKENS), st.integers(0, MOST_TOKENS)), max_size=50))
def test_packed_hits_add_up(calls: list[tuple[int, int]]) -> None:
    total = sum(worth_of(*tokens) for tokens in calls)
    assert unpacked(total) == (len(calls), sum(c[0] for c in calls), sum(c[1] for c in calls))


def test_a_second_of_hits_does_not_overflow() -> None:
    hits = 1_000_000_000
    assert unpacked(hits * worth_of(MOST_TOKENS, MOST_TOKENS)) == (
        hits,
        hits * MOST_TOKENS,
        hits * MOST_TOKENS,
    )
    assert worth_of(2**53, 2**53) == worth_of(MOST_TOKENS, MOST_TOKENS)
    assert worth_of(0, 0) == ONE_HIT


def test_tenants_who_are_idle_give_way() -> None:
    known = KnownTenants(2, "(others)")
    assert [known.name(tenant, 0.0) for tenant in ("a", "b", "c", "a")] == [
        "a",
        "b",
        "(others)",
        "a",
    ]
    assert known.name("b", IDLE_S) == "b"
    assert [known.name(tenant, IDLE_S + 1) for tenant in ("c", "a")] == ["c", "(others)"]


def test_a_tally_is_counted_once() -> None:
    counters = Counters()
    counters.tally("t", Price(per_call=1.0)).memory[""] = 3 * worth_of(10, 1)
    counters.hit("t", Price(per_call=1.0), "store", "", worth_of(10, 1))
    for _ in range(2):
        counts = counters.since_start()
        assert (counts["t", "memory"], counts["t", "store"]) == (3, 1)
        assert (counts["t", "saved_input_tokens"], counts["t", "avoided_nano"]) == (40, 4 * NANO)


def test_counts_of_tenants_do_not_pile_up_here() -> None:
    """Tasks come from the configuration; tenants come and go."""
    counters = Counters()
    counters.count_tenant("acme", "hits")
    counters.count_tenant("", "hits")
    assert not counters.since_start()


# Buckets


def test_names_of_buckets() -> None:
    assert read_bucket(b"300:6000000") == Bucket(300, 6_000_000)
    assert Bucket(300, 6_000_000).start_ms == 1_800_000_000_000
    assert Bucket(300, 6_000_000).end_ms == 1_800_000_300_000
    for name in (b"", b"300", b"300:x", b"-1:2", b"1:2:3"):
        assert read_bucket(name) is None


@given(at_ms=st.floats(), age_s=st.floats(0, 1e6))
def test_a_time_is_rounded_to_a_bucket_that_is_there(at_ms: float, age_s: float) -> None:
    rounded = rounded_ms(at_ms, age_s)
    if rounded <= 1:
        return
    assert rounded <= at_ms
    finest_s = next((s.seconds for s in SIZES if age_s < s.kept_s - 60), SIZES[-1].seconds)
    assert rounded % (finest_s * 1000) == 0
    assert at_ms - rounded < finest_s * 1000


# The list for people


def test_docs_name_every_figure() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "STATS.md").read_text(encoding="utf-8")
    listed = text.partition("## The JSON")[2]
    for struct in (FleetState, WindowState, TaskTotals, NeverRead, Tokens, Cost):
        for field in msgspec.structs.fields(struct):
            assert re.search(rf"\b{field.name}\b", listed), f"{struct.__name__}.{field.name}"
    for words in (*HIT_SOURCES, *(window.name for window in WINDOWS)):
        assert words in listed
    for verdict in ADVICE:
        assert verdict in text
    assert f"{MOST_TENANTS} tenants" in text
    assert f"below {LEAST_ANSWERS} answers" in text
    assert f"a piece of time {MOST_FIELDS:,}" in text
