"""dramatiq. Its worker is `dramatiq dramatiq_queue`, one process of threads.

Settings: one process (every peer has one) of 8 threads, its default; the results middleware with
the Redis backend, whose waiting is a blocking command; no time limits, retries or callbacks in the
middleware list that this job has no use for; a client with a socket timeout above the 10 s that a
result may block: with redis-py's default of 5 s the stock client raises.
"""

import itertools
from collections import deque

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import AgeLimit, Middleware, Retries, ShutdownNotifications, TimeLimit
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from drivers import cold_jobs, jobs_of, paced_sync, timed_sync
from harness import order, ready, serve_sync
from recipe import get_or_call_sync

AHEAD = 1_000
SOCKET_S = 60

_order = order()


def connect(**settings):
    """A client with room for every thread."""
    return redis.Redis.from_url(
        _order.store_url, socket_timeout=SOCKET_S, max_connections=1_000, **settings
    )


class Ready(Middleware):
    """Tells that this worker takes jobs."""

    def after_worker_boot(self, broker, worker):
        """See dramatiq."""
        ready()


broker = RedisBroker(
    client=connect(),
    middleware=[
        AgeLimit(),
        TimeLimit(),
        ShutdownNotifications(),
        Retries(max_retries=0),
        Results(backend=RedisBackend(client=connect()), store_results=True),
        Ready(),
    ],
)
dramatiq.set_broker(broker)
answers = connect(decode_responses=True)


@dramatiq.actor
def classify(text):
    """The job."""
    return get_or_call_sync(answers, _order.model_url, text)


def producer(order):
    """The producer's steps."""

    def ask(text):
        return classify.send(text).get_result(block=True)

    def ask_all(texts):
        """Hand in ahead of the results, and take them oldest first."""
        source, waiting, asked = iter(texts), deque(), 0
        waiting.extend(classify.send(text) for text in itertools.islice(source, AHEAD))
        while waiting:
            order.check(waiting.popleft().get_result(block=True))
            asked += 1
            waiting.extend(classify.send(text) for text in itertools.islice(source, 1))
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
