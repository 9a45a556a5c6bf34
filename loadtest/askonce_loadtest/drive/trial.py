"""What came of one run at one rate, and whether that can be believed."""

from __future__ import annotations

import msgspec

from askonce_loadtest.drive.histogram import Buckets, Histogram, Summary

HITS = ("memory", "store", "semantic", "coalesced", "stale")


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How one run goes."""

    rate_per_s: float | None
    """The mean rate; None: the workload's own times."""
    seconds: float
    """How long it is measured."""
    warm_up_s: float = 0.0
    """How long requests are sent before that, at the same rate."""
    drain_s: float = 30.0
    """How long the last replies are waited for."""
    give_up_after_s: float | None = None
    """Stop sending once a reply is this late: the rate is far too high."""
    max_late_ms: float = 10.0
    """The run is invalid when more than 1 % of the requests were sent later than this."""


class Counts:
    """The counts of a run under way; only what was due in the measured time is in them."""

    def __init__(self) -> None:
        self.latency = Histogram()
        self.late = Histogram()
        self.answered = 0
        self.sources: dict[str, int] = {}
        self.errors: dict[str, int] = {}
        self.last_sent_at = 0.0
        self.last_answer_at = 0.0
        self.unanswered = 0

    def answer(self, source: str | None, latency_us: int, at: float) -> None:
        """Count a good reply."""
        self.answered += 1
        self.latency.record(latency_us)
        self.last_answer_at = at
        name = source or "model"
        self.sources[name] = self.sources.get(name, 0) + 1

    def error(self, code: str) -> None:
        """Count a request that got an error, or was not accepted.

        Its latency is not one of an answer: failing fast would make the others look better.
        """
        self.errors[code] = self.errors.get(code, 0) + 1

    def never(self, waited_us: int) -> None:
        """Count a request whose reply never came. It took at least this long."""
        self.unanswered += 1
        self.latency.record(waited_us)


class Trial(msgspec.Struct, kw_only=True):
    """One run. Latencies are in ms, from when a request was due to its answer."""

    rate_per_s: float | None
    """What was asked for; None: the workload's own times."""
    seconds: float
    """How long requests were sent and measured."""
    intended: int
    """Requests due in that time."""
    intended_per_s: float
    sent_per_s: float
    """What the driver handed to the queue, up to when it handed over the last."""
    answered: int
    answered_per_s: float
    """Up to the last answer."""
    errors: dict[str, int]
    """By code; `queue_full` and `store_unavailable` were never accepted, `not_sent` never sent."""
    unanswered: int
    """Replies that did not come; they count in the latency with how long they were waited for."""
    sources: dict[str, int]
    """Where the answers came from."""
    hit_rate: float
    """Share of the answers that took no model call of their own."""
    latency_ms: Summary
    late_ms: Summary
    """How late the driver sent: part of the latency, and the driver's fault."""
    workload_rounds: int
    """How often the workload's end was reached, and it began anew."""
    gave_up: bool
    interrupted: bool
    invalid: list[str]
    """Why this says more about the driver than about what it drives; empty: it does not."""
    latency_us: Buckets
    late_us: Buckets


def make_trial(
    pace: Pace,
    counts: Counts,
    *,
    began: float,
    seconds: float,
    rounds: int,
    gave_up: bool,
    interrupted: bool,
) -> Trial:
    """Sum up a run whose measured part began at `began` on the clock of the counts."""
    intended, hits = counts.late.count, sum(counts.sources.get(name, 0) for name in HITS)
    late = counts.late.summary()
    return Trial(
        rate_per_s=pace.rate_per_s,
        seconds=seconds,
        intended=intended,
        intended_per_s=_rate(intended, seconds),
        sent_per_s=_rate(intended, max(seconds, counts.last_sent_at - began)),
        answered=counts.answered,
        answered_per_s=_rate(counts.answered, max(seconds, counts.last_answer_at - began)),
        errors=counts.errors,
        unanswered=counts.unanswered,
        sources=counts.sources,
        hit_rate=hits / counts.answered if counts.answered else 0.0,
        latency_ms=counts.latency.summary(),
        late_ms=late,
        workload_rounds=rounds,
        gave_up=gave_up,
        interrupted=interrupted,
        invalid=_doubts(pace, counts, late, intended),
        latency_us=counts.latency.export(),
        late_us=counts.late.export(),
    )


def _doubts(pace: Pace, counts: Counts, late: Summary, intended: int) -> list[str]:
    doubts: list[str] = []
    if not intended:
        doubts.append("nothing was due in the measured time: more --seconds, or a higher --rate")
    elif not counts.answered and not counts.errors:
        doubts.append("not one reply came: are workers up?")
    if late.p99 > pace.max_late_ms:
        share = counts.late.over(int(pace.max_late_ms * 1e3)) / intended
        doubts.append(
            f"the driver could not keep up: {share:.1%} of the requests were sent more than "
            f"{pace.max_late_ms:g} ms late (p99 {late.p99:,.1f} ms). It needs a core of its own, "
            "or a lower rate"
        )
    return doubts


def misses(trial: Trial, p99_ms: float, max_error_share: float) -> list[str]:
    """Why a run does not meet a latency objective; empty: it does."""
    failed = sum(trial.errors.values()) + trial.unanswered
    found: list[str] = []
    if trial.gave_up:
        found.append("fell behind")
    elif trial.latency_ms.p99 > p99_ms:
        found.append("too slow")
    if failed > max_error_share * trial.intended:
        found.append(f"{failed:,} errors")
    if trial.invalid:
        found.append("driver late" if trial.answered else "no answers")
    return found


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
