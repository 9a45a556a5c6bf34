"""SAQ. Its worker is `python -m saq saq_queue.settings`, on uvloop by the event loop policy.

Settings: hiredis; orjson; concurrency 100 and 100 concurrent operations a client instead of 10 and
20, because the work is waiting. Results are polled every 10 ms: `Queue.apply` and `Job.refresh`
themselves poll, every 500 ms. Many jobs are handed in ahead of their results, which are taken
oldest first, so that few polls are in vain.
"""

import asyncio
from contextlib import asynccontextmanager

import orjson
import redis.asyncio
import uvloop
from drivers import cold_jobs, drive_ahead, jobs_of, paced, timed
from harness import order, ready, serve
from recipe import get_or_call
from saq.queue.redis import RedisQueue

CONCURRENCY = 100
POLL_S = 0.01

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
_order = order()


async def startup(ctx):
    """Open the worker's own client for the answers."""
    ctx["answers"] = redis.asyncio.Redis.from_url(
        _order.store_url, decode_responses=True, max_connections=1_000
    )
    ready()


async def classify(ctx, *, text):
    """The job."""
    return await get_or_call(ctx["answers"], _order.model_url, text)


queue = RedisQueue(
    redis.asyncio.Redis.from_url(_order.store_url, max_connections=1_000),
    max_concurrent_ops=CONCURRENCY,
    dump=orjson.dumps,
    load=orjson.loads,
)
settings = {
    "queue": queue,
    "functions": [classify],
    "concurrency": CONCURRENCY,
    "startup": startup,
}


@asynccontextmanager
async def producer(order):
    """The producer's steps."""
    await queue.connect()

    async def hand_in(text):
        return await queue.enqueue("classify", text=text, timeout=60)

    async def take(job):
        await job.refresh()
        while not job.completed:
            await asyncio.sleep(POLL_S)
            await job.refresh()
        if job.status != "complete":
            raise RuntimeError(f"{job.status}: {job.error}")
        return job.result

    async def ask(text):
        return await take(await hand_in(text))

    def ask_many(texts):
        return timed(drive_ahead(texts, hand_in, take, order))

    yield {
        "warm_up": lambda: ask_many(order.texts()["warm"]),
        "ask_all": lambda: ask_many(jobs_of(order)),
        "paced": lambda: paced(ask, order),
        "cold": lambda: ask_many(cold_jobs(order)),
    }
    await queue.disconnect()


if __name__ == "__main__":
    serve(producer)
