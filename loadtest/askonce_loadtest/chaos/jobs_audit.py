"""The account of jobs and replies, from the producers' journals.

A job is *accepted* when its enqueue returned success, or a reply to it came. Then it must be
replied (`lost`), once to each client incarnation (`doubled`), rightly (`wrong`), from an answer
that was valid when the job was enqueued (`stale`), and must not be called poisonous if it is not
(`condemned`). A job that was attempted and never accepted is `unsettled`: producers try until the
end, so there may be none either.

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
from askonce_loadtest.chaos.workload import Asked, epoch_of

TRANSIENT = ("timeout", "unavailable")
"""Codes of what a model that is out of order causes."""
CONFLICT = "already in use"


class _Job(msgspec.Struct):
    asked: Asked
    attempted: float
    accepted: bool = False
    replies: list[tuple[int, Replied]] = []


class JobsAccount(NamedTuple):
    """What became of all jobs."""

    counts: dict[str, int]
    sources: dict[str, int]
    errors: dict[str, int]
    violations: list[Violation]
    latencies_s: list[float]
    """From the first attempt to enqueue to the first reply, sorted."""
    asked: dict[str, Asked]
    """What was asked by which job."""


def audit_jobs(
    journals: Mapping[str, Iterable[ProducerLine]],
    epochs: Epochs,
    model_trouble: Sequence[Span],
) -> JobsAccount:
    """Go through the journals of all producers, by name."""
    counts: Counter[str] = Counter()
    violations: list[Violation] = []
    jobs: dict[str, _Job] = {}
    for name, lines in journals.items():
        own = _read(name, lines, counts, violations)
        for job_id, job in own.items():
            violations += _judge(name, job_id, job, epochs, model_trouble)
        jobs |= own
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
        sorted(job.replies[0][1].at - job.attempted for job in replied),
        {job_id: job.asked for job_id, job in jobs.items()},
    )


def _read(
    name: str,
    lines: Iterable[ProducerLine],
    counts: Counter[str],
    violations: list[Violation],
) -> dict[str, _Job]:
    jobs: dict[str, _Job] = {}
    incarnation = 0
    for line in lines:
        match line:
            case Began():
                incarnation += 1
                counts["client_incarnations"] += 1
            case Attempted(at=at, jobs=attempted):
                for job_id, kind, number in attempted:
                    jobs.setdefault(job_id, _Job(Asked(kind, number), at))
            case Accepted(ids=ids):
                for job_id in ids:
                    jobs[job_id].accepted = True
            case Refused(ids=ids, reason=reason):
                counts["refused"] += len(ids)
                if CONFLICT in reason:
                    violations.append(Violation("wrong", f"{name}: {reason}", name))
            case Unknown(ids=ids):
                counts["unknown"] += len(ids)
            case Replied(id=job_id) if job_id in jobs:
                jobs[job_id].accepted = True
                jobs[job_id].replies.append((incarnation, line))
            case Replied(id=job_id):
                what = f"{job_id}: a reply to a job that was never made"
                violations.append(Violation("wrong", what, name))
            case Ended(tasks=tasks):
                violations += [Violation("tasks", f"{name}: {task}", name) for task in tasks]
            case _:
                pass
    return jobs


def _judge(
    name: str, job_id: str, job: _Job, epochs: Epochs, model_trouble: Sequence[Span]
) -> Iterable[Violation]:
    about = f"{job_id} ({job.asked.text!r}, enqueued at {job.attempted:.3f})"
    if not job.replies:
        kind = "lost" if job.accepted else "unsettled"
        yield Violation(kind, f"{about}: no reply", name)
    for incarnation, times in Counter(n for n, _ in job.replies).items():
        if times > 1:
            what = f"{about}: {times} replies to incarnation {incarnation}"
            yield Violation("doubled", what, name)
    for _, reply in job.replies:
        wrong = _wrong(job, reply, epochs, model_trouble)
        if wrong is not None:
            at = f", at {reply.at:.3f} from {reply.source}"
            yield Violation(wrong[0], f"{about}: {wrong[1]}{at}", name)


def _wrong(
    job: _Job, reply: Replied, epochs: Epochs, model_trouble: Sequence[Span]
) -> tuple[str, str] | None:
    """The kind of violation and what is wrong with a reply; None when nothing is."""
    asked = job.asked
    if reply.code == "poison":
        return None if asked.kind == "die" else ("condemned", "called poisonous")
    if asked.kind == "die":
        return "wrong", f"a deadly job got {reply.code or reply.label!r}"
    if reply.code is not None:
        felt = any(span.touches(job.attempted, reply.at) for span in model_trouble)
        if reply.code in TRANSIENT and felt:
            return None
        return "wrong", f"error {reply.code!r}, and no model was out of order"
    epoch = epoch_of(asked.text, reply.label or "")
    group = asked.group
    if epoch is None:
        return "wrong", f"label {reply.label!r} is of another text"
    newest = 0 if group is None else epochs.newest(group, reply.at)
    oldest = 0 if group is None else epochs.oldest(group, job.attempted)
    if epoch > newest:
        return "wrong", f"label {reply.label!r} is of an epoch that has not begun ({newest})"
    if epoch < oldest:
        return "stale", f"label {reply.label!r} was invalidated: epoch {oldest} had begun"
    return None
