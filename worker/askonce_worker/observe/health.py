"""Whether a worker is alive and whether it is ready: the decisions, without any I/O.

*Live*, or to be restarted. A worker that is stuck answers nothing at all; this is about one that
still answers. Its event loop must keep up, and it must read every shard that it could read. It
could not while the store does not answer, while it holds all the jobs it may hold, or while it
waits for suspects to be tried alone; and a worker that drains reads no more. No restart would mend
any of these, so none of them counts, however long it lasts. What is left is a worker that does not
consume although the store answers (celery#8030): that time is bounded.

*Ready*: it is live, it has started and is not to stop, and it has read every shard a moment ago.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple, Self

import anyio
import msgspec

from askonce_worker.clock import Clock
from askonce_worker.observe.lag import LoopLag

LOOK_EVERY_S = 1.0
READY_READ_AGE_S = 10.0
"""A fetch blocks for 0.5 s, and one that failed is repeated within 2 s."""


class ShardVitals(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker knows of one shard.

    `read_age_s` is the age of the last successful fetch, None before the first. `unreachable` says
    why the store did not answer when it was last asked; empty if it did. `outbox` are the replies
    that wait for their settle.
    """

    tag: str
    read_age_s: float | None
    unreachable: str = ""
    outbox: int = 0

    @classmethod
    def of(
        cls, tag: str, *, read_at: float | None, now: float, error: Exception | None, outbox: int
    ) -> Self:
        """From times on the same clock, and the error of a store that did not answer."""
        return cls(
            tag=tag,
            read_age_s=None if read_at is None else now - read_at,
            unreachable="" if error is None else str(error) or type(error).__name__,
            outbox=outbox,
        )


class QuotaVitals(NamedTuple):
    """What a worker has of a model's limits: slots now, calls so far, seconds of waiting so far."""

    slots: int
    calls: int
    waited_s: float


class ModelVitals(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker knows of one of its models.

    `circuit`: closed, half_open or open. `openings` and `probes` are counted since its start.
    `limit`: how many calls at once it may be asked now.
    """

    circuit: str
    openings: int
    probes: int
    limit: int


class Vitals(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker knows of itself at one moment.

    `full`: it holds so many jobs that it fetches no more. `paused`: it fetches no more until jobs
    that may have killed a worker were tried. `slots_in_use` and `models` are by model, `quotas` by
    those that have limits. `budgets`: task → spent today, and what may be spent a day.
    """

    consumer: str
    started: bool
    stopping: bool
    shards: tuple[ShardVitals, ...]
    full: bool = False
    paused: bool = False
    held: int = 0
    flights: int = 0
    leases: int = 0
    slots_in_use: Mapping[str, int] = {}
    budgets: Mapping[str, tuple[float, float]] = {}
    quotas: Mapping[str, QuotaVitals] = {}
    models: Mapping[str, ModelVitals] = {}
    memory_bytes: int = 0
    memory_entries: int = 0
    memory_evictions: int = 0


class Limits(NamedTuple):
    """Where health ends, in seconds; both can be configured."""

    read_age_s: float
    """How long a shard that could be read may be left unread. Above the time after which a store
    that does not answer is known not to, or an outage would look like a worker that is stuck."""
    loop_lag_s: float
    """How late every one of the last turns of the event loop may be."""


class Signs(NamedTuple):
    """All that a verdict is made of. `unread_s`: by shard tag, how long it could have been read,
    and was not.
    """

    vitals: Vitals
    unread_s: Mapping[str, float]
    lag_s: float


class Verdict(NamedTuple):
    """Whether it is so and, if not, every reason, for people."""

    ok: bool
    reasons: tuple[str, ...]


def live(signs: Signs, limits: Limits) -> Verdict:
    """Whether a worker can go on as it is; if not, it is to be restarted."""
    reasons = [
        f"shard {tag} was not read for {unread_s:.0f} s although the store answers "
        f"(at most {limits.read_age_s:g} s, by max_read_age_s and the store's timeout_s)"
        for tag, unread_s in signs.unread_s.items()
        if unread_s > limits.read_age_s
    ]
    if signs.lag_s > limits.loop_lag_s:
        reasons.append(
            f"the event loop is {signs.lag_s:.1f} s late, again and again "
            f"(at most {limits.loop_lag_s:g} s, by max_loop_lag_s)"
        )
    return _verdict(reasons)


def ready(signs: Signs, limits: Limits) -> Verdict:
    """Whether a worker takes jobs from every shard and settles them."""
    vitals = signs.vitals
    if vitals.stopping:
        return _verdict(["draining"])
    if not vitals.started:
        return _verdict(["starting"])
    waits = vitals.full or vitals.paused
    reasons = [reason for shard in vitals.shards if (reason := _unread(shard, limits, waits=waits))]
    return _verdict([*reasons, *live(signs, limits).reasons])


def notes_on(vitals: Vitals) -> tuple[str, ...]:
    """What people should know although it makes no worker unfit: models that are down.

    Hits are served, misses wait in the store, and no other worker could ask those models either.
    """
    return tuple(
        f"model {name} is down: hits are served, misses wait"
        for name, model in vitals.models.items()
        if model.circuit != "closed"
    )


def _unread(shard: ShardVitals, limits: Limits, *, waits: bool) -> str:
    """Why a shard is not served; empty if it is."""
    if shard.unreachable:
        return f"shard {shard.tag} cannot be reached: {shard.unreachable}"
    if shard.read_age_s is None:
        return f"shard {shard.tag} was not read yet"
    if not waits and shard.read_age_s > min(READY_READ_AGE_S, limits.read_age_s):
        return f"shard {shard.tag} was not read for {shard.read_age_s:.0f} s"
    return ""


def _verdict(reasons: list[str]) -> Verdict:
    return Verdict(not reasons, tuple(reasons))


class Watch:
    """Measures for how long each shard could have been read, and was not."""

    def __init__(self, limits: Limits) -> None:
        self._pause_s = limits.loop_lag_s
        self._idle_since: dict[str, float] = {}
        self._looked_at = -math.inf

    def look(self, vitals: Vitals, now: float) -> dict[str, float]:
        """Look at `vitals`, `now` being monotonic; return those seconds by shard tag."""
        # Nothing could run since the last look: the process was stopped, or the machine slept.
        pausing = now - self._looked_at > LOOK_EVERY_S + self._pause_s
        self._looked_at = now
        excused = vitals.full or vitals.paused or vitals.stopping or not vitals.started
        for shard in vitals.shards:
            if excused or pausing or shard.unreachable:
                self._idle_since[shard.tag] = now
            elif shard.read_age_s is not None:
                since, read_at = self._idle_since[shard.tag], now - shard.read_age_s
                self._idle_since[shard.tag] = max(since, read_at)
        return {tag: now - since for tag, since in self._idle_since.items()}


class Health:
    """The health of one worker, looked at every second and whenever somebody asks."""

    def __init__(
        self, vitals: Callable[[], Vitals], lag: LoopLag, limits: Limits, clock: Clock
    ) -> None:
        self._vitals = vitals
        self._lag = lag
        self._limits = limits
        self._clock = clock
        self._watch = Watch(limits)

    def signs(self) -> Signs:
        """Look at the worker now."""
        vitals = self._vitals()
        unread_s = self._watch.look(vitals, self._clock.monotonic())
        return Signs(vitals, unread_s, self._lag.sustained_s)

    def live(self) -> Verdict:
        """Whether it can go on as it is."""
        return live(self.signs(), self._limits)

    def ready(self) -> Verdict:
        """Whether it takes jobs and settles them."""
        return ready(self.signs(), self._limits)

    def notes(self) -> tuple[str, ...]:
        """What people should know, and what makes it neither dead nor unready."""
        return notes_on(self._vitals())

    async def run(self) -> None:
        """Look for ever: what nobody saw begin cannot be timed."""
        while True:
            self.signs()
            await anyio.sleep(LOOK_EVERY_S)
