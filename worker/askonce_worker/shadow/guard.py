"""The guard: a task whose hits are wrong too often serves only younger ones, or none.

It decides from the verdicts of the whole fleet and from nothing else, so all workers decide alike,
a new one as well, and `askonce stats` can say what they do. An age that is no longer served gets no
new checks: the limit goes when its evidence is too old to count, and comes again if it has to.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable

import anyio
import msgspec
import structlog
from redis.exceptions import RedisError

from askonce_queue.store import Store
from askonce_worker.cache.policy import Policy
from askonce_worker.observe.counters import Counters
from askonce_worker.shadow.verdicts import (
    AGES,
    Rate,
    VerdictReader,
    Verdicts,
    cumulative,
    of_all_labels,
)
from askonce_worker.tasks import Task

EVERY_S = 30.0
"""The mean time between two looks."""

log = structlog.get_logger("askonce.guard")


def age_limit(policy: Policy, verdicts: Verdicts) -> float:
    """How old an answer may be to be served, in seconds: infinite for no limit, 0 for none at all.

    An age is too old when more than `max_disagreement` of the answers of its band differ, or of all
    up to it: by the lower end of the Wilson interval, with enough checks. What is younger than the
    first such band may be served. Bands count by themselves too, because a limit thins them out:
    younger hits, of which there are more and more, would outvote them.
    """
    most = policy.max_disagreement
    if most is None:
        return math.inf
    limit_s = 0.0
    bands = of_all_labels(verdicts)
    for (_, most_s), band, total in zip(AGES, bands, cumulative(bands), strict=True):
        if _exceeds(band, most) or _exceeds(total, most):
            return limit_s if limit_s < _longest_s(policy) else math.inf
        limit_s = most_s
    return math.inf


def _exceeds(rate: Rate, most: float) -> bool:
    return rate.is_known and rate.interval[0] > most


def _longest_s(policy: Policy) -> float:
    """How old an answer can get without any limit."""
    ttl_s = max(policy.ttl_s, *policy.ttl_by_label_s.values(), 0.0)
    return ttl_s + max(policy.stale_while_revalidate_s, policy.stale_if_error_s)


class Guard:
    """Limits the age of the answers of `tasks` that have a `max_disagreement`.

    `forget` drops what this worker keeps in memory, which may be older than a new limit.
    """

    def __init__(
        self,
        store: Store,
        tasks: Iterable[Task],
        *,
        forget: Callable[[], None],
        counters: Counters,
        rng: random.Random,
    ) -> None:
        self._verdicts = VerdictReader(store)
        self._tasks = [task for task in tasks if task.policy.max_disagreement is not None]
        self._forget = forget
        self._counters = counters
        self._rng = rng

    def __bool__(self) -> bool:
        """Whether there is anything to guard."""
        return bool(self._tasks)

    async def run(self) -> None:
        """Look at the evidence for ever, the first time at once."""
        while True:
            try:
                await self.look()
            except (RedisError, OSError) as error:
                log.warning("verdicts cannot be read: limits stay", error=str(error))
            await anyio.sleep(EVERY_S * self._rng.uniform(0.75, 1.25))

    async def look(self) -> None:
        """Limit what is wrong too often, and lift what is no longer. Raises redis-py's errors."""
        verdicts = await self._verdicts.read()
        for task in self._tasks:
            limit_s = age_limit(task.policy, verdicts.get(task.name, {}))
            if limit_s != task.policy.max_age_s:
                self._limit(task, limit_s)

    def _limit(self, task: Task, limit_s: float) -> None:
        before_s = task.policy.max_age_s
        task.follow(msgspec.structs.replace(task.policy, max_age_s=limit_s))
        if limit_s < before_s:
            self._forget()
        if limit_s == math.inf:
            self._counters.count(task.name, "limits_lifted")
            log.warning("answers are kept as configured again", task=task.name)
        elif limit_s > 0:
            self._counters.count(task.name, "limits_set")
            log.warning(
                "older answers differ from fresh ones too often, and are not served any more",
                task=task.name,
                max_disagreement=task.policy.max_disagreement,
                max_age_s=limit_s,
            )
        else:
            self._counters.count(task.name, "limits_off")
            log.warning(
                "answers differ from fresh ones too often: the cache of the task is off",
                task=task.name,
                max_disagreement=task.policy.max_disagreement,
            )
