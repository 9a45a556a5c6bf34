"""What faults cost is counted from when jobs came, and how long they waited."""

from __future__ import annotations

from askonce_loadtest.chaos.costs import CALM, costs_of
from askonce_loadtest.chaos.evidence import Done
from askonce_loadtest.chaos.schedule import Fault
from askonce_loadtest.chaos.worker_logs import Call


def struck(kind: str, began: float, ended: float, *, failed: bool = False) -> Done:
    fault = Fault(at_s=began, kind=kind, target="x")
    return Done(fault=fault, began=began, ended=ended, failed=failed)


def called(reason: str, at: float) -> Call:
    return Call(at, "w", "question", "k", reason, 1, at, at + 1)


def test_jobs_and_calls_count_for_the_faults_they_came_in() -> None:
    done = [
        struck("kill", 10, 11),
        struck("kill", 30, 32),
        struck("slow", 31, 33),
        struck("odd", 50, 60, failed=True),
    ]
    waits = [(5.0, 0.1), (10.5, 2.0), (12.0, 0.5), (31.5, 4.0), (55.0, 0.2)]
    calls = [called("takeover", 10.5), called("retry", 33.5), called("fill", 31.0)]
    costs = costs_of(done, waits, calls)
    assert set(costs) == {CALM, "kill", "slow"}
    assert (costs["kill"].strikes, costs["kill"].jobs, costs["kill"].lasted_s) == (2, 2, 3.0)
    assert (costs["kill"].p50_s, costs["kill"].max_s) == (2.0, 4.0)
    assert (costs["kill"].takeovers, costs["kill"].retries) == (0.5, 0.5)
    assert (costs["slow"].jobs, costs["slow"].retries) == (1, 1.0)
    assert (costs[CALM].jobs, costs[CALM].max_s) == (2, 0.2)


def test_a_run_without_jobs_costs_nothing() -> None:
    assert costs_of([], [], [])[CALM].jobs == 0
