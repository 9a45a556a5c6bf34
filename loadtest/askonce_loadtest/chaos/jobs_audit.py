"""The account of jobs and replies, from the producers' journals and the reply streams.

A job is *accepted* when its enqueue returned success, or a reply to it came. Then it must be
replied (`lost`), once to each client incarnation (`doubled`), rightly (`wrong`), from an answer
that was valid when the job was enqueued (`stale`), and must not be called poisonous if it is not
(`condemned`). A job that was attempted and never accepted is `unsettled`: producers try until the
end, so there may be none either.

A job whose enqueue was repeated may be a new job the second time, if the first was settled by then.
But when all its enqueues had returned before the first reply was written, then it was one job, and
a second reply means that it was settled twice (`settled_twice`).

An error is a right reply only where the model was out of order at some time while the job waited.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from askonce_loadtest.chaos.evidence import Epochs, Span, Violation
from askonce_loadtest.chaos.journal import (
    Accepted,
    Attempted,
    Began,
    Ended,
    ProducerLine,
    Refused,
    Replied,
    Unknown,
)
from askonce_loadtest.chaos.tap import Settled
from askonce_loadtest.chaos.workload import Asked, epoch_of

TRANSIENT = ("timeout", "unavailable")
"""Codes of what a model that is out of order causes."""
CONFLICT = "already in use"


class JobsAccount(NamedTuple):
    """What became of all jobs."""

    counts: dict[str, int]
    sources: dict[str, int]
    errors: dict[str, int]
    violations: list[Violation]
    waits_s: list[tuple[float, float]]
    """When each replied job was enqueued (monotonic), and how long its reply took."""
    """From the first attempt to enqueue to the first reply, sorted."""
    asked: dict[str, Asked]
    """What was asked by which job."""


class _Job(msgspec.Struct):
    asked: Asked
    attempted: float
    accepted: bool = False
    enqueued: float | None = None
    """When its last enqueue had returned with success; None when the last did not."""
    replies: list[tuple[int, Replied]] = []


def audit_jobs(
    journals: Mapping[str, Iterable[ProducerLine]],
    settled: Mapping[str, Settled],
    epochs: Epochs,
    model_trouble: Sequence[Span],
) -> JobsAccount:
    """Go through the journals of all producers, by name."""
    counts: Counter[str] = Counter()
    violations: list[Violation] = []
    jobs: dict[str, _Job] = {}
    for name, lines in journals.items():
        own = _Producer(name, counts, violations)
        for line in lines:
            own.take(line)
        for job_id, job in own.jobs.items():
            violations += _judge(name, job_id, job, settled.get(job_id))
            violations += _judge_replies(name, job_id, job, epochs, model_trouble)
        jobs |= own.jobs
    replied = [job for job in jobs.values() if job.replies]
    firsts = [job.replies[0][1] for job in replied]
    counts["attempted"] = len(jobs)
    counts["accepted"] = sum(job.accepted for job in jobs.values())
    counts["replied"] = len(replied)
    return JobsAccount(
        dict(counts),
        dict(Counter(reply.source or "none" for reply in firsts if reply.code is None)),
        dict(Counter(reply.code for reply in firsts if reply.code is not None)),
        violations,
        [(job.attempted, job.replies[0][1].at - job.attempted) for job in replied],
        {job_id: job.asked for job_id, job in jobs.items()},
    )


class _Producer:
    """Reads one journal."""

    def __init__(self, name: str, counts: Counter[str], violations: list[Violation]) -> None:
        self.jobs: dict[str, _Job] = {}
        self._name = name
        self._counts = counts
        self._violations = violations
        self._incarnation = 0

    def take(self, line: ProducerLine) -> None:
        """Note what a line says."""
        match line:
            case Began():
                self._incarnation += 1
                self._counts["client_incarnations"] += 1
            case Attempted(at=at, jobs=attempted):
                for job_id, kind, number in attempted:
                    self.jobs.setdefault(job_id, _Job(Asked(kind, number), at))
            case Accepted(at=at, ids=ids):
                self._accepted(ids, at)
            case Refused(ids=ids, reason=reason) | Unknown(ids=ids, reason=reason):
                self._counts["refused" if isinstance(line, Refused) else "unknown"] += len(ids)
                self._not_accepted(ids, reason)
            case Replied():
                self._replied(line)
            case Ended(tasks=tasks):
                for task in tasks:
                    self._blame("tasks", f"{self._name}: {task}")
            case _:
                pass

    def _accepted(self, ids: Iterable[str], at: float) -> None:
        for job_id in ids:
            self.jobs[job_id].accepted = True
            self.jobs[job_id].enqueued = at

    def _not_accepted(self, ids: Iterable[str], reason: str) -> None:
        for job_id in ids:
            self.jobs[job_id].enqueued = None
        if CONFLICT in reason:
            self._blame("wrong", f"{self._name}: {reason}")

    def _replied(self, reply: Replied) -> None:
        job = self.jobs.get(reply.id)
        if job is None:
            self._blame("wrong", f"{reply.id}: a reply to a job that was never made")
        else:
            job.accepted = True
            job.replies.append((self._incarnation, reply))

    def _blame(self, kind: str, what: str) -> None:
        self._violations.append(Violation(kind, what, f"{self._name}.jsonl"))


def _judge(name: str, job_id: str, job: _Job, settled: Settled | None) -> Iterable[Violation]:
    """How often a job was replied."""
    where = f"{name}.jsonl"
    if not job.replies:
        kind = "lost" if job.accepted else "unsettled"
        yield Violation(kind, f"{_about(job_id, job)}: no reply", where)
    for incarnation, times in Counter(n for n, _ in job.replies).items():
        if times > 1:
            what = f"{_about(job_id, job)}: {times} replies to incarnation {incarnation}"
            yield Violation("doubled", what, where)
    if (
        settled is not None
        and settled.times > 1
        and job.enqueued is not None
        and job.enqueued < settled.first
    ):
        what = f"{_about(job_id, job)}: enqueued once, {settled.times} replies in its stream"
        yield Violation("settled_twice", what, where)


def _judge_replies(
    name: str, job_id: str, job: _Job, epochs: Epochs, model_trouble: Sequence[Span]
) -> Iterable[Violation]:
    """What a job was replied."""
    for _, reply in job.replies:
        if reply.code is None:
            wrong = _wrong_answer(job, reply, epochs)
        else:
            wrong = _wrong_error(job, reply, model_trouble)
        if wrong is not None:
            kind, what = wrong
            at = f", at {reply.at:.3f} from {reply.source}"
            yield Violation(kind, f"{_about(job_id, job)}: {what}{at}", f"{name}.jsonl")


def _about(job_id: str, job: _Job) -> str:
    return f"{job_id} ({job.asked.text!r}, enqueued at {job.attempted:.3f})"


def _wrong_error(
    job: _Job, reply: Replied, model_trouble: Sequence[Span]
) -> tuple[str, str] | None:
    """The kind of violation and what is wrong with an error; None when nothing is."""
    if job.asked.kind == "die":
        return None if reply.code == "poison" else ("wrong", f"a deadly job got {reply.code!r}")
    if reply.code == "poison":
        return "condemned", "called poisonous"
    felt = any(span.touches(job.attempted, reply.at) for span in model_trouble)
    if reply.code in TRANSIENT and felt:
        return None
    return "wrong", f"error {reply.code!r}, and no model was out of order"


def _wrong_answer(job: _Job, reply: Replied, epochs: Epochs) -> tuple[str, str] | None:
    """The kind of violation and what is wrong with an answer; None when nothing is."""
    asked, label = job.asked, reply.label or ""
    epoch = epoch_of(asked.text, label)
    group = asked.group
    if epoch is None or asked.kind == "die":
        return "wrong", f"label {label!r} is not of this text"
    newest = 0 if group is None else epochs.newest(group, reply.at)
    oldest = 0 if group is None else epochs.oldest(group, job.attempted)
    if epoch > newest:
        return "wrong", f"label {label!r} is of an epoch that has not begun ({newest})"
    if epoch < oldest:
        return "stale", f"label {label!r} was invalidated: epoch {oldest} had begun"
    return None
