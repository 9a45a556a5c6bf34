"""The loop that keeps the quotas of a process: asks the store for all models of a shard at once.

It asks when flights wait, when slots are to be renewed, and when something is to be given back; no
call waits for it while there is some of the last chunk left. With no limits it does nothing.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager

import anyio
import structlog

from askonce_queue.quota_scripts import Grant, Request, take_quota
from askonce_queue.scripts import Call
from askonce_queue.shards import shard_of_model
from askonce_queue.store import Store
from askonce_worker.backend import Backend
from askonce_worker.clock import Clock
from askonce_worker.quota import VALID_S, Quota

LEAVE_S = 2.0
"""How long the end of a process waits for its quotas to be given back."""

log = structlog.get_logger("askonce.quotas")


class Quotas:
    """The quotas of one process for all models that have limits.

    `holder` is a name that no other process has. `ttl_s`: how long the store keeps slots of a
    process that is silent.
    """

    def __init__(
        self,
        store: Store,
        backends: Iterable[Backend],
        *,
        holder: str,
        ttl_s: float,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._store = store
        self._holder = holder
        self._ttl_s = ttl_s
        self._clock = clock
        self._bells: defaultdict[int, anyio.Event] = defaultdict(anyio.Event)
        self._failing: set[int] = set()
        self._shards: defaultdict[int, list[Quota]] = defaultdict(list)
        for backend in {backend.name: backend for backend in backends}.values():
            if backend.shared:
                self._add(backend, rng)

    def _add(self, backend: Backend, rng: random.Random) -> None:
        assert backend.shared is not None
        shard = shard_of_model(backend.name, len(self._store.tags))

        def ring() -> None:
            self._bells[shard].set()

        quota = Quota(
            backend, backend.shared, ttl_s=self._ttl_s, clock=self._clock, rng=rng, ring=ring
        )
        self._shards[shard].append(quota)
        backend.limits.append(quota)
        backend.when_wanted.append(quota.wanted)
        backend.admission = quota

    @property
    def by_model(self) -> Mapping[str, Quota]:
        """The quotas by the names of their models."""
        return {quota.backend.name: quota for part in self._shards.values() for quota in part}

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Keep the quotas for the length of a block; then give back what is left."""
        async with anyio.create_task_group() as tasks:
            for shard in self._shards:
                tasks.start_soon(self._run, shard)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()
                with anyio.CancelScope(shield=True), anyio.move_on_after(LEAVE_S):
                    await self._leave()

    async def _run(self, shard: int) -> None:
        """Ask for the quotas of one shard, whenever something is due."""
        quotas = self._shards[shard]
        while True:
            bell = self._bells[shard] = anyio.Event()
            wait_s = min(quota.due() for quota in quotas) - self._clock.monotonic()
            if wait_s <= 0:
                await self._ask(shard, quotas)
                continue
            with anyio.move_on_after(wait_s):
                await bell.wait()

    async def _ask(self, shard: int, quotas: Iterable[Quota]) -> None:
        """Ask for what is due, or is about to be."""
        soon = self._clock.monotonic() + 0.001
        asked = [quota for quota in quotas if quota.due() <= soon]
        calls = [self._call(shard, quota, quota.request()) for quota in asked]
        failed: Exception | None = None
        for quota, result in zip(asked, await self._store.run_many(calls), strict=True):
            if isinstance(result, Exception):
                failed = result
                quota.failed()
            else:
                quota.answered(Grant.of(result))
        if failed is None:
            self._failing.discard(shard)
        elif shard not in self._failing:
            self._failing.add(shard)
            models = [quota.backend.name for quota in asked]
            log.warning("limits cannot be shared just now", models=models, error=str(failed))

    def _call(self, shard: int, quota: Quota, request: Request) -> Call:
        return take_quota(
            self._store.tags[shard],
            quota.backend.name,
            self._holder,
            request,
            quota.rates,
            ttl_ms=math.ceil(self._ttl_s * 1000),
            valid_us=round(VALID_S * 1e6),
        )

    async def _leave(self) -> None:
        calls = [
            self._call(shard, quota, quota.leave())
            for shard, quotas in self._shards.items()
            for quota in quotas
            if quota.known
        ]
        for result in await self._store.run_many(calls):
            if isinstance(result, Exception):
                log.warning("slots were not given back: they run out", error=str(result))
