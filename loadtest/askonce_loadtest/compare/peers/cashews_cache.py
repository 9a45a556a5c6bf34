"""cashews: `@cache(ttl=…, lock=True)`, which its documentation gives against stampedes.

That one takes its lock before it looks, for hits as well (seven commands each), so there is a plain
`@cache` in front of it here. A pool with room for every caller, since redis-py's raises when it is
full. With the argument `memory`, also `client_side=True`: what was read once is answered from the
process's memory, as in askonce's memory tier. The second look under the lock then may be answered
from a memory that has not heard of the new answer, which is why both ways are measured.
"""

import sys
from contextlib import asynccontextmanager

from cashews import Cache
from drivers import cache_steps
from harness import serve
from recipe import ask_model


@asynccontextmanager
async def asker(order):
    """The steps of a process that asks."""
    cache = Cache()
    cache.setup(order.store_url, client_side="memory" in sys.argv, max_connections=1_000)

    @cache(ttl="1h", key="answer:{text}")
    @cache(ttl="1h", key="answer:{text}", lock=True)
    async def ask(text):
        return await ask_model(order.model_url, text)

    await cache.init()
    yield cache_steps(ask, order)
    await cache.close()


if __name__ == "__main__":
    serve(asker)
