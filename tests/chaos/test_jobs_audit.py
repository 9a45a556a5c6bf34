"""Every violation of the account of jobs is found in hand-made journals, and nothing else is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from askonce_loadtest.chaos.evidence import Epochs, Invalidation, Span
from askonce_loadtest.chaos.jobs_audit import JobsAccount, audit_jobs
from askonce_loadtest.chaos.journal import (
    Accepted,
    AskedJob,
    Attempted,
    Began,
    Ended,
    ProducerLine,
    Refused,
    Replied,
    Unknown,
)
from askonce_loadtest.chaos.tap import Settled
from askonce_loadtest.chaos.workload import Asked, Kind, label_of

QUESTION = Asked("question", 3)
"""Of group 3."""


def attempted(at: float = 1.0, kind: Kind = "question") -> Attempted:
    return Attempted(at, [AskedJob("p-1", kind, 3)])


def answered(at: float = 2.0, *, epoch: int = 0, asked: Asked = QUESTION) -> Replied:
    return Replied(at, "p-1", label_of(asked.text, epoch), None, "store")


def failed(code: str, at: float = 2.0) -> Replied:
    return Replied(at, "p-1", None, code, None)


def audit(
    lines: Sequence[ProducerLine],
    *,
    invalidations: Sequence[Invalidation] = (),
    trouble: Sequence[Span] = (),
    settled: Mapping[str, Settled] | None = None,
) -> JobsAccount:
    return audit_jobs({"p": lines}, settled or {}, Epochs(invalidations), trouble)


def kinds(account: JobsAccount) -> list[str]:
    return [violation.kind for violation in account.violations]


def invalidation(confirmed: float | None = 1.5, raised: float = 1.2) -> Invalidation:
    return Invalidation(
        groups=[3], tasks=[], raised=raised, began=raised + 0.1, confirmed=confirmed
    )


def test_a_sound_job_is_counted_and_blamed_for_nothing() -> None:
    account = audit([Began(0.5, 1, 42), attempted(), Accepted(1.1, ["p-1"]), answered()])
    assert kinds(account) == []
    assert account.counts["accepted"] == account.counts["replied"] == 1
    assert account.sources == {"store": 1}
    assert [wait_s for _, wait_s in account.waits_s] == [1.0]


def test_an_accepted_job_without_a_reply_is_lost() -> None:
    account = audit([attempted(), Accepted(1.1, ["p-1"])])
    assert kinds(account) == ["lost"]
    assert "p-1" in account.violations[0].what


def test_a_job_that_was_never_accepted_is_unsettled() -> None:
    assert kinds(audit([attempted(), Unknown(1.1, ["p-1"], "no store")])) == ["unsettled"]


def test_two_replies_to_one_incarnation_are_doubled_and_to_two_they_are_not() -> None:
    once: list[ProducerLine] = [Began(0.5, 1, 42), attempted(), Accepted(1.1, ["p-1"]), answered()]
    assert kinds(audit([*once, answered(2.1)])) == ["doubled"]
    assert kinds(audit([*once, Began(2.05, 2, 43), answered(2.1)])) == []


@pytest.mark.parametrize(
    "reply",
    [
        answered(asked=Asked("question", 11)),
        Replied(2.0, "p-1", "nonsense", None, "model"),
        Replied(2.0, "p-1", None, None, "model"),
        answered(epoch=1),
    ],
    ids=["another text", "no label of ours", "no label", "an epoch to come"],
)
def test_another_answer_is_wrong(reply: Replied) -> None:
    assert kinds(audit([attempted(), Accepted(1.1, ["p-1"]), reply])) == ["wrong"]


def test_an_answer_of_before_a_confirmed_invalidation_is_stale() -> None:
    early, late = attempted(1.9), attempted(2.1)  # the bound is 0.5 s
    reply = answered(2.2, epoch=0)
    assert kinds(audit([early, reply], invalidations=[invalidation()])) == []
    assert kinds(audit([late, reply], invalidations=[invalidation()])) == ["stale"]
    assert kinds(audit([late, answered(2.2, epoch=1)], invalidations=[invalidation()])) == []


def test_an_invalidation_that_was_not_confirmed_binds_nobody() -> None:
    reply = answered(9.0, epoch=0)
    assert kinds(audit([attempted(8.0), reply], invalidations=[invalidation(None)])) == []


def test_a_later_confirmation_covers_an_earlier_invalidation() -> None:
    both = [invalidation(None, raised=1.0), invalidation(2.0, raised=1.5)]
    assert kinds(audit([attempted(3.0), answered(3.1, epoch=1)], invalidations=both)) == ["stale"]
    assert kinds(audit([attempted(3.0), answered(3.1, epoch=2)], invalidations=both)) == []


@pytest.mark.parametrize("code", ["timeout", "unavailable"])
def test_an_error_is_right_only_when_the_model_was_out_of_order(code: str) -> None:
    lines: list[ProducerLine] = [attempted(), failed(code)]
    assert kinds(audit(lines, trouble=[Span(1.5, 1.6)])) == []
    assert kinds(audit(lines, trouble=[Span(2.5, 2.6)])) == ["wrong"]


def test_an_error_that_no_outage_explains_is_wrong_at_any_time() -> None:
    assert kinds(audit([attempted(), failed("internal")], trouble=[Span(0, 9)])) == ["wrong"]


def test_an_innocent_may_not_be_condemned_and_a_deadly_job_must_be() -> None:
    assert kinds(audit([attempted(kind="calm"), failed("poison")])) == ["condemned"]
    assert kinds(audit([attempted(kind="question"), failed("poison")])) == ["condemned"]
    assert kinds(audit([attempted(kind="die"), failed("poison")])) == []
    assert kinds(audit([attempted(kind="die"), failed("timeout")], trouble=[Span(0, 9)])) == [
        "wrong"
    ]
    deadly = answered(asked=Asked("die", 3))
    assert kinds(audit([attempted(kind="die"), deadly])) == ["wrong"]


def test_a_job_that_was_enqueued_once_is_settled_once() -> None:
    lines: list[ProducerLine] = [attempted(), Accepted(1.1, ["p-1"]), answered()]
    assert kinds(audit(lines, settled={"p-1": Settled(1.2, 2)})) == ["settled_twice"]
    assert kinds(audit(lines, settled={"p-1": Settled(1.2, 1)})) == []


def test_a_repeated_enqueue_may_be_a_new_job_after_the_first_reply() -> None:
    again: list[ProducerLine] = [
        attempted(),
        Unknown(1.1, ["p-1"], "no store"),
        Accepted(1.5, ["p-1"]),
        answered(),
    ]
    assert kinds(audit(again, settled={"p-1": Settled(1.2, 2)})) == []
    assert kinds(audit(again, settled={"p-1": Settled(1.6, 2)})) == ["settled_twice"]


def test_a_conflict_and_a_reply_out_of_nowhere_are_wrong() -> None:
    conflict = Refused(1.1, ["p-1"], "job id(s) already in use: p-1.")
    lines: list[ProducerLine] = [attempted(), conflict, Accepted(1.2, ["p-1"]), answered()]
    assert kinds(audit(lines)) == ["wrong"]
    assert kinds(audit([Replied(1.0, "p-9", "label", None, "model")])) == ["wrong"]


def test_a_queue_that_is_full_is_no_fault() -> None:
    full = Refused(1.1, ["p-1"], "1 job(s) not accepted: the backlog is at its bound")
    account = audit([attempted(), full, Accepted(1.2, ["p-1"]), answered()])
    assert kinds(account) == []
    assert account.counts["refused"] == 1


def test_tasks_that_a_producer_leaves_are_leaked() -> None:
    assert kinds(audit([Ended(9.0, ["<Task pending>"])])) == ["tasks"]
