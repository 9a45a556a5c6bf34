"""Resolvers whose hits are checked, and what they counted."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio

from askonce_worker.clock import SystemClock
from askonce_worker.resolver import Resolver
from askonce_worker.shadow.sampler import ShadowChecks
from askonce_worker.tasks import Task
from tests.support.resolving import (
    resolver_on,
)
from tests.support.waiting import eventually


@asynccontextmanager
async def checked(
    url: str, *tasks: Task, stamp_bound_s: float = 0.5, clock: SystemClock | None = None
) -> AsyncGenerator[Resolver]:
    """A resolver whose hits are checked."""
    async with (
        resolver_on(url, stamp_bound_s=stamp_bound_s, clock=clock) as resolver,
        anyio.create_task_group() as group,
    ):
        checks = checks_of(resolver, *tasks, clock=clock)
        resolver.watchers.append(checks.note)
        group.start_soon(checks.run)
        yield resolver
        group.cancel_scope.cancel()


def checks_of(resolver: Resolver, *tasks: Task, clock: SystemClock | None = None) -> ShadowChecks:
    return ShadowChecks(
        resolver.verifier,
        tasks,
        resolver.counters,
        clock or SystemClock(),
        random.Random(7),
    )


def counts(resolver: Resolver, task: str = "t") -> Counter[str]:
    return Counter(
        {name: n for (of, name), n in resolver.counters.since_start().items() if of == task and n}
    )


async def counted(resolver: Resolver, name: str, number: int = 1) -> None:
    await eventually(lambda: counts(resolver)[name] == number)
