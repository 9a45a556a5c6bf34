"""cashews: `@cache(ttl=…, lock=True)`, which its documentation gives against stampedes.

Settings: `client_side=True`, so that what was read once is answered from the process's memory, as
askonce's memory tier does (the documentation recommends it for what is read often); a pool with
room for every caller, since redis-py's raises when it is full.
"""

from contextlib import asynccontextmanager

from cashews import Cache
from harness import cache_steps, serve
from recipe import ask_model


@asynccontextmanager
async def asker(order):
    """The steps of a process that asks."""
    cache = Cache()
    cache.setup(order.store_url, client_side=True, max_connections=1_000)

    @cache(ttl="1h", key="answer:{text}", lock=True)
    async def ask(text):
        return await ask_model(order.model_url, text)

    await cache.init()
    yield cache_steps(ask, order)
    await cache.close()


if __name__ == "__main__":
    serve(asker)
