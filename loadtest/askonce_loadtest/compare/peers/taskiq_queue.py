"""taskiq on the Redis stream broker. Its worker is `python -m taskiq worker taskiq_queue:broker`.

Settings: one worker process instead of two (every peer has one); `--no-parse`, since jobs need no
pydantic; orjson; its worker takes uvloop by itself, and 100 tasks at once by default; a group that
begins with the stream, not with its end. `xread_block` is 100 ms: its default of 2 s blocks longer
than a lost wake-up should cost. Results are polled every 10 ms (default 200), oldest first.
"""

from contextlib import asynccontextmanager

import redis.asyncio
from drivers import cold_jobs, drive_ahead, jobs_of, paced, timed
from harness import order, ready, serve
from recipe import get_or_call
from taskiq import TaskiqEvents
from taskiq.serializers import ORJSONSerializer
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

POLL_S = 0.01
CONNECTIONS = 200

_order = order()
_results = RedisAsyncResultBackend(
    _order.store_url,
    result_ex_time=3_600,
    serializer=ORJSONSerializer(),
    max_connection_pool_size=CONNECTIONS,
)
broker = (
    RedisStreamBroker(_order.store_url, consumer_id="0", max_connection_pool_size=CONNECTIONS)
    .with_result_backend(_results)
    .with_serializer(ORJSONSerializer())
)
answers = redis.asyncio.Redis.from_url(
    _order.store_url, decode_responses=True, max_connections=1_000
)


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def started(state):
    """Tell that this worker takes jobs."""
    ready()


@broker.task(task_name="classify")
async def classify(text):
    """The job."""
    return await get_or_call(answers, _order.model_url, text)


@asynccontextmanager
async def producer(order):
    """The producer's steps."""
    await broker.startup()

    async def take(job):
        result = await job.wait_result(check_interval=POLL_S)
        return result.return_value

    async def ask(text):
        return await take(await classify.kiq(text))

    def ask_many(texts):
        return timed(drive_ahead(texts, classify.kiq, take, order))

    yield {
        "warm_up": lambda: ask_many(order.texts()["warm"]),
        "ask_all": lambda: ask_many(jobs_of(order)),
        "paced": lambda: paced(ask, order),
        "cold": lambda: ask_many(cold_jobs(order)),
    }
    await broker.shutdown()


if __name__ == "__main__":
    serve(producer)
