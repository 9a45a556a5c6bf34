"""From counts to the figures that `askonce stats` shows: of a task, a tenant, or all of them.

docs/STATS.md explains each, with its formula and limits. Names are stable: extend, don't rename.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from askonce_queue.queue_scripts import LANES
from askonce_worker.observe.counters import Counts
from askonce_worker.observe.fields import WORKER, of_lane, of_tenant, tenant_in
from askonce_worker.observe.money import NANO, Cost, cost_of
from askonce_worker.observe.verdict import Verdict, verdict_of
from askonce_worker.observe.windows import Cohort

HIT_SOURCES = ("memory", "store", "semantic", "coalesced", "stale")
"""Where an answer can come from without a model call of its own."""


class Tokens(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of model calls, as far as APIs report them, and those of calls that hits avoided."""

    input: int
    output: int
    saved_input: int
    saved_output: int


class LaneTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Calls for which a job of one lane was the first to ask, retries included."""

    calls: int
    input_tokens: int
    output_tokens: int
    spent: float


class NeverRead(msgspec.Struct, frozen=True, kw_only=True):
    """Answers that nobody was served from, beside those for whom they were made.

    `fills` are those whose time ended within the window, `never_read` those of them that expired or
    were evicted before any read; `rate` is their share, None without any. None for all three: they
    live too long for what is known. `not_read_yet` were filled within the window and may still be.
    """

    fills: int | None
    never_read: int | None
    rate: float | None
    not_read_yet: int


class TaskTotals(msgspec.Struct, kw_only=True):
    """What became of the jobs of one task, or of all, in a window or since the store was set up.

    `hits` by source; `misses` were answered by a model call of their own; `errors` got no answer.
    `model_calls` by reason and `failures` by code count calls, retries included. `hit_rate` is the
    share of hits in all answers, `stampede_rate` how many asks waited for somebody else's question
    for each miss; both None without any. `never_read` is only there for windows.
    `by_lane` are the lanes that led to calls; `fallbacks` counts the asks that waited for the
    fallback of their task.
    """

    hits: dict[str, int]
    misses: int
    errors: int
    waits: int
    fills: int
    first_reads: int
    model_calls: dict[str, int]
    failures: dict[str, int]
    hit_rate: float | None
    stampede_rate: float | None
    verdict: Verdict | None
    never_read: NeverRead | None
    tokens: Tokens
    cost: Cost
    by_lane: dict[str, LaneTotals]
    fallbacks: int

    @property
    def answered(self) -> int:
        """Jobs that got an answer."""
        return sum(self.hits.values()) + self.misses


class TenantTotals(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the asks of one tenant, over all tasks; `misses` are the calls it led to."""

    hits: int
    misses: int
    hit_rate: float | None
    tokens: Tokens
    cost: Cost


def by_task(counts: Counts) -> dict[str, Counts]:
    """The counts of each task, by name; those that belong to none are left out."""
    found: dict[str, Counts] = {}
    for key, amount in counts.items():
        if key[0] != WORKER and tenant_in(key[0]) is None:
            found.setdefault(key[0], Counter())[key] = amount
    return dict(sorted(found.items()))


def by_tenant(counts: Counts) -> dict[str, Counts]:
    """The counts of each tenant, those with the most answers first."""
    found: dict[str, Counts] = {}
    for key, amount in counts.items():
        tenant = tenant_in(key[0])
        if tenant is not None:
            found.setdefault(tenant, Counter())[key] = amount

    def rank(item: tuple[str, Counts]) -> tuple[int, str]:
        tenant, own = item
        key = of_tenant(tenant)
        return -own[key, "hits"] - own[key, "misses"], tenant

    return dict(sorted(found.items(), key=rank))


def totals_of(
    counts: Counts,
    *,
    never_read: NeverRead | None = None,
    store_per_answer: float | None = None,
) -> TaskTotals:
    """The figures of all tasks in `counts`. `store_per_answer`: see `money.store_share`."""
    sums: Counter[str] = Counter()
    for (task, name), amount in counts.items():
        if task != WORKER and tenant_in(task) is None:
            sums[name] += amount
    hits = {source: sums[source] for source in HIT_SOURCES}
    hit, misses = sum(hits.values()), sums["model"]
    answered = hit + misses
    return TaskTotals(
        hits=hits,
        misses=misses,
        errors=sums["errors"],
        waits=sums["waits"],
        fills=sums["fills"],
        first_reads=sums["first_reads"],
        model_calls=by_prefix(sums, "calls_"),
        failures=by_prefix(sums, "failures_"),
        hit_rate=_share(hit, answered),
        stampede_rate=_share(sums["waits"], misses),
        verdict=verdict_of(hit, answered),
        never_read=never_read,
        tokens=_tokens(sums),
        cost=cost_of(
            spent_nano=sums["spent_nano"],
            avoided_nano=sums["avoided_nano"],
            misses=misses,
            answered=answered,
            store_per_answer=store_per_answer,
        ),
        by_lane={lane: _lane(sums, lane) for lane in LANES if sums[of_lane(lane, "calls")]},
        fallbacks=sums["fallbacks"],
    )


def tenant_totals_of(counts: Counts, store_per_answer: float | None = None) -> TenantTotals:
    """The figures of the one tenant in `counts`."""
    sums = Counter({name: n for (_, name), n in counts.items()})
    hits, misses = sums["hits"], sums["misses"]
    return TenantTotals(
        hits=hits,
        misses=misses,
        hit_rate=_share(hits, hits + misses),
        tokens=_tokens(sums),
        cost=cost_of(
            spent_nano=sums["spent_nano"],
            avoided_nano=sums["avoided_nano"],
            misses=misses,
            answered=hits + misses,
            store_per_answer=store_per_answer,
        ),
    )


def never_read_of(cohorts: Iterable[Cohort | None], young: Iterable[Cohort]) -> NeverRead:
    """`cohorts`: what is over, None where that is not known; `young`: what was just filled."""
    known = [cohort for cohort in cohorts if cohort is not None]
    not_read_yet = sum(_unread(cohort) for cohort in young)
    if not known:
        return NeverRead(fills=None, never_read=None, rate=None, not_read_yet=not_read_yet)
    fills, unread = sum(cohort.fills for cohort in known), sum(map(_unread, known))
    return NeverRead(
        fills=fills, never_read=unread, rate=_share(unread, fills), not_read_yet=not_read_yet
    )


def by_prefix(sums: Counter[str], prefix: str) -> dict[str, int]:
    """The counters whose names begin with `prefix`, by what follows."""
    return {name.removeprefix(prefix): n for name, n in sums.items() if name.startswith(prefix)}


def _tokens(sums: Counter[str]) -> Tokens:
    return Tokens(
        input=sums["input_tokens"],
        output=sums["output_tokens"],
        saved_input=sums["saved_input_tokens"],
        saved_output=sums["saved_output_tokens"],
    )


def _lane(sums: Counter[str], lane: str) -> LaneTotals:
    return LaneTotals(
        calls=sums[of_lane(lane, "calls")],
        input_tokens=sums[of_lane(lane, "input_tokens")],
        output_tokens=sums[of_lane(lane, "output_tokens")],
        spent=sums[of_lane(lane, "spent_nano")] / NANO,
    )


def _unread(cohort: Cohort) -> int:
    return max(0, cohort.fills - cohort.first_reads)


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None
