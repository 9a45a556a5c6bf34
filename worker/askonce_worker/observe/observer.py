"""Everything that watches one worker and tells of it, put together and run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager

import anyio

from askonce_queue.store import Store
from askonce_queue.store_config import StoreConfig
from askonce_worker.clock import Clock, SystemClock
from askonce_worker.config import WorkerConfig
from askonce_worker.config_listen import ListenAddress
from askonce_worker.observe.backlog import Backlog
from askonce_worker.observe.counters import Counters
from askonce_worker.observe.health import Health, Limits, Vitals
from askonce_worker.observe.lag import LoopLag
from askonce_worker.observe.metrics import Exposition, WorkerMetrics
from askonce_worker.observe.server import serving


def limits_of(config: WorkerConfig, store: StoreConfig) -> Limits:
    """As configured; for `timeout_s`, a store that hangs is taken for one that answers."""
    return Limits(config.max_read_age_s + store.timeout_s, config.max_loop_lag_s)


@asynccontextmanager
async def observed(
    address: ListenAddress,
    *,
    vitals: Callable[[], Vitals],
    counters: Counters,
    store: StoreConfig,
    config: WorkerConfig,
    models: Mapping[str, str],
    clock: Clock | None = None,
) -> AsyncGenerator[ListenAddress]:
    """Watch a worker and serve what is seen, for the length of a block.

    `models` maps each task to its model. The store is asked over connections of its own: what hangs
    there keeps nobody from settling. Raises `OSError` when it cannot listen at `address`.
    """
    clock = clock or SystemClock()
    limits = limits_of(config, store)
    lag = LoopLag(clock)
    health = Health(vitals, lag, limits, clock)
    connections = Store(store, max_connections=1)
    backlog = Backlog(connections, config.pool)
    metrics = WorkerMetrics(counters, health, lag.histogram, backlog, models)
    try:
        async with (
            serving(
                address,
                consumer=vitals().consumer,
                live=health.live,
                ready=health.ready,
                metrics=Exposition(metrics).render,
                notes=health.notes,
            ) as at,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(lag.run)
            tasks.start_soon(health.run)
            for tag in connections.tags:
                tasks.start_soon(backlog.run, tag)
            yield at
            tasks.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await connections.aclose()
