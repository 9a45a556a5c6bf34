"""Which fault strikes what, when and for how long: a pure function of the plan and its seed.

Time is cut into rounds of about a minute; in each round every kind strikes every target it can, in
an order of its own. One target suffers one fault at a time, different targets do so together.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import msgspec

from askonce_loadtest.chaos.plan import Plan

LINKS = ("workers", "clients", "model")
"""Workers ↔ store, clients ↔ store, workers ↔ model."""
ROUND_S = 60.0
FIRST_S = 1.5
"""A little load before the first fault."""
GAP_S = 0.2
"""Between two faults of one target."""
LAST_S = 1.0
"""No fault ends later than this before the load does."""

Target = Literal["link", "worker", "producer", "store", "model", "data"]
"""`data`: what is done to keys or by jobs; it hinders nothing else."""


class Recipe(NamedTuple):
    """How a kind of fault is dosed. `amount` is in the kind's own unit (see `meaning`)."""

    target: Target
    for_s: tuple[float, float]
    per_round: int
    meaning: str
    amount: tuple[float, float] = (0.0, 0.0)


RECIPES: Mapping[str, Recipe] = {
    "drop": Recipe("link", (2.0, 3.0), 1, "replies are lost, by share", (0.1, 0.4)),
    "cut": Recipe("link", (2.0, 3.0), 1, "connections end inside a frame, by share", (0.1, 0.4)),
    "delay": Recipe("link", (2.0, 3.0), 1, "every chunk waits up to so many seconds", (0.1, 0.5)),
    "throttle": Recipe("link", (2.0, 3.0), 1, "bytes a second", (5_000.0, 40_000.0)),
    "half-open": Recipe("link", (1.0, 2.5), 1, "open sockets that carry nothing, by share",
                        (0.5, 1.0)),
    "refuse": Recipe("link", (0.5, 2.0), 1, "connections end, new ones are refused"),
    "kill-worker": Recipe("worker", (0.2, 1.0), 3, "kill -9, replaced after so long"),
    "stop-worker": Recipe("worker", (0.3, 5.0), 3, "SIGSTOP … SIGCONT"),
    "drain-worker": Recipe("worker", (0.0, 0.5), 1, "SIGTERM, replaced"),
    "kill-producer": Recipe("producer", (0.2, 1.0), 1, "kill -9, replaced under the same name"),
    "stop-producer": Recipe("producer", (0.3, 4.0), 1, "SIGSTOP … SIGCONT"),
    "kill-store": Recipe("store", (0.2, 1.5), 1, "kill -9, started again after so long"),
    "restart-store": Recipe("store", (0.2, 1.0), 1, "SIGTERM, started again after so long"),
    "stop-store": Recipe("store", (0.3, 3.0), 1, "SIGSTOP … SIGCONT"),
    "memory-pressure": Recipe("store", (2.0, 3.0), 1, "maxmemory just below what is used"),
    "lose-answers": Recipe("data", (0.0, 0.0), 2, "all answers are unlinked"),
    "lose-stamps": Recipe("data", (0.0, 0.0), 1, "stamps and last invalidations are deleted"),
    "flush-scripts": Recipe("data", (0.0, 0.0), 2, "SCRIPT FLUSH"),
    "model-stall": Recipe("model", (1.0, 3.0), 1, "the model answers nothing"),
    "model-errors": Recipe("model", (1.0, 3.0), 1, "the model answers 500"),
    "model-slow": Recipe("model", (2.0, 3.0), 2, "median latency in ms: longer than a lease",
                         (800.0, 2_000.0)),
    "invalidate": Recipe("data", (0.0, 0.0), 15, "a group, a task, or everything"),
    "poison": Recipe("data", (0.0, 0.0), 1, "a job that kills its worker"),
    "malformed": Recipe("data", (0.0, 0.0), 3, "entries that are no jobs"),
}  # fmt: skip
"""Every kind of fault on one store; a cluster has more."""


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One planned fault: `at_s` from the beginning of the load, on `target`, for `for_s`."""

    at_s: float
    kind: str
    target: str
    for_s: float = 0.0
    amount: float = 0.0

    def __str__(self) -> str:
        amount = f", {self.amount:g}" if self.amount else ""
        lasts = f" for {self.for_s:g} s" if self.for_s else ""
        return f"{self.at_s:7.2f} s  {self.kind} {self.target}{lasts}{amount}"


def make_schedule(plan: Plan, recipes: Mapping[str, Recipe] = RECIPES) -> list[Fault]:
    """All faults of a run, in time. The same plan gives the same faults."""
    rng = random.Random(f"schedule:{plan.seed}")
    rounds = max(1, round(plan.load_s / ROUND_S))
    length_s = plan.load_s / rounds
    targets = _Targets(plan)
    faults: list[Fault] = []
    for number in range(rounds):
        start_s = number * length_s
        faults += _round(plan, recipes, rng, targets, start_s, start_s + length_s)
    return sorted(faults, key=lambda fault: (fault.at_s, fault.kind))


def _round(
    plan: Plan,
    recipes: Mapping[str, Recipe],
    rng: random.Random,
    targets: _Targets,
    start_s: float,
    end_s: float,
) -> Iterable[Fault]:
    wanted = [
        (kind, link)
        for kind in plan.kinds
        for link in (LINKS if recipes[kind].target == "link" else ("",))
        for _ in range(recipes[kind].per_round)
    ]
    rng.shuffle(wanted)
    # A poisonous job kills several workers before it is known for what it is: it needs the time.
    wanted.sort(key=lambda one: one[0] != "poison")
    first_s = start_s + (FIRST_S if start_s == 0 else 0.0)
    last_s = end_s - LAST_S
    step_s = (last_s - first_s) / max(1, len(wanted))
    for place, (kind, link) in enumerate(wanted):
        recipe = recipes[kind]
        for_s = round(rng.uniform(*recipe.for_s), 2)
        amount = rng.uniform(*recipe.amount)
        at_s = first_s + (place + rng.random()) * step_s
        target = link or targets.choose(recipe.target, rng, at_s)
        begins_s = targets.reserve(target, at_s, for_s, first_s, last_s)
        if begins_s is not None:
            yield Fault(
                at_s=round(begins_s, 2),
                kind=kind,
                target=target,
                for_s=for_s,
                amount=float(f"{amount:.3g}"),
            )


class _Targets:
    """What there is to strike, and when it is taken."""

    def __init__(self, plan: Plan) -> None:
        self._names: dict[Target, list[str]] = {
            "worker": [f"worker-{i}" for i in range(plan.workers)],
            "producer": [f"producer-{i}" for i in range(plan.producers)],
            "store": ["store"],
            "model": ["model-server"],
            "data": ["data"],
        }
        self._taken: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)

    def choose(self, target: Target, rng: random.Random, at_s: float) -> str:
        """One that is free at that time, or any."""
        names = list(self._names[target])
        rng.shuffle(names)
        return min(names, key=lambda name: not self._fits(name, at_s, 0.0))

    def reserve(
        self, name: str, at_s: float, for_s: float, first_s: float, last_s: float
    ) -> float | None:
        """When the fault can begin, at `at_s` or as soon as may be; None if not before `last_s`."""
        ends = sorted(ended_s + GAP_S for _, ended_s in self._taken[name])
        later = [end_s for end_s in ends if end_s > at_s]
        for begins_s in (at_s, *later, first_s, *ends):
            if begins_s + for_s <= last_s and self._fits(name, begins_s, for_s):
                if name != "data":
                    self._taken[name].append((begins_s, begins_s + for_s))
                return begins_s
        return None

    def _fits(self, name: str, begins_s: float, for_s: float) -> bool:
        """Whether nothing else strikes the target then, nor just before or after."""
        return all(
            begins_s >= ended_s + GAP_S or begins_s + for_s + GAP_S <= began_s
            for began_s, ended_s in self._taken[name]
        )
