"""arq. Its worker is `python -m arq arq_queue.WorkerSettings`, on uvloop by the event loop policy.

Settings: hiredis (arq asks for redis-py below 6); orjson instead of pickle; 100 jobs at once
instead of 10, as the work is waiting; the worker looks for jobs every 10 ms instead of every 500,
and so does who waits for a result: with the defaults a single job takes up to a second. Many jobs
are handed in ahead of their results, which are taken oldest first, so that few polls are in vain.
"""

import asyncio
from contextlib import asynccontextmanager

import orjson
import redis.asyncio
import uvloop
from arq import create_pool
from arq.connections import RedisSettings
from drivers import cold_jobs, drive_ahead, jobs_of, paced, timed
from harness import order, ready, serve
from recipe import get_or_call

POLL_S = 0.01

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
_order = order()
_settings = RedisSettings(host=_order.host, port=_order.port, max_connections=1_000)


def dumps(job):
    """Serialise a job or a result; an exception is not JSON, and becomes its text."""
    return orjson.dumps(job, default=repr)


async def startup(ctx):
    """Open the worker's own client for the answers."""
    ctx["answers"] = redis.asyncio.Redis.from_url(
        _order.store_url, decode_responses=True, max_connections=1_000
    )
    ready()


async def classify(ctx, text):
    """The job."""
    return await get_or_call(ctx["answers"], _order.model_url, text)


class WorkerSettings:
    """What the worker reads."""

    functions = (classify,)
    redis_settings = _settings
    on_startup = startup
    max_jobs = 100
    poll_delay = POLL_S
    job_serializer = dumps
    job_deserializer = orjson.loads


@asynccontextmanager
async def producer(order):
    """The producer's steps."""
    pool = await create_pool(_settings, job_serializer=dumps, job_deserializer=orjson.loads)

    async def hand_in(text):
        return await pool.enqueue_job("classify", text)

    async def take(job):
        return await job.result(poll_delay=POLL_S)

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
    await pool.aclose()


if __name__ == "__main__":
    serve(producer)
