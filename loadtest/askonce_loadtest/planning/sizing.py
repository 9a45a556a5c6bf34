"""From traffic and constants to processes, connections, memory and money; and what is scarce."""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec

from askonce_loadtest.planning.constants import Constants
from askonce_loadtest.planning.target import Target
from askonce_loadtest.planning.traffic import Traffic, traffic_of
from askonce_queue.shards import MAX_SHARDS
from askonce_worker.cache.entry import MEMORY_OVERHEAD_BYTES
from askonce_worker.cache.memory import ENTRY_OVERHEAD_BYTES

SHARDS_PER_PRIMARY = 4
CONNECTIONS_TO_SERVER = 16
"""Of a worker's or client's pool to one server, at most; beside them one reads each shard."""
MAX_CLIENTS = 10_000
"""Connections that a server accepts unless told otherwise (`maxclients`)."""
ANSWER_BYTES = 100
JOB_BYTES = 400
"""Of an unanswered job in the store, beside its text: stream entry, id record, what is owed."""
SECONDS_PER_MONTH = 730 * 3600
_ROUNDS = 50


class Line(msgspec.Struct, frozen=True):
    """One figure of a plan: what, how much, of what, and how it was computed."""

    name: str
    value: float
    unit: str
    formula: str


class Need(NamedTuple):
    """Why a number of processes is needed: so many of them because of `reason`."""

    reason: str
    processes: int
    advice: str


class Sizing(msgspec.Struct, frozen=True, tag="plan", tag_field="kind"):
    """A plan."""

    lines: list[Line]
    bottleneck: str
    advice: str
    warnings: list[str]
    target: Target
    machine: dict[str, str | float]

    def value(self, name: str) -> float:
        """A figure by its name."""
        return next(line.value for line in self.lines if line.name == name)


class Load(NamedTuple):
    """Cores that are busy."""

    worker: float
    store: float
    producer: float


def load_of(traffic: Traffic, constants: Constants, text_bytes: float) -> Load:
    """The CPU that `traffic` takes, in cores."""
    c, kib = constants, (text_bytes - constants.text_bytes) / 1024
    worker = (
        traffic.memory * c.worker_cpu_us_per_job
        + traffic.store * c.worker_cpu_us_per_store_hit
        + traffic.model * c.worker_cpu_us_per_model_call
        + traffic.rate * kib * c.worker_cpu_us_per_kib
    )
    store = (
        traffic.memory * c.store_cpu_us_per_job
        + traffic.store * c.store_cpu_us_per_store_hit
        + traffic.model * c.store_cpu_us_per_model_call
        + traffic.rate * kib * c.store_cpu_us_per_kib
    )
    return Load(
        max(worker, 0.0) / 1e6,
        max(store, 0.0) / 1e6,
        traffic.rate * c.producer_cpu_us_per_job / 1e6,
    )


def size(target: Target, constants: Constants) -> Sizing:
    """Compute the plan."""
    entries = int(
        target.worker_memory_bytes / (ENTRY_OVERHEAD_BYTES + MEMORY_OVERHEAD_BYTES + ANSWER_BYTES)
    )
    workers, traffic = 1, traffic_of(target, 1, entries)
    needs = _workers(target, traffic, constants)
    for _ in range(_ROUNDS):  # more workers hit their memories less, and so need more of them
        most = max(need.processes for need in needs)
        if most <= workers:
            break
        workers = most
        traffic = traffic_of(target, workers, entries)
        needs = _workers(target, traffic, constants)
    return _sizing(target, constants, traffic, workers, needs)


def _processes(cores: float, headroom: float) -> int:
    """Each is one thread, on one core."""
    return max(1, math.ceil(cores / (1 - headroom) - 1e-9))


def _workers(target: Target, traffic: Traffic, constants: Constants) -> list[Need]:
    cores = load_of(traffic, constants, target.text_bytes).worker
    in_flight = traffic.model * target.model_latency_s
    slots = math.ceil(in_flight / (target.model_slots * (1 - target.headroom)) - 1e-9)
    return [
        Need(
            "worker CPU",
            _processes(cores, target.headroom),
            "add workers; a higher hit rate helps most, since a model call costs a worker "
            f"{constants.worker_cpu_us_per_model_call / constants.worker_cpu_us_per_job:.0f} "
            "times what a hit does",
        ),
        Need(
            "model slots",
            max(1, slots),
            "raise max_concurrency of the model: its calls wait, they cost a worker nothing "
            "meanwhile",
        ),
    ]


def _net_bytes(target: Target, constants: Constants) -> float:
    """Of one request, on the store's connections: the text goes in once and out once."""
    return constants.store_net_bytes_per_job + 2 * (target.text_bytes - constants.text_bytes)


def _primaries(
    target: Target, traffic: Traffic, constants: Constants, store_bytes: float
) -> list[Need]:
    room = 1 - target.headroom
    cores = load_of(traffic, constants, target.text_bytes).store
    gbit = target.rate * _net_bytes(target, constants) * 8 / 1e9
    return [
        Need(
            "store CPU",
            _processes(cores, target.headroom),
            "add primaries: scripts run on one core of each; larger memory tiers and "
            "memory_ttl spare it look-ups",
        ),
        Need(
            "store memory",
            max(1, math.ceil(store_bytes / (target.primary_memory_bytes * room) - 1e-9)),
            "give primaries more memory, or answers a shorter TTL",
        ),
        Need(
            "store network",
            max(1, math.ceil(gbit / (target.network_gbit * room) - 1e-9)),
            "send shorter texts, or add primaries on other machines",
        ),
    ]


def _sizing(
    target: Target, constants: Constants, traffic: Traffic, workers: int, needs: list[Need]
) -> Sizing:
    load = load_of(traffic, constants, target.text_bytes)
    answers = traffic.stored * constants.store_bytes_per_answer
    backlog = target.rate * target.backlog_s * (JOB_BYTES + target.text_bytes)
    store_needs = _primaries(target, traffic, constants, answers + backlog)
    primaries = max(need.processes for need in store_needs)
    shards = 1 if primaries == 1 else min(MAX_SHARDS, primaries * SHARDS_PER_PRIMARY)
    producers = _processes(load.producer, target.headroom)
    of_each = CONNECTIONS_TO_SERVER + math.ceil(shards / primaries) + 1
    connections = (workers + producers) * of_each
    in_flight = traffic.model * target.model_latency_s
    calls = traffic.model * SECONDS_PER_MONTH * target.price_per_call
    store_money = primaries * (1 + target.replicas) * target.store_price_per_hour * 730
    worker_money = workers * target.worker_price_per_hour * 730
    uncached = target.rate * SECONDS_PER_MONTH * target.price_per_call
    net = target.rate * _net_bytes(target, constants) * 8 / 1e9
    r = target.rate
    lines = [
        Line("hit rate", 1 - traffic.model / r, "", "1 - model calls / rate"),
        Line(
            "model calls",
            traffic.model,
            "/s",
            "rate · (1 - hit rate)" if target.hit_rate is not None else "Σ λᵢ / (1 + λᵢ·TTL)",
        ),
        Line("answered by memory", traffic.memory, "/s", "Σ of what workers' memories hold"),
        Line("answered by the store", traffic.store, "/s", "rate - memory - model calls"),
        Line("model calls in flight", in_flight, "", "model calls · latency (Little)"),
        Line("worker CPU", load.worker, "cores", "Σ tier rate · µs of that tier"),
        Line("workers", workers, "", _why(needs)),
        Line("producers", producers, "", "⌈rate · µs of a producer / (1 - headroom)⌉"),
        Line("store CPU", load.store, "cores", "Σ tier rate · µs of that tier"),
        Line("answers stored", traffic.stored, "", "Σ λᵢ·TTL / (1 + λᵢ·TTL)"),
        Line("store memory", (answers + backlog) / 2**30, "GiB", "answers · bytes + backlog"),
        Line("store network", net, "Gbit/s", "rate · bytes a job on the wire · 8"),
        Line("primaries", primaries, "", _why(store_needs)),
        Line("shards", shards, "", f"{SHARDS_PER_PRIMARY} · primaries; 1 for one"),
        Line(
            "store processes", primaries * (1 + target.replicas), "", "primaries · (1 + replicas)"
        ),
        Line("connections to a primary", connections, "", "processes · (16 + its shards + 1)"),
        Line("model money", calls, "/month", "model calls · price"),
        Line("store and worker money", store_money + worker_money, "/month", "processes · price"),
        Line("without a cache", uncached, "/month", "rate · price"),
    ]
    scarce, warnings = _scarce([*needs, *store_needs], traffic, target)
    if connections > MAX_CLIENTS * (1 - target.headroom):
        warnings.append(
            f"{connections:,} connections to each primary: raise its maxclients ({MAX_CLIENTS:,})"
        )
    if primaries * SHARDS_PER_PRIMARY > MAX_SHARDS:
        warnings.append(
            f"{primaries} primaries would need more than {MAX_SHARDS} shards: use several stores"
        )
    return Sizing(lines, scarce.reason, scarce.advice, warnings, target, constants.machine)


def _scarce(needs: list[Need], traffic: Traffic, target: Target) -> tuple[Need, list[str]]:
    """What asks for most processes; what the model's provider refuses comes before that."""
    allowed = target.model_calls_per_minute
    calls = traffic.model * 60
    if allowed is not None and calls > allowed:
        missing = f"{calls:,.0f} model calls a minute, and {allowed:,.0f} are allowed"
        advice = "a longer TTL, or a higher limit; requests beyond it wait in the deferred stream"
        return Need("the model's rate limit", 0, advice), [missing]
    return max(needs, key=lambda need: need.processes), []


def _why(needs: list[Need]) -> str:
    return "the most of: " + ", ".join(f"{need.processes:,} for {need.reason}" for need in needs)
