"""A task as workers use it: compiled once from the configuration, read on every job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from askonce_worker.cache.key import KeyMaker
from askonce_worker.models.protocol import Model, Prompt
from askonce_worker.models.retry import RetryPolicy

LEAST_TTL_S = 0.001
MOST_TTL_S = 10 * 365 * 86_400.0
"""Bounds of a TTL: the store counts in ms, and a slip of the unit should not pass for for-ever."""


WithoutStore = Literal["wait", "call", "raise"]
"""When the store cannot be asked: wait for it, ask the model for this process alone, or fail."""


class Backend:
    """A model with its free flight slots: no worker holds leases that it cannot fly."""

    def __init__(self, name: str, model: Model, slots: int, patience_s: float) -> None:
        self.name = name
        self.model = model
        self.slots = slots
        self.in_flight = 0
        self.patience_s = patience_s
        """How long a waiter waits for another process's leader before it takes the lease over."""

    @property
    def free_slots(self) -> int:
        """How many more questions may be in flight."""
        return self.slots - self.in_flight


class Task:
    """A named classification: where its questions go, what is in their key, how long answers last.

    `normalize` is applied before the key is made and before the model is asked.
    """

    __slots__ = (
        "backend",
        "cacheable",
        "key_maker",
        "max_input_bytes",
        "memory_ttl_s",
        "name",
        "normalize",
        "prompt",
        "remember_exhausted_s",
        "remember_rejection_s",
        "retry",
        "tag",
        "ttl_s",
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
        cacheable: bool = True,
        ttl_s: float = 86_400.0,
        memory_ttl_s: float = 300.0,
        max_input_bytes: int = 65_536,
        retry: RetryPolicy | None = None,
        remember_rejection_s: float = 60.0,
        remember_exhausted_s: float = 5.0,
        without_store: WithoutStore = "wait",
    ) -> None:
        for what, seconds in (("ttl_s", ttl_s), ("memory_ttl_s", memory_ttl_s)):
            if not LEAST_TTL_S <= seconds <= MOST_TTL_S:
                raise ValueError(
                    f"{what} must be from {LEAST_TTL_S} to {MOST_TTL_S:.0f} s, not {seconds}"
                )
        self.name = name
        self.tag = f"task:{name}"
        self.backend = backend
        self.prompt = prompt
        self.key_maker = key_maker
        self.normalize = normalize
        self.cacheable = cacheable
        self.ttl_s = ttl_s
        self.memory_ttl_s = min(memory_ttl_s, ttl_s)
        self.max_input_bytes = max_input_bytes
        self.retry = retry or RetryPolicy()
        self.remember_rejection_s = remember_rejection_s
        self.remember_exhausted_s = remember_exhausted_s
        self.without_store: WithoutStore = without_store
