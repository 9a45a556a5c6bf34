"""What `/metrics` says: names, labels, values, and that all of it is documented and bounded."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast, get_args

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as read_text

from askonce_queue.queue_scripts import LANES
from askonce_queue.reply import ErrorCode
from askonce_queue.store import Store
from askonce_worker import calls
from askonce_worker.clock import SystemClock
from askonce_worker.flights import FlightEnd
from askonce_worker.observe.backlog import Backlog, LaneState, ShardState
from askonce_worker.observe.counters import Counters
from askonce_worker.observe.families import BY_TASK, BY_WORKER
from askonce_worker.observe.health import (
    Health,
    Limits,
    ModelVitals,
    QuotaVitals,
    ShardVitals,
    Vitals,
)
from askonce_worker.observe.histogram import CALL_BOUNDS_S, Histogram
from askonce_worker.observe.lag import LoopLag
from askonce_worker.observe.metrics import Exposition, WorkerMetrics
from askonce_worker.pool.delivery import DeliveryEnd

ROOT = Path(__file__).resolve().parents[2]
WORKER = ROOT / "worker" / "askonce_worker"
MODELS = {"intent": "gpt", "tone": "gpt", "size": "local"}
LABELS = {
    *("task", "source", "end", "model", "reason", "code", "direction"),
    *("shard", "pool", "lane", "le", "version"),
    *("verdict", "change"),
}
NOT_SHOWN = {
    "model_calls",  # the sum of the reasons
    "without_store",  # a worker waits for its store; only the library goes on without
}
VITALS = Vitals(
    consumer="c",
    started=True,
    stopping=False,
    shards=(
        ShardVitals(tag="0", read_age_s=0.25, outbox=3),
        ShardVitals(tag="1", read_age_s=None, unreachable="refused"),
    ),
    held=7,
    flights=5,
    leases=4,
    slots_in_use={"gpt": 2, "local": 0},
    budgets={"intent": (3.5, 5.0)},
    quotas={"gpt": QuotaVitals(slots=3, calls=40, waited_s=1.5)},
    models={
        "gpt": ModelVitals(circuit="half_open", openings=2, probes=5, limit=4),
        "local": ModelVitals(circuit="closed", openings=0, probes=0, limit=32),
    },
    memory_bytes=1000,
    memory_entries=2,
    memory_evictions=6,
)


class Rig:
    """The metrics of a worker that does not exist."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.lag = LoopLag(SystemClock())
        self.store = Store("redis://127.0.0.1:1/0", shards=2)
        self.backlog = Backlog(self.store, "default")
        health = Health(lambda: VITALS, self.lag, Limits(60.0, 5.0), SystemClock())
        self.exposition = Exposition(
            WorkerMetrics(self.counters, health, self.lag.histogram, self.backlog, MODELS)
        )

    def families(self) -> dict[str, Metric]:
        body, _ = self.exposition.render("")
        return {family.name: family for family in read_text(body.decode())}

    def values(self, name: str) -> dict[tuple[str, ...], float]:
        """Label values, in the order of the labels' names → value of a sample."""
        return {
            tuple(value for _, value in sorted(sample.labels.items())): sample.value
            for family in self.families().values()
            for sample in family.samples
            if sample.name == name
        }


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    yield made
    await made.store.aclose()


# Counters


async def test_counters_are_there_from_the_start_and_count_by_task(rig: Rig) -> None:
    assert set(rig.values("askonce_misses_total").values()) == {0.0}
    assert rig.values("askonce_hits_total").keys() == {
        (source, task) for source in ("memory", "store", "coalesced", "stale") for task in MODELS
    }
    for task, name, amount in (
        *(("intent", "memory", 5), ("intent", "coalesced", 2), ("tone", "model", 3)),
        *(("size", "errors", 1), ("size", "waits", 8), ("size", "flights_fenced", 4)),
        *(("intent", "calls_takeover", 9), ("tone", "failures_timeout", 6)),
        *(("size", "leases_lost", 2), ("*", "jobs_buried", 11), ("*", "deliveries_reclaimed", 12)),
        ("*", "dead_letters_dropped", 13),
        ("*", "hits_dropped", 14),
    ):
        rig.counters.count(task, name, amount)
    assert rig.values("askonce_hits_total")["memory", "intent"] == 5
    assert rig.values("askonce_hits_total")["coalesced", "intent"] == 2
    assert rig.values("askonce_misses_total") == {("intent",): 0, ("tone",): 3, ("size",): 0}
    assert rig.values("askonce_errors_total")["size",] == 1
    assert rig.values("askonce_waits_total")["size",] == 8
    assert rig.values("askonce_flights_total")["fenced", "size"] == 4
    assert rig.values("askonce_fills_fenced_total")["size",] == 4
    assert rig.values("askonce_leases_lost_total")["size",] == 2
    assert rig.values("askonce_model_calls_total")["gpt", "takeover", "intent"] == 9
    assert rig.values("askonce_takeovers_total")["intent",] == 9
    assert rig.values("askonce_model_errors_total")["timeout", "gpt", "tone"] == 6
    assert rig.values("askonce_deliveries_total")["buried",] == 11
    assert rig.values("askonce_deliveries_reclaimed_total") == {(): 12}
    assert rig.values("askonce_dead_letters_dropped_total") == {(): 13}
    assert rig.values("askonce_logged_hits_dropped_total") == {(): 14}


async def test_what_is_flushed_to_the_store_stays_counted(rig: Rig) -> None:
    rig.counters.count("tone", "model", 3)
    rig.counters.totals += rig.counters._unflushed
    rig.counters._unflushed.clear()
    rig.counters.count("tone", "model")
    assert rig.values("askonce_misses_total")["tone",] == 4


async def test_no_label_has_a_value_that_is_not_known_beforehand(rig: Rig) -> None:
    before = rig.families()
    rig.counters.count("a task of somebody's job", "memory")
    rig.counters.count("tone", "failures_said by somebody's model")
    with rig.counters.model_call("a model of somebody's job") as begins:
        begins()
    after = rig.families()
    assert before.keys() == after.keys()
    for name in before:
        if name.startswith("askonce_"):
            labels = [[s.labels for s in families[name].samples] for families in (before, after)]
            assert labels[0] == labels[1]


def counted_names() -> Iterator[tuple[str, bool]]:
    """Every name under which the worker counts something, and whether it is only a prefix."""
    for path in WORKER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr != "count" or "counters" not in ast.unparse(node.func.value):
                continue
            name = node.args[1]
            if isinstance(name, ast.Constant):
                yield str(name.value), False
            elif isinstance(name, ast.JoinedStr):
                assert isinstance(name.values[0], ast.Constant)
                yield str(name.values[0].value), True
            elif isinstance(name, ast.Call):
                assert ast.unparse(name.func) == "of_lane", ast.unparse(name)
                yield "lane_", True
            else:
                assert ast.unparse(name) == "source", ast.unparse(node)


def test_all_that_is_counted_is_shown() -> None:
    shown = {counter for family in (*BY_TASK, *BY_WORKER) for counter in family.counters}
    found = set(counted_names())
    assert len(found) > 10
    for name, is_prefix in found:
        if is_prefix:
            assert any(counter.startswith(name) for counter in shown), name
        else:
            assert name in shown | NOT_SHOWN, name


def label_values(metric: str) -> set[str]:
    (family,) = [family for family in (*BY_TASK, *BY_WORKER) if family.name == metric]
    return set(family.counters.values())


def test_labels_have_all_the_values_that_the_code_knows() -> None:
    assert label_values("askonce_flights") == {end.value for end in FlightEnd}
    assert label_values("askonce_deliveries") == {end.value for end in DeliveryEnd}
    codes: set[str] = set()
    for path in [*(WORKER / "models").glob("*.py"), WORKER / "calls.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) in ("TransientFailure", "Rejection")
                and node.args
            ):
                codes |= set(re.findall(r"'([a-z_]+)'", ast.unparse(node.args[0])))
    assert {"timeout", "out_of_set"} <= codes <= label_values("askonce_model_errors")
    assert label_values("askonce_model_errors") <= set(get_args(ErrorCode))
    first = inspect.getsource(calls._reason).partition('"""')[2]
    reasons = re.findall(r"\"(\w+)\"", _assignments("reason") + first.partition('"""')[2])
    reasons += re.findall(r'Call\.of\(\w+, "(\w+)"\)', (WORKER / "verifier.py").read_text())
    assert label_values("askonce_model_calls") == set(reasons)


def _assignments(name: str) -> str:
    """What is assigned to a variable in calls.py."""
    lines = (WORKER / "calls.py").read_text().splitlines()
    return "\n".join(line for line in lines if line.strip().startswith(f"{name} = "))


# Model calls and lag


class StepClock:
    """A clock that only a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def wall_ms(self) -> float:
        return self.now * 1000


async def test_model_calls_are_timed_unless_they_are_cancelled(rig: Rig) -> None:
    clock = StepClock()
    rig.counters._clock = clock
    with rig.counters.model_call("gpt") as begins:
        clock.now += 20  # it waits for others
        begins()
        clock.now += 0.3
    with rig.counters.model_call("gpt"):
        clock.now += 30  # it never begins
    for seconds, ends in ((2.0, ValueError()), (50.0, asyncio.CancelledError())):
        with contextlib.suppress(type(ends)), rig.counters.model_call("gpt") as begins:
            begins()
            clock.now += seconds
            raise ends
    name = "askonce_model_call_duration_seconds"
    buckets = rig.values(f"{name}_bucket")
    assert buckets["0.25", "gpt"] == 0
    assert buckets["0.5", "gpt"] == 1
    assert buckets["2.5", "gpt"] == buckets["+Inf", "gpt"] == 2
    assert rig.values(f"{name}_count") == {("gpt",): 2, ("local",): 0}
    assert rig.values(f"{name}_sum")["gpt",] == pytest.approx(2.3)
    assert len(buckets) == 2 * (len(CALL_BOUNDS_S) + 1)


def test_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram((1.0, 2.0))
    for seconds in (0.5, 1.0, 1.5, 2.0, 99.0):
        histogram.observe(seconds)
    assert histogram.cumulative == [2, 4, 5]
    assert histogram.sum_s == 104.0


async def test_the_lag_of_the_loop(rig: Rig) -> None:
    rig.lag.record(0.3)
    buckets = rig.values("askonce_event_loop_lag_seconds_bucket")
    assert (buckets["0.25",], buckets["0.5",], buckets["+Inf",]) == (0, 1, 1)
    assert rig.values("askonce_event_loop_tasks")[()] >= 1


# Gauges


async def test_gauges_of_the_worker(rig: Rig) -> None:
    assert rig.values("askonce_worker_ready") == {(): 0}
    assert rig.values("askonce_store_reachable") == {("0",): 1, ("1",): 0}
    assert rig.values("askonce_last_read_age_seconds") == {("0",): 0.25}  # never is not 0
    assert rig.values("askonce_outbox_replies") == {("0",): 3, ("1",): 0}
    assert rig.values("askonce_model_slots_in_use") == {("gpt",): 2, ("local",): 0}
    assert rig.values("askonce_model_limit_slots") == {("gpt",): 3}
    assert rig.values("askonce_model_limit_calls_granted_total") == {("gpt",): 40}
    assert rig.values("askonce_model_limit_wait_seconds_total") == {("gpt",): 1.5}
    assert rig.values("askonce_model_breaker_state") == {("gpt",): 1, ("local",): 0}
    assert rig.values("askonce_model_breaker_openings_total") == {("gpt",): 2, ("local",): 0}
    assert rig.values("askonce_model_probes_total") == {("gpt",): 5, ("local",): 0}
    assert rig.values("askonce_model_concurrency_limit") == {("gpt",): 4, ("local",): 32}
    for name, value in (
        *(("deliveries_held", 7), ("flights_in_progress", 5), ("leases_held", 4)),
        *(("memory_tier_bytes", 1000), ("memory_tier_entries", 2)),
        ("memory_tier_evictions_total", 6),
    ):
        assert rig.values(f"askonce_{name}") == {(): value}


async def test_a_shard_that_was_not_read_has_no_backlog_rather_than_none(rig: Rig) -> None:
    assert rig.values("askonce_backlog_jobs") == {}
    lanes = {lane: LaneState(backlog=5, deferred=4, pending=2, oldest_s=1.5) for lane in LANES}
    rig.backlog.states["1"] = ShardState(lanes, dead_letters=9)
    assert rig.values("askonce_backlog_jobs") == {(lane, "default", "1"): 5 for lane in LANES}
    assert rig.values("askonce_deferred_jobs")["bulk", "default", "1"] == 4
    assert rig.values("askonce_pending_jobs")["bulk", "default", "1"] == 2
    assert rig.values("askonce_oldest_job_age_seconds")["bulk", "default", "1"] == 1.5
    assert rig.values("askonce_dead_letters") == {("default", "1"): 9}


async def test_an_outage_of_the_store_leaves_no_old_figure(rig: Rig) -> None:
    rig.backlog.states["0"] = ShardState({}, dead_letters=9)
    reading = asyncio.create_task(rig.backlog.run("0"))
    async with asyncio.timeout(20):
        while "0" in rig.backlog.states:  # noqa: ASYNC110 -- nothing tells that it has gone
            await asyncio.sleep(0.01)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


# The text


async def test_names_follow_the_conventions_of_prometheus(rig: Rig) -> None:
    body, content_type = rig.exposition.render("")
    assert content_type.startswith("text/plain; version=0.0.4")
    for family in read_text(body.decode()):
        if family.name.startswith("askonce_"):
            assert re.fullmatch(r"askonce(_[a-z]+)+", family.name)
            assert not re.search(r"_(ms|mb|kb|count|sum|bucket|total)$", family.name)
            assert family.type in ("counter", "gauge", "histogram")
            assert family.documentation.endswith(".")
            for sample in family.samples:
                assert sample.labels.keys() <= LABELS
        else:
            assert family.name.startswith(("process_", "python_"))
    names = rig.families().keys()
    assert {"process_cpu_seconds", "process_resident_memory_bytes", "python_info"} <= names


async def test_openmetrics_for_those_who_ask_for_it(rig: Rig) -> None:
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    body, content_type = rig.exposition.render(accept)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")
    read = cast("Any", openmetrics_parser).text_string_to_metric_families  # it has no types
    names = {family.name for family in read(body.decode())}
    assert {"askonce_hits", "askonce_worker", "askonce_model_call_duration_seconds"} <= names


# The list for people


def documented() -> dict[str, list[str]]:
    """Metric → its row in docs/METRICS.md: type, labels, description."""
    text = (ROOT / "docs" / "METRICS.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(askonce_\w+)`( †)? \| (.*) \|$", text, re.MULTILINE)
    found = {name: [part.strip() for part in rest.split("|")] for name, _, rest in rows}
    assert len(found) == len(rows)
    return found


async def test_docs_list_every_metric_with_its_type_and_labels(rig: Rig) -> None:
    lanes = {lane: LaneState() for lane in LANES}
    rig.backlog.states["0"] = ShardState(lanes, dead_letters=0)
    actual: dict[str, Any] = {}
    for family in rig.families().values():
        if family.name.startswith("askonce_"):
            kind = "info" if family.name.endswith("_info") else family.type
            name = f"{family.name}_total" if kind == "counter" else family.name
            actual[name] = kind, {label for s in family.samples for label in s.labels} - {"le"}
    table = documented()
    assert {
        name: (kind, {label for label in labels.split(", ") if label})
        for name, (kind, labels, _) in table.items()
    } == actual
    for counted in (*BY_TASK, *BY_WORKER):
        values = set(counted.counters.values()) - {""}
        if counted.label != "code":
            assert values <= set(re.findall(r"`(\w+)`", table[f"{counted.name}_total"][2]))
