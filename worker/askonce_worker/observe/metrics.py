"""Prometheus metrics of one worker, made from what it counts and knows when they are asked for.

Nothing is measured for them on the way of a job. The values of labels come from the configuration
or the code, never from a job. Names follow prometheus.io/docs/practices/naming; docs/METRICS.md is
the list for people.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from askonce_worker.observe.backlog import Backlog, LaneState
from askonce_worker.observe.counters import Counters
from askonce_worker.observe.families import BY_TASK, BY_WORKER, Family
from askonce_worker.observe.fields import WORKER
from askonce_worker.observe.health import Health, ModelVitals, Signs, Verdict, Vitals
from askonce_worker.observe.histogram import CALL_BOUNDS_S, Histogram

_CIRCUITS = ("closed", "half_open", "open")


class WorkerMetrics(Collector):
    """Collects what one worker counts and knows. `models` maps each task to its model."""

    def __init__(
        self,
        counters: Counters,
        health: Health,
        lag: Histogram,
        backlog: Backlog,
        models: Mapping[str, str],
    ) -> None:
        self._counters = counters
        self._health = health
        self._lag = lag
        self._backlog = backlog
        self._models = models
        self._version = version("askonce")

    def collect(self) -> Iterator[Metric]:
        """Every metric, with its value of now."""
        counts = self._counters.since_start()
        for family in BY_TASK:
            yield self._counted(family, counts, self._models)
        for family in BY_WORKER:
            yield self._counted(family, counts, {WORKER: ""})
        signs, verdict = self._health.signs(), self._health.ready()
        yield self._call_durations(signs)
        yield from self._of_worker(signs, verdict)
        yield from _of_quotas(vitals=signs.vitals)
        yield from self._of_process(signs)
        yield from self._of_store()

    def _counted(
        self, family: Family, counts: Mapping[tuple[str, str], int], models: Mapping[str, str]
    ) -> CounterMetricFamily:
        labels = [*family.by, *([family.label] if family.label else [])]
        metric = CounterMetricFamily(family.name, family.help, labels=labels)
        for task, model in models.items():
            for counter, value in family.counters.items():
                given = {"task": task, "model": model, family.label: value}
                amount = counts.get((task, counter), 0)
                metric.add_metric(
                    [given[label] for label in labels],
                    amount / family.parts if family.parts > 1 else amount,
                )
        return metric

    def _call_durations(self, signs: Signs) -> HistogramMetricFamily:
        metric = HistogramMetricFamily(
            "askonce_model_call_duration_seconds",
            "How long model calls took, failed ones included.",
            labels=["model"],
        )
        called = {*self._models.values(), *signs.vitals.slots_in_use}  # fallbacks too
        for model in sorted(called):
            durations = self._counters.call_durations.get(model) or Histogram(CALL_BOUNDS_S)
            metric.add_metric([model], *_histogram(durations))
        return metric

    def _of_worker(self, signs: Signs, verdict: Verdict) -> Iterator[Metric]:
        vitals = signs.vitals
        info = InfoMetricFamily("askonce_worker", "The worker that tells this.")
        info.add_metric([], {"version": self._version, "pool": self._backlog.pool})
        yield info
        yield _gauge("askonce_worker_ready", "1 if /readyz says so.", float(verdict.ok))
        reachable = GaugeMetricFamily(
            "askonce_store_reachable",
            "1 if the store answered for a shard when it was last asked.",
            labels=["shard"],
        )
        read_age = GaugeMetricFamily(
            "askonce_last_read_age_seconds",
            "Age of the last successful fetch from a shard.",
            labels=["shard"],
        )
        outbox = GaugeMetricFamily(
            "askonce_outbox_replies", "Replies not yet settled in the store.", labels=["shard"]
        )
        for shard in vitals.shards:
            reachable.add_metric([shard.tag], float(not shard.unreachable))
            outbox.add_metric([shard.tag], shard.outbox)
            if shard.read_age_s is not None:
                read_age.add_metric([shard.tag], shard.read_age_s)
        yield from (reachable, read_age, outbox)
        yield _gauge("askonce_deliveries_held", "Deliveries in hand, not settled.", vitals.held)
        yield _gauge("askonce_flights_in_progress", "Questions in progress.", vitals.flights)
        yield _gauge("askonce_leases_held", "Fill leases held.", vitals.leases)
        slots = GaugeMetricFamily(
            "askonce_model_slots_in_use",
            "Slots for calls that are taken, of its model's max_concurrency.",
            labels=["model"],
        )
        for model, in_use in vitals.slots_in_use.items():
            slots.add_metric([model], in_use)
        yield slots
        for name, text, part in (
            ("askonce_budget_spent", "Spent today (UTC) by all workers, as far as known.", 0),
            ("askonce_budget_per_day", "What may be spent a day, as configured.", 1),
        ):
            metric = GaugeMetricFamily(name, text, labels=["task"])
            for task, budget in vitals.budgets.items():
                metric.add_metric([task], budget[part])
            yield metric
        yield from self._of_models(vitals.models)

    def _of_models(self, models: Mapping[str, ModelVitals]) -> Iterator[Metric]:
        limit = GaugeMetricFamily(
            "askonce_model_concurrency_limit",
            "Calls at once that a model may be asked now.",
            labels=["model"],
        )
        state = GaugeMetricFamily(
            "askonce_model_breaker_state",
            "Whether a model is asked: 0 yes, 1 probes only, 2 no.",
            labels=["model"],
        )
        openings = CounterMetricFamily(
            "askonce_model_breaker_openings",
            "How often a model was held for dead.",
            labels=["model"],
        )
        probes = CounterMetricFamily(
            "askonce_model_probes", "Calls that tried whether a model is back.", labels=["model"]
        )
        for name, model in models.items():
            limit.add_metric([name], model.limit)
            state.add_metric([name], _CIRCUITS.index(model.circuit))
            openings.add_metric([name], model.openings)
            probes.add_metric([name], model.probes)
        yield from (limit, state, openings, probes)

    def _of_process(self, signs: Signs) -> Iterator[Metric]:
        vitals = signs.vitals
        yield _gauge("askonce_memory_tier_bytes", "Bytes in use.", vitals.memory_bytes)
        yield _gauge("askonce_memory_tier_entries", "Answers kept.", vitals.memory_entries)
        evictions = CounterMetricFamily(
            "askonce_memory_tier_evictions", "Answers dropped to make room for others."
        )
        evictions.add_metric([], vitals.memory_evictions)
        yield evictions
        lag = HistogramMetricFamily(
            "askonce_event_loop_lag_seconds", "How late the event loop was, twice a second."
        )
        lag.add_metric([], *_histogram(self._lag))
        yield lag
        tasks = len(asyncio.all_tasks())
        yield _gauge("askonce_event_loop_tasks", "Tasks of the event loop.", tasks)

    def _of_store(self) -> Iterator[Metric]:
        """What the backlog's loop has read; a shard that it could not read is left out."""
        pool, states = self._backlog.pool, self._backlog.states
        for name, text, value in _BY_LANE:
            metric = GaugeMetricFamily(name, text, labels=["pool", "shard", "lane"])
            for tag, state in states.items():
                for lane, lane_state in state.lanes.items():
                    metric.add_metric([pool, tag, lane], value(lane_state))
            yield metric
        dead = GaugeMetricFamily(
            "askonce_dead_letters", "Dead letters kept.", labels=["pool", "shard"]
        )
        for tag, state in states.items():
            dead.add_metric([pool, tag], state.dead_letters)
        yield dead


_BY_LANE: tuple[tuple[str, str, Callable[[LaneState], float]], ...] = (
    ("askonce_backlog_jobs", "Jobs not settled and not deferred.", lambda state: state.backlog),
    ("askonce_deferred_jobs", "Jobs deferred.", lambda state: state.deferred),
    ("askonce_pending_jobs", "Jobs in the hands of workers.", lambda state: state.pending),
    (
        "askonce_oldest_job_age_seconds",
        "Age of the oldest job; of a deferred one, since it was deferred.",
        lambda state: state.oldest_s,
    ),
)


class Exposition:
    """The text of all metrics: ours, and those of the process, the platform and its collector."""

    def __init__(self, metrics: WorkerMetrics) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(metrics)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """The body and its content type, in the format that `accept` (of the request) prefers."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


def _of_quotas(vitals: Vitals) -> Iterator[Metric]:
    """What this worker has of limits that workers share."""
    slots = GaugeMetricFamily(
        "askonce_model_limit_slots",
        "Slots of the shared limit that this worker has.",
        labels=["model"],
    )
    calls = CounterMetricFamily(
        "askonce_model_limit_calls_granted",
        "Calls of the shared limits that this worker was granted.",
        labels=["model"],
    )
    waited = CounterMetricFamily(
        "askonce_model_limit_wait_seconds",
        "Time in which something waited in this worker for a shared limit.",
        labels=["model"],
    )
    for model, quota in vitals.quotas.items():
        slots.add_metric([model], quota.slots)
        calls.add_metric([model], quota.calls)
        waited.add_metric([model], quota.waited_s)
    yield from (slots, calls, waited)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def _histogram(durations: Histogram) -> tuple[list[tuple[str, float]], float]:
    """Buckets and sum, as prometheus_client takes them."""
    bounds = [*map(str, durations.bounds_s), "+Inf"]
    return list(zip(bounds, map(float, durations.cumulative), strict=True)), durations.sum_s
