"""What is wanted of a deployment."""

from __future__ import annotations

from typing import Annotated

import msgspec

Positive = Annotated[float, msgspec.Meta(gt=0)]
Amount = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(gt=0)]


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What `plan` is asked; the defaults are those of its options."""

    rate: Positive
    """Requests a second, at the peak."""
    distinct: Count
    """Distinct questions that are asked within a TTL."""
    ttl_s: Positive = 86_400.0
    """How long the store keeps an answer."""
    memory_ttl_s: Positive = 300.0
    """How long a worker's memory does."""
    model_latency_s: Positive = 0.5
    """Of one call, on average."""
    exponent: Amount = 1.0
    """Of the questions' Zipf distribution; 0: all are equally popular."""
    hit_rate: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    """Share of requests that no model call is made for; None: computed from the distribution."""
    memory_hit_rate: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    """Share of requests that a worker's memory answers; None: computed."""
    text_bytes: Positive = 90.0
    """Of a request's text, on average."""
    price_per_call: Amount = 0.0
    store_price_per_hour: Amount = 0.0
    """Of one store process, with its memory."""
    worker_price_per_hour: Amount = 0.0
    """Of one worker process: a core."""
    replicas: Annotated[int, msgspec.Meta(ge=0, le=10)] = 1
    """Of each primary."""
    headroom: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.4
    """The share of every process that is left idle at the peak."""
    primary_memory_bytes: Positive = 16 * 2**30
    """maxmemory of one primary."""
    worker_memory_bytes: Positive = 64 * 2**20
    """Of a worker's memory tier (`memory_bytes`)."""
    model_slots: Count = 256
    """Calls at once of one worker process (`max_concurrency`)."""
    model_calls_per_minute: Positive | None = None
    """What the model's provider allows, or nothing that is known."""
    network_gbit: Positive = 10.0
    """Of one store server."""
    backlog_s: Amount = 10.0
    """How many seconds of requests the store must be able to hold unanswered."""
