"""A task as workers use it: compiled once from the configuration, read on every job."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from askonce_worker.backend import Backend
from askonce_worker.cache.key import KeyMaker
from askonce_worker.cache.policy import Policy, demand_of
from askonce_worker.cache.tags import task_tag, version_tag
from askonce_worker.config import HitLogConfig
from askonce_worker.models.protocol import Prompt
from askonce_worker.models.retry import RetryPolicy
from askonce_worker.observe.budget import Budget
from askonce_worker.observe.money import FREE, Price

WithoutStore = Literal["wait", "call", "raise"]
"""When the store cannot be asked: wait for it, ask the model for this process alone, or fail."""


class Task:
    """A named classification: where its questions go, what is in their key, how long answers last.

    `normalize` is applied before the key is made and before the model is asked. `tags` are those of
    all its answers, beside its own. `watched`: somebody wants to be told of all its hits; `noted`:
    of those whose keys begin with one of these bytes (`hits/log.py`). `hit_log`: which of them
    people get to see; None: none. `kept_out` says of the text of an input that a rule keeps it
    from the cache; it is None as long as the task has no rules. `price`: of a call. `budget`:
    what calls may cost a day. `fallback`: the same task with another model, for while this one is
    unavailable.
    """

    __slots__ = (
        "backend",
        "budget",
        "cacheable",
        "fallback",
        "hit_log",
        "kept_out",
        "key_maker",
        "max_input_bytes",
        "memory_control",
        "name",
        "normalize",
        "noted",
        "plain_control",
        "plain_demand",
        "policy",
        "price",
        "prompt",
        "remember_exhausted_s",
        "remember_rejection_s",
        "retry",
        "tag",
        "tags",
        "version",
        "watched",
        "without_store",
    )

    def __init__(
        self,
        name: str,
        *,
        backend: Backend,
        prompt: Prompt,
        key_maker: KeyMaker,
        normalize: Callable[[str], str] | None = None,
        policy: Policy | None = None,
        max_input_bytes: int = 65_536,
        retry: RetryPolicy | None = None,
        remember_rejection_s: float = 60.0,
        remember_exhausted_s: float = 5.0,
        without_store: WithoutStore = "wait",
        tags: Sequence[str] = (),
        watched: bool = False,
        price: Price = FREE,
        budget: Budget | None = None,
        fallback: Task | None = None,
        hit_log: HitLogConfig | None = None,
    ) -> None:
        self.name = name
        self.tag = task_tag(name)
        self.tags = (self.tag, *tags)
        self.version = version_tag(key_maker.digest)
        """A tag of its entries, not of who asks: so what another version left can be purged."""
        self.backend = backend
        self.prompt = prompt
        self.key_maker = key_maker
        self.normalize = normalize
        policy = policy or Policy()
        self.follow(policy)
        self.max_input_bytes = max_input_bytes
        self.retry = retry or RetryPolicy()
        self.remember_rejection_s = remember_rejection_s
        self.remember_exhausted_s = remember_exhausted_s
        self.without_store: WithoutStore = without_store
        self.price = price
        self.budget = budget
        self.fallback = fallback
        self.hit_log = hit_log if hit_log is not None and hit_log.share > 0 else None
        self.watched = watched or policy.verify_share > 0
        self.noted: frozenset[int] = frozenset()
        self.kept_out: Callable[[str], bool] | None = None

    @property
    def over_budget(self) -> bool:
        """Whether its questions may lead to no more calls today."""
        return self.budget is not None and self.budget.exceeded

    def follow(self, policy: Policy) -> None:
        """Go by a policy from now on. What memory keeps by the old one is its owner's to drop."""
        self.policy = policy
        self.cacheable = policy.cacheable and policy.max_age_s > 0
        self.plain_control = policy.plain
        # Tasks that ask the same share what memory keeps, and not their limits.
        self.memory_control = self.plain_control if policy.max_age_s < math.inf else None
        demand = demand_of((self.plain_control,))
        self.plain_demand = demand.pack() if demand is not None else None
