"""Every model call above the formula is found in hand-made logs, and none within it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from askonce_loadtest.chaos.calls_audit import SWEPT_AFTER_S, Circumstances, audit_calls
from askonce_loadtest.chaos.evidence import Invalidation, Span
from askonce_loadtest.chaos.journal import ModelCall
from askonce_loadtest.chaos.plan import ANSWER_TTL_S, LEASE_TTL_S
from askonce_loadtest.chaos.worker_logs import Call, End
from askonce_loadtest.chaos.workload import Asked

KEY = "ab" * 32
ASKED = Asked("question", 3)
"""Of group 3."""
CALM = Circumstances([], [], [], [], [], {})


def call(
    at: float, reason: str = "fill", *, worker: str = "w1", granted: float | None = None
) -> Call:
    """A call logged at `at`, whose lease was granted at `granted` at the earliest."""
    earliest = at - 0.01 if granted is None else granted
    return Call(at, worker, "question", KEY, reason, 1, earliest, earliest + LEASE_TTL_S)


def ended(of: Call, at: float, how: str = "filled") -> End:
    return End(at, of.worker, KEY, how, of.began)


def received(times: int) -> list[ModelCall]:
    """What the model has seen."""
    return [ModelCall(1.0, ASKED.text, 0, "ok")] * times


def kinds(calls: Sequence[Call], ends: Sequence[End] = (), **changed: Any) -> list[str]:
    circumstances = CALM._replace(**changed)
    account = audit_calls(calls, ends, {KEY: ASKED}, circumstances, received(len(calls)))
    return [violation.kind for violation in account.violations]


def test_one_fill_is_right() -> None:
    first = call(1.0)
    assert kinds([first], [ended(first, 1.1)]) == []


def test_a_second_fill_of_a_kept_answer_is_one_too_many() -> None:
    first, second = call(1.0), call(2.0, worker="w2")
    assert kinds([first, second], [ended(first, 1.1), ended(second, 2.1)]) == ["fills_above"]


def test_a_second_fill_beside_a_live_leader_is_one_too_many() -> None:
    """What a look-up that ignores "busy" would do; the fence of the first is no excuse."""
    first, second = call(1.00), call(1.02, worker="w2")
    assert kinds([first, second], [ended(first, 1.3, "fenced")]) == ["fills_above"]


def test_retries_are_of_the_same_lease() -> None:
    first = call(1.0)
    assert kinds([first, call(1.5, "retry")], [ended(first, 1.6)]) == []


@pytest.mark.parametrize("lost_at", [0.5, 1.5, 2.5])
def test_an_answer_that_was_lost_in_between_may_be_filled_again(lost_at: float) -> None:
    first, second = call(1.0), call(2.0, worker="w2")
    found = kinds([first, second], [ended(first, 1.1)], losses=[Span(lost_at, lost_at + 0.1)])
    assert found == ([] if lost_at == 1.5 else ["fills_above"])


def test_only_an_invalidation_that_concerns_the_key_excuses() -> None:
    first, second = call(1.0), call(2.0, worker="w2")

    def found(groups: list[int], tasks: list[str], confirmed: float | None = 1.6) -> list[str]:
        one = Invalidation(groups=groups, tasks=tasks, raised=1.4, began=1.5, confirmed=confirmed)
        return kinds([first, second], [ended(first, 1.1)], invalidations=[one])

    assert found([3], []) == []
    assert found([3], [], None) == []
    assert found([], ["question"]) == []
    assert found([4], []) == ["fills_above"]
    assert found([], ["deadly"]) == ["fills_above"]


def test_an_answer_may_be_filled_again_after_its_ttl() -> None:
    first = call(1.0)
    early, late = call(ANSWER_TTL_S, worker="w2"), call(1.1 + ANSWER_TTL_S, worker="w2")
    assert kinds([first, early], [ended(first, 1.1)]) == ["fills_above"]
    assert kinds([first, late], [ended(first, 1.1)]) == []


@pytest.mark.parametrize(("how", "needs"), [("unkept", "store"), ("exhausted", "model")])
def test_a_lease_given_back_needs_its_own_reason(how: str, needs: str) -> None:
    first, second = call(1.0), call(2.0, worker="w2")
    ends = [ended(first, 1.5, how)]
    assert kinds([first, second], ends) == ["fills_above"]
    assert kinds([first, second], ends, **{f"{needs}_trouble": [Span(1.2, 1.3)]}) == []
    assert kinds([first, second], ends, **{f"{needs}_trouble": [Span(3.0, 4.0)]}) == ["fills_above"]


def test_a_drained_worker_gives_its_leases_back() -> None:
    first, second = call(1.0), call(3.0, worker="w2")
    assert kinds([first, second], drains={"w1": 2.0}) == []
    assert kinds([first, second], drains={"w1": 4.0}) == ["fills_above"]
    assert kinds([first, second], drains={"w2": 2.0}) == ["fills_above"]


def test_who_follows_a_dead_leader_takes_over_until_the_sweep_has_come() -> None:
    first = call(1.0)
    died = [Span(1.1, 16.0)]
    assert kinds([first, call(4.0, "takeover", worker="w2")], worker_trouble=died) == []
    assert kinds([first, call(4.0, worker="w2")], worker_trouble=died) == ["fills_above"]
    swept = call(1.1 + SWEPT_AFTER_S, worker="w2")
    assert kinds([first, swept], worker_trouble=died) == []


def test_nobody_takes_over_from_a_leader_that_nothing_has_happened_to() -> None:
    first, second = call(1.0), call(4.0, "takeover", worker="w2")
    assert kinds([first, second], [ended(first, 4.5, "fenced")]) == ["takeovers"]
    assert kinds([first, second], store_trouble=[Span(2.0, 3.0)]) == []


def test_a_worker_that_was_stopped_between_grant_and_log_is_no_second_leader() -> None:
    """Granted first, logged last: in between another took over, filled, and all was lost."""
    stopped = call(6.0, granted=1.0)
    second = call(3.5, "takeover", worker="w2")
    third = call(5.0, worker="w3")
    found = kinds(
        [stopped, second, third],
        [ended(second, 3.6), ended(third, 5.1), ended(stopped, 6.1, "fenced")],
        losses=[Span(4.0, 4.1)],
        worker_trouble=[Span(1.0, 9.0)],
    )
    assert found == []


def test_leases_whose_times_overlap_may_have_been_granted_in_either_order() -> None:
    delayed = call(5.2, granted=0.5)  # its request reached the store at 5.1
    second = call(1.1, worker="w2", granted=1.0)
    ends = [ended(second, 1.2), ended(delayed, 5.3)]
    assert kinds([delayed, second], ends, losses=[Span(3.0, 3.1)]) == []
    assert kinds([delayed, second], ends) == ["fills_above"]


def test_calls_that_nobody_logged_and_keys_that_nobody_asked_are_found() -> None:
    known = {KEY: ASKED}
    too_many = audit_calls([call(1.0)], [], known, CALM, received(2))
    on_its_way = audit_calls([call(1.0)], [], known, CALM, received(0))
    unasked = audit_calls([call(1.0)], [], {}, CALM, received(0))
    assert [one.kind for one in too_many.violations] == ["unrecorded_calls"]
    assert on_its_way.violations == []
    assert [one.kind for one in unasked.violations] == ["unrecorded_calls"]


def test_calls_are_counted_by_reason_and_flights_by_end() -> None:
    first = call(1.0)
    calls = [first, call(1.5, "retry"), call(2.0, "bypass")]
    account = audit_calls(calls, [ended(first, 2.1)], {KEY: ASKED}, CALM, [])
    assert account.by_reason == {"fill": 1, "retry": 1, "bypass": 1}
    assert account.ends == {"filled": 1}
    assert account.keys == 1
