"""The store for commands that only look, or do one thing: opened, and checked without writing."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from redis.exceptions import RedisError

from askonce_queue.checks import recorded_shards
from askonce_queue.errors import ConfigError, StoreUnavailable
from askonce_queue.store import Store
from askonce_worker.build import open_store
from askonce_worker.config import Settings


@asynccontextmanager
async def opened(settings: Settings) -> AsyncGenerator[Store]:
    """A client on the configured store.

    Raises `StoreUnavailable`, and `ConfigError` when it was set up with another number of shards.
    """
    async with open_store(settings) as config:
        store = Store(config, max_connections=4)
        try:
            try:
                recorded = await recorded_shards(store)
            except (RedisError, OSError) as error:
                raise StoreUnavailable(f"the store cannot be reached: {error}") from error
            if recorded not in (None, settings.shards):
                raise ConfigError(
                    f"{settings.source.path}: redis.shards: expected {recorded}, as the store was "
                    f"set up, got {settings.shards}"
                )
            yield store
        finally:
            await store.aclose()
