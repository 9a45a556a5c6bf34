"""The tables of the configuration file, as structs. A stable interface: extend, don't rename.

Faults of a single table are found here; what needs the whole file is in `config.py`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, field

from askonce_queue.pressure import MAX_MEMORY_SHARE
from askonce_worker.config_listen import ListenAddress, parse_listen
from askonce_worker.config_units import Amount, Bytes, Count, Duration, Seconds, Stale, check_json

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""What names of tasks, models and pools look like: they stand in keys, logs and command lines."""

Weight = Annotated[int, Meta(gt=0, le=1000)]
NormalizeStep = Literal["nfkc", "nfc", "whitespace", "casefold"]


class EmbeddedConfig(msgspec.Struct, frozen=True):
    """`[embedded]`: the store that runs when there is no `[redis]`."""

    folder: str = ".askonce"
    """Its state folder, relative to the configuration file."""
    maxmemory: Bytes = Bytes(1 << 30)


class CostsConfig(msgspec.Struct, frozen=True):
    """`[costs]`: what else `askonce stats` has to know to say what an answer costs."""

    currency: Annotated[str, Meta(min_length=1, max_length=8)] = "USD"
    """What all prices are in. Only shown: nothing is converted."""
    store_per_hour: Amount | None = None
    """What the store costs."""


class CacheConfig(msgspec.Struct, frozen=True):
    """`cache = {…}` of a task."""

    ttl_s: Seconds = field(name="ttl", default=Seconds(86400))
    """How long the store keeps an answer."""
    memory_ttl_s: Seconds = field(name="memory_ttl", default=Seconds(300))
    """How long a worker's memory keeps it."""
    cacheable: bool = True
    """Whether answers are kept at all. To be stated when `temperature` is not 0."""
    deterministic: bool = False
    """Whether answers are kept also of jobs that ask for another temperature than 0."""
    ttl_by_label_s: dict[str, Seconds] = field(name="ttl_by_label", default_factory=dict)
    """Label → how long the store keeps such an answer, instead of `ttl`."""
    jitter: Annotated[float, Meta(ge=0, le=0.5)] = 0.1
    """The share of a TTL by which it may be shortened, so that answers do not expire together."""
    stale_while_revalidate_s: Stale = field(name="stale_while_revalidate", default=Stale(0))
    """How long after its TTL an answer is served while one worker refreshes it."""
    stale_if_error_s: Stale = field(name="stale_if_error", default=Stale(0))
    """How long after its TTL an answer is served when the model fails."""
    min_confidence: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Answers with a lower score are not kept."""
    never_cache_labels: tuple[str, ...] = ()
    """Labels of answers that are not kept."""
    hit_for_miss_s: Stale = field(name="hit_for_miss", default=Stale(10))
    """How long everybody asks for themselves after an answer that was not kept."""
    sources: tuple[str, ...] = ()
    """What every answer is built on, `[sources.NAME]`: a document, an index. By these it can be
    invalidated."""
    verify_share: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """The share of hits that the model is asked again for, to see whether it still says so."""
    max_disagreement: Annotated[float, Meta(gt=0, lt=1)] | None = None
    """When more of the hits differ from a fresh answer, answers are kept for less time."""

    def __post_init__(self) -> None:
        if self.max_disagreement is not None and not self.verify_share:
            raise ValueError("max_disagreement: expected a verify_share above 0 beside it")


class SourceConfig(msgspec.Struct, frozen=True):
    """`[sources.NAME]`: what answers are built on, and what that is built on in turn."""

    depends_on: tuple[str, ...] = ()
    """Names of other sources: when one of them is invalidated, so is this one."""


class HitLogConfig(msgspec.Struct, frozen=True):
    """`[tasks.NAME.hit_log]`: which hits people get to see, and what of them."""

    share: Annotated[float, Meta(ge=0, le=1)] = 0.01
    """The share of distinct questions whose hits are logged in an hour; 0: none."""
    input: Literal["redacted", "hash"] = "redacted"
    """What is kept of the input: its text without personal data, or no more than the cache key."""
    tenant: bool = False
    """Whether it says whose question it was."""


class BudgetConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`[tasks.NAME.budget]`: what calls for one task may cost a day, in the currency of `[costs]`.

    A day begins at 0:00 UTC, by the store's clock.
    """

    per_day: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    """Past it no model is asked any more; answers that are known are still served. None: no end."""
    warn_at: Annotated[float, Meta(gt=0, le=1)] = 0.8
    """The share of it from which on a warning is given."""


class TaskConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`[tasks.NAME]`: one classification."""

    model: str
    system: str | None = None
    """The system prompt: as given, or read from `system_file`."""
    system_file: str | None = None
    labels: Annotated[tuple[Annotated[str, Meta(min_length=1)], ...], Meta(min_length=1)] = ()
    """What the model may answer; empty: anything."""
    temperature: Annotated[float, Meta(ge=0, le=2)] | Literal["default"] = 0.0
    """`"default"` sends none: some models accept no other than their own."""
    max_tokens: Count | None = None
    normalize: tuple[NormalizeStep, ...] = ()
    params: dict[str, Any] = {}
    """Further request parameters."""
    cache: CacheConfig = CacheConfig()
    max_input_bytes: Bytes = Bytes(64 << 10)
    shared: bool = False
    """Whether tenants share answers."""
    hit_log: HitLogConfig = HitLogConfig()
    fallback: str | None = None
    """The model that is asked while `model` is unavailable; its answers are kept apart."""
    budget: BudgetConfig = BudgetConfig()

    def __post_init__(self) -> None:
        if self.system is not None and self.system_file is not None:
            raise ValueError("system_file: expected none beside system")
        for index, label in enumerate(self.labels):
            if label in self.labels[:index]:
                raise ValueError(f"labels: expected distinct ones, got {label!r} twice")
        try:
            check_json(self.params)
        except ValueError as error:
            raise ValueError(f"params: {error}") from error


class LaneWeights(msgspec.Struct, frozen=True):
    """`[worker.lanes]`: how lanes share what is scarce, while both want it."""

    interactive: Weight = 4
    bulk: Weight = 1

    def share(self, lane: str) -> float:
        """The part of a lane, from 0 to 1."""
        mine = self.bulk if lane == "bulk" else self.interactive
        return mine / (self.interactive + self.bulk)


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`[worker]`: the bounds of a worker process."""

    pool: Annotated[str, Meta(pattern=f"^{NAME.pattern}$")] = "default"
    batch: Count = 500
    """Jobs fetched at once."""
    memory_bytes: Bytes = Bytes(64 << 20)
    """The memory tier's size."""
    max_held: Count = 20_000
    """Deliveries held at once."""
    max_waiting: Count | None = None
    """Deliveries held from which on those that their model has no room for are deferred.

    Half of `max_held` if it is not given.
    """
    lanes: LaneWeights = LaneWeights()
    """How the lanes share fetches, model slots and room, while both want them."""
    max_deferred: Count = 1_000_000
    """Jobs deferred in one stream; past it they get an error."""
    heartbeat_ttl_s: Duration = 10.0
    lease_ttl_s: Duration = 10.0
    lease_renew_s: Duration = 3.0
    drain_s: Duration = 20.0
    """On SIGTERM, how long jobs that were started may take to finish."""
    stamp_bound_s: Duration = 0.5
    """How long after an invalidation a worker's memory may still serve what it dropped."""
    max_attempts: Count = 4
    """Model calls for one question before it is answered with an error."""
    max_backlog: Count = 1_000_000
    """Unsettled jobs in one stream before enqueueing is refused."""
    max_unread: Count = 100_000
    """Replies owed to one client before enqueueing is refused."""
    max_memory_share: Annotated[float, Meta(gt=0, le=1)] = MAX_MEMORY_SHARE
    """The part of the store's maxmemory that jobs, replies and all else that cannot be evicted may
    take before enqueueing is refused."""
    max_dead: Count = 10_000
    """Dead letters kept in one shard; the oldest are dropped, and counted."""
    max_hits: Count = 2_000
    """Sampled hits kept in one shard for people to judge; the oldest are dropped, and counted."""
    hit_retain_s: Annotated[float, Meta(gt=0, le=366 * 86_400)] = 14 * 86_400.0
    """How long they are kept."""
    poison_limit: Count = 2
    """How often a job that was tried alone may kill its worker before it is a dead letter."""
    remember_rejection_s: Duration = 60.0
    """How long a question that the model rejected is not asked again."""
    remember_exhausted_s: Duration = 5.0
    """How long a question that failed `max_attempts` times is not asked again."""
    client_retain_s: Annotated[float, Meta(gt=0)] = 86_400.0
    """How long the unread replies of a client that vanished are kept."""
    sweep_every_s: Duration = 30.0
    """How often leftovers of dead workers and clients are looked for."""
    listen: str = ""
    """Where `/livez`, `/readyz` and `/metrics` are served: IP address and port; port 0 is any free
    one, empty is nowhere. The second of several processes takes the next port, and so on."""
    max_read_age_s: Annotated[float, Meta(ge=10, le=86_400)] = 60.0
    """How long a shard that could be read may be left unread before `/livez` says to restart."""
    max_loop_lag_s: Annotated[float, Meta(ge=1, le=3_600)] = 5.0
    """How late the event loop may be, again and again, before `/livez` says to restart."""
    log: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning"] = "info"
    """What is logged: from `debug` on also every model call with its reason."""

    def __post_init__(self) -> None:
        if self.lease_renew_s > self.lease_ttl_s / 2:
            raise ValueError("lease_renew_s: expected at most half of lease_ttl_s")
        if self.max_waiting is not None and self.max_waiting >= self.max_held:
            raise ValueError("max_waiting: expected less than max_held, or no hit gets past")
        try:
            _ = self.listen_address
        except ValueError as error:
            raise ValueError(f"listen: {error}") from error

    @property
    def most_waiting(self) -> int:
        """`max_waiting`, or what it is if it is not given."""
        return self.max_waiting or max(1, self.max_held // 2)

    @property
    def listen_address(self) -> ListenAddress | None:
        """Where to listen; None: nowhere."""
        return parse_listen(self.listen) if self.listen else None
