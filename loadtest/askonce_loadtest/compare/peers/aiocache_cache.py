"""aiocache: `@cached_stampede`, its decorator against stampedes, on its Redis backend.

Settings: a lease of 10 s, as the queues' recipe has; a pool with room for every caller. It has no
memory tier in front of Redis.
"""

from contextlib import asynccontextmanager

from aiocache import Cache, cached_stampede
from drivers import cache_steps
from harness import serve
from recipe import ask_model


@asynccontextmanager
async def asker(order):
    """The steps of a process that asks."""

    @cached_stampede(
        lease=10,
        ttl=3_600,
        cache=Cache.REDIS,
        endpoint=order.host,
        port=order.port,
        pool_max_size=1_000,
        key_builder=lambda _, text: f"answer:{text}",
    )
    async def ask(text):
        return await ask_model(order.model_url, text)

    yield cache_steps(ask, order)
    await ask.cache.close()


if __name__ == "__main__":
    serve(asker)
