"""The account of a whole run: journals, logs and leftovers together, and whether all is well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from askonce_loadtest.chaos import journal
from askonce_loadtest.chaos.calls_audit import CallsAccount, Circumstances, audit_calls
from askonce_loadtest.chaos.cluster_store import FAILOVERS, LAST_WRITES_S
from askonce_loadtest.chaos.costs import Cost, costs_of
from askonce_loadtest.chaos.driver import Run
from askonce_loadtest.chaos.evidence import (
    MARGIN_S,
    Done,
    Epochs,
    Span,
    Violation,
    model_trouble,
    store_trouble,
)
from askonce_loadtest.chaos.fleet import Life
from askonce_loadtest.chaos.jobs_audit import JobsAccount, audit_jobs
from askonce_loadtest.chaos.plan import Plan
from askonce_loadtest.chaos.worker_logs import Call, Complaint, End, read_log
from askonce_loadtest.chaos.workload import Asked
from askonce_worker.build import build_tasks, open_models
from askonce_worker.config import load_settings

VIOLATIONS: Mapping[str, str] = {
    "lost": "accepted jobs without a reply",
    "unsettled": "jobs that could never be enqueued",
    "doubled": "replies handed twice to one client incarnation",
    "settled_twice": "jobs that were enqueued once and settled more than once",
    "wrong": "answers of another question, errors without a cause",
    "stale": "answers served after their invalidation",
    "fills_above": "model calls above the formula of invariant 2",
    "takeovers": "leases taken over from leaders that nothing had happened to",
    "unrecorded_calls": "calls that reached the model without a recorded reason",
    "condemned": "jobs called poisonous that are not",
    "malformed": "malformed entries without a dead letter or an error reply",
    "leases": "leaked leases",
    "consumers": "leaked consumers and heartbeats",
    "tasks": "leaked tasks",
    "connections": "leaked connections",
    "keys": "keys outside the allow-list",
    "records": "records of jobs and clients that are settled",
    "exits": "processes that ended by themselves, or would not end",
    "complaints": "errors and tracebacks in workers' logs",
    "clock": "the wall clock was set: logs cannot be read",
}
"""Every kind of violation: there may be none of any."""
LOSSES = ("lose-answers", "lose-stamps", "memory-pressure")
LEAKED = ("Task was destroyed", "never retrieved", "never awaited", "Unclosed")


class Report(msgspec.Struct, kw_only=True):
    """What a run is reported as. Times in `done` are seconds since the load began."""

    ok: bool
    seed: int
    plan: Plan
    counts: dict[str, int]
    violations: dict[str, int]
    """By kind; all are 0 when `ok`."""
    found: list[Violation]
    """The violations themselves."""
    calls: dict[str, int]
    """Model calls by reason."""
    flights: dict[str, int]
    """Flights that had a lease, by how they ended."""
    sources: dict[str, int]
    errors: dict[str, int]
    latency_s: dict[str, float]
    costs: dict[str, Cost]
    """What each kind of fault costs."""
    processes: dict[str, int]
    """How worker and producer processes ended."""
    faults: dict[str, int]
    """Faults carried out, by kind."""
    schedule: list[Done]
    folder: str
    took_s: float


async def make_report(plan: Plan, run: Run, took_s: float) -> Report:
    """Read everything that a run has left behind."""
    done = run.faults.done
    jobs = audit_jobs(
        {
            path.stem: journal.read_journal(path, journal.producer_lines)
            for path in sorted(run.folder.glob("producer-*.jsonl"))
        },
        {} if plan.cluster else run.settled,  # a failover may undo a settle, and have it repeated
        Epochs(run.faults.invalidating.done),
        model_trouble(done),
    )
    logged, calls, complaints = await _calls(plan, run, jobs)
    found = [*jobs.violations, *calls.violations, *run.violations, *complaints]
    kinds = Counter(one.kind for one in found)
    assert set(kinds) <= set(VIOLATIONS), kinds
    return Report(
        ok=not found,
        seed=plan.seed,
        plan=plan,
        counts=jobs.counts
        | {
            "invalidations": len(run.faults.invalidating.done),
            "malformed": len(run.faults.malformed.added),
            "keys_asked": calls.keys,
            "tapped": len(run.settled),
        },
        violations={kind: kinds[kind] for kind in VIOLATIONS},
        found=found,
        calls=calls.by_reason,
        flights=calls.ends,
        sources=jobs.sources,
        errors=jobs.errors,
        latency_s=_percentiles(sorted(wait_s for _, wait_s in jobs.waits_s)),
        costs=costs_of(done, jobs.waits_s, logged),
        processes=dict(
            Counter(
                f"{life.name.partition('-')[0]}s {life.how}"
                for life in (*run.worker_lives, *run.producer_lives)
            )
        ),
        faults=dict(Counter(one.fault.kind for one in done if not one.failed)),
        schedule=[_since(one, run.load_began) for one in done],
        folder=str(run.folder),
        took_s=round(took_s, 1),
    )


async def _calls(
    plan: Plan, run: Run, jobs: JobsAccount
) -> tuple[list[Call], CallsAccount, list[Violation]]:
    calls: list[Call] = []
    ends: list[End] = []
    complaints: list[Violation] = []
    for life in run.worker_lives:
        for line in read_log(life.log, life.name, run.wall_minus_monotonic_s):
            match line:
                case Call():
                    calls.append(line)
                case End():
                    ends.append(line)
                case Complaint():
                    complaints += _judge(life, line)
    losses = [
        Span(one.began, one.ended) for one in run.faults.done if one.fault.kind in _losses(plan)
    ] + [
        Span(one.began - LAST_WRITES_S, one.ended)
        for one in run.faults.done
        if one.fault.kind in FAILOVERS
    ]
    circumstances = Circumstances(
        losses,
        run.faults.invalidating.done,
        store_trouble(run.faults.done),
        model_trouble(run.faults.done),
        [Span(life.ended, life.ended + MARGIN_S) for life in run.worker_lives],
        {life.name: life.drain_began for life in run.worker_lives if life.drain_began is not None},
    )
    received = journal.read_journal(run.folder / "model.jsonl", journal.model_calls)
    texts = await _texts(run.folder / "askonce.toml", jobs.asked)
    return calls, audit_calls(calls, ends, texts, circumstances, received), complaints


def _losses(plan: Plan) -> Sequence[str]:
    """The kinds of faults that lose answers; without an fsync each, a store's crash is one."""
    return LOSSES if plan.appendfsync == "always" else (*LOSSES, "kill-store")


def _judge(life: Life, complaint: Complaint) -> list[Violation]:
    if life.how == "no store" or complaint.text.startswith("askonce: the store "):
        return []  # it says so, and is started again, unless it is killed as it leaves
    kind = "tasks" if any(word in complaint.text for word in LEAKED) else "complaints"
    return [Violation(kind, f"{life.name}: {complaint.text}", str(life.log))]


async def _texts(config: Path, asked: Mapping[str, Asked]) -> dict[str, Asked]:
    """What each cache key asks, made as workers make it."""
    settings = load_settings(config)
    async with open_models(settings) as backends:
        tasks = build_tasks(settings, backends)
    return {tasks[one.task].key_maker.text_key(one.text).hex(): one for one in set(asked.values())}


def _percentiles(latencies_s: Sequence[float]) -> dict[str, float]:
    if not latencies_s:
        return {}
    last = len(latencies_s) - 1
    return {
        name: round(latencies_s[int(share * last)], 4)
        for name, share in {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}.items()
    }


def _since(done: Done, began: float) -> Done:
    return msgspec.structs.replace(
        done, began=round(done.began - began, 3), ended=round(done.ended - began, 3)
    )
