"""Celery. Its worker is `celery -A celery_queue worker`, with the gevent pool.

Settings: gevent with 100 greenlets, as its documentation recommends for work that waits, and with
`result_backend_thread_safe`, without which it is half as fast; no events, no mingling, no gossip;
JSON, the default; prefetch 1 × concurrency instead of 4, which made no difference. Results of the
Redis backend come by publish/subscribe; the producer is threads, which share one consumer.
"""

import itertools
from collections import deque

import redis
from celery import Celery
from celery.signals import worker_ready
from drivers import cold_jobs, jobs_of, paced_sync, timed_sync
from harness import order, ready, serve_sync
from recipe import get_or_call_sync

AHEAD = 1_000

_order = order()
app = Celery("compare", broker=_order.store_url, backend=_order.store_url)
app.conf.update(
    result_backend_thread_safe=True,
    result_expires=3_600,
    task_ignore_result=False,
    worker_prefetch_multiplier=1,
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
)
answers = redis.Redis.from_url(_order.store_url, decode_responses=True, max_connections=1_000)


@worker_ready.connect
def started(**_):
    """Tell that this worker takes jobs."""
    ready()


@app.task(name="classify")
def classify(text):
    """The job."""
    return get_or_call_sync(answers, _order.model_url, text)


def producer(order):
    """The producer's steps."""

    def ask(text):
        return classify.delay(text).get(timeout=30)

    def ask_all(texts):
        """Hand in ahead of the results, and take them oldest first."""
        source, waiting, asked = iter(texts), deque(), 0
        waiting.extend(classify.delay(text) for text in itertools.islice(source, AHEAD))
        while waiting:
            order.check(waiting.popleft().get(timeout=30))
            asked += 1
            waiting.extend(classify.delay(text) for text in itertools.islice(source, 1))
        return asked

    def ask_many(texts):
        return timed_sync(lambda: ask_all(texts))

    return {
        "warm_up": lambda: ask_many(order.texts()["warm"]),
        "ask_all": lambda: ask_many(jobs_of(order)),
        "paced": lambda: paced_sync(ask, order),
        "cold": lambda: ask_many(cold_jobs(order)),
    }


if __name__ == "__main__":
    serve_sync(producer)
