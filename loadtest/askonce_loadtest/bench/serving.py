"""The role of a worker: what `askonce worker` runs, in a child of the bench."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from askonce_loadtest.bench.child import Order, Steps
from askonce_worker.build import build_tasks, open_models
from askonce_worker.config import load_settings
from askonce_worker.pool.worker import Worker


@asynccontextmanager
async def worker(order: Order) -> AsyncGenerator[Steps]:
    """Serve the bench's task from the configuration file, until the end of the block."""
    settings = load_settings(Path(order.config))
    async with open_models(settings) as backends:
        tasks = build_tasks(settings, backends)
        store = settings.redis or order.url
        serving = Worker(store, tasks, settings.worker, shards=settings.shards)
        async with serving.running():
            yield {}
