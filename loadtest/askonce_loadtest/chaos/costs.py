"""What each kind of fault costs: how long jobs wait that come meanwhile, and what is asked more.

Faults overlap, so a job may count for several kinds; "calm" are the jobs that came when nothing was
wrong, and had not been for `CALM_S`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from askonce_loadtest.chaos.evidence import Done, Span
from askonce_loadtest.chaos.plan import LEASE_TTL_S
from askonce_loadtest.chaos.worker_logs import Call

CALM = "calm"
CALM_S = 2.0
"""How long after a fault things are calm again, for this account."""


class Cost(msgspec.Struct):
    """Of a kind of fault: how often it struck, for how long in all, and what came meanwhile.

    `p50_s`, `p99_s` and `max_s` are from enqueue to reply of the `jobs` that came while it lasted;
    `takeovers` and `retries` are model calls within a lease's time of it, for each strike.
    """

    strikes: int
    lasted_s: float
    jobs: int
    p50_s: float
    p99_s: float
    max_s: float
    takeovers: float
    retries: float


def costs_of(
    done: Sequence[Done], waits: Sequence[tuple[float, float]], calls: Iterable[Call]
) -> dict[str, Cost]:
    """By kind of fault; `waits` are when each job was enqueued, and how long its reply took."""
    spans: dict[str, list[Span]] = {}
    for one in done:
        if not one.failed:
            spans.setdefault(one.fault.kind, []).append(Span(one.began, one.ended))
    every = [Span(span.began, span.ended + CALM_S) for kind in spans.values() for span in kind]
    calls = list(calls)
    costs = {
        kind: _cost(found, [wait for at, wait in waits if _within(at, found)], calls)
        for kind, found in sorted(spans.items())
    }
    calm = [wait for at, wait in waits if not _within(at, every)]
    return {CALM: _cost([], calm, []), **costs}


def _cost(spans: Sequence[Span], waits: Sequence[float], calls: Sequence[Call]) -> Cost:
    ordered = sorted(waits) or [0.0]
    last = len(ordered) - 1
    felt = [Span(span.began, span.ended + LEASE_TTL_S) for span in spans]
    reasons = [call.reason for call in calls if _within(call.at, felt)]
    strikes = max(1, len(spans))
    return Cost(
        strikes=len(spans),
        lasted_s=round(sum(span.ended - span.began for span in spans), 1),
        jobs=len(waits),
        p50_s=round(ordered[last // 2], 3),
        p99_s=round(ordered[int(0.99 * last)], 3),
        max_s=round(ordered[last], 3),
        takeovers=round(reasons.count("takeover") / strikes, 1),
        retries=round(reasons.count("retry") / strikes, 1),
    )


def _within(at: float, spans: Iterable[Span]) -> bool:
    return any(span.began <= at <= span.ended for span in spans)


def shown(costs: Mapping[str, Cost]) -> list[tuple[str, ...]]:
    """Rows for a table: kind, strikes, p50, p99, max in seconds, takeovers and retries a strike."""
    return [
        (
            kind,
            str(cost.strikes),
            f"{cost.p50_s:.2f}",
            f"{cost.p99_s:.2f}",
            f"{cost.max_s:.1f}",
            f"{cost.takeovers:g}",
            f"{cost.retries:g}",
        )
        for kind, cost in costs.items()
    ]
