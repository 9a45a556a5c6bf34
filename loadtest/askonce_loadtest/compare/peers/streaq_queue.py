"""streaq. Its worker is `python -m streaq run streaq_queue:worker`.

Settings: uvloop through anyio's option; orjson instead of pickle; 100 tasks at once instead of 16;
jobs by `enqueue_many`, which the documentation recommends for many. A result is waited for by a
subscription of its own, on a connection of its own, so the pool has as many as are waited for at
once: with fewer, all of them wait for ever.
"""

from contextlib import asynccontextmanager

import coredis
import orjson
import redis.asyncio
from drivers import cold_jobs, drive, jobs_of, paced, timed
from harness import order, ready, serve
from recipe import get_or_call
from streaq import Worker

_order = order()
answers = redis.asyncio.Redis.from_url(
    _order.store_url, decode_responses=True, max_connections=1_000
)


@asynccontextmanager
async def lifespan():
    """Tell that this worker takes jobs."""
    ready()
    yield None


worker = Worker(
    redis_pool=coredis.ConnectionPool(
        host=_order.host, port=_order.port, decode_responses=True, max_connections=1_000
    ),
    concurrency=100,
    lifespan=lifespan,
    serializer=lambda value: orjson.dumps(value, default=repr),
    deserializer=orjson.loads,
    anyio_kwargs={"use_uvloop": True},
)


@worker.task(name="classify")
async def classify(text):
    """The job."""
    return await get_or_call(answers, _order.model_url, text)


@asynccontextmanager
async def producer(order):
    """The producer's steps."""
    async with worker:

        async def ask(text):
            task = await classify.enqueue(text)
            return (await task.result(30)).result

        def ask_many(texts):
            return timed(drive(texts, ask, order))

        yield {
            "warm_up": lambda: ask_many(order.texts()["warm"]),
            "ask_all": lambda: ask_many(jobs_of(order)),
            "paced": lambda: paced(ask, order),
            "cold": lambda: ask_many(cold_jobs(order)),
        }


if __name__ == "__main__":
    serve(producer)
