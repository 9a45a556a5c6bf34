r"""Load askonce as its producers do, over Redis streams, with locust.

Start workers on a store (`[redis] url = …` in their configuration), then, for example:

    askonce worker askonce.toml &
    locust -f loadtest/askonce_loadtest/locustfile.py --headless -u 20 -r 20 -t 30s \
        --askonce-url redis://127.0.0.1:6379/0 --askonce-task intent --distinct 2000 --batch 1

Each user is a producer with a client of its own: it sends `--batch` jobs, waits for their replies
and sends the next. Every reply is a locust request, timed from the sending of its batch to its
arrival; an error reply, a refused job and a lost store are failures, and locust then exits with 1.
Texts repeat as in a Zipf distribution over `--distinct` texts, the same in every run with one seed.

Options are read from the environment too (ASKONCE_URL, ASKONCE_TASK, …; see `--help`). Locust's
users are a closed loop, and its percentiles whole milliseconds: for headline figures use
`python -m askonce_loadtest bench`.

The client is the synchronous one: under locust, sockets are gevent's, and asyncio fails.
"""

from __future__ import annotations

import itertools
import random
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Protocol, cast

from locust import User, constant, events, task
from locust.env import Environment
from locust.exception import StopUser
from redis.exceptions import RedisError

from askonce_queue.errors import AskonceError
from askonce_queue.job import Job
from askonce_queue.sync import Client

REPLY_TIMEOUT_S = 60.0
PAUSE_AFTER_FAILURE_S = 1.0
"""A store that is down makes one failure a second and user, not thousands."""


class Parser(Protocol):
    """The part of locust's option parser that is used here; locust leaves it untyped."""

    def add_argument(self, *flags: str, **settings: object) -> object:
        """Add one option."""
        ...


class Hook(Protocol):
    """The part of locust's event hooks that is used here; locust leaves them untyped."""

    def add_listener(self, handler: Callable[..., None]) -> object:
        """Call `handler` at every event."""
        ...

    def fire(self, **fields: object) -> None:
        """Make an event happen."""
        ...


class Options(Protocol):
    """The options of this file, as locust hands them out."""

    askonce_url: str
    askonce_shards: int
    askonce_task: str
    distinct: int
    exponent: float
    batch: int
    seed: int


class JobFailed(AskonceError):
    """A reply that carries an error instead of an answer."""


def at_least_one(value: str) -> int:
    """Read a whole number of at least 1. Raises `ArgumentTypeError` otherwise."""
    if value.isdecimal() and int(value) > 0:
        return int(value)
    raise ArgumentTypeError(f"expected a whole number of at least 1, not {value!r}")


def add_options(parser: Parser, **_: object) -> None:
    """Add the options of this file to locust's own; each is read from the environment too."""
    table: tuple[tuple[str, Callable[[str], object], object, str], ...] = (
        ("askonce-url", str, "redis://127.0.0.1:6379/0", "the workers' store"),
        ("askonce-shards", at_least_one, 1, "as in the workers' configuration"),
        ("askonce-task", str, "intent", "the task to ask"),
        ("distinct", at_least_one, 2_000, "how many different texts there are"),
        ("exponent", float, 1.05, "of the texts' Zipf distribution; 0: all as frequent"),
        ("batch", at_least_one, 1, "jobs that a user sends at once"),
        ("seed", int, 1, "decides which texts come when"),
    )
    for name, read, default, meaning in table:
        parser.add_argument(
            f"--{name}",
            env_var="ASKONCE_" + name.removeprefix("askonce-").upper(),
            type=read,
            default=default,
            help=f"{meaning} (default: {default})",
        )


cast("Hook", events.init_command_line_parser).add_listener(add_options)


def zipf_texts(distinct: int, exponent: float, seed: str) -> Iterator[str]:
    """Yield texts without end; the k-th of `distinct` comes with a chance of about 1 / k**exponent.

    The same arguments give the same texts in the same order.
    """
    chance = random.Random(seed)  # repeatable, not secret
    texts = [f"I have question {rank} about my card" for rank in range(1, distinct + 1)]
    weights = list(itertools.accumulate(rank**-exponent for rank in range(1, distinct + 1)))
    while True:
        yield from chance.choices(texts, cum_weights=weights, k=1_000)


class Producer(User):
    """A producer with its own client: it sends a batch, waits for the replies, sends the next."""

    wait_time = constant(0)
    _numbers = itertools.count()

    def on_start(self) -> None:
        """Connect. A store that cannot be reached is a failure, and ends this user."""
        environment = cast("Environment", self.environment)
        self._options = cast("Options", environment.parsed_options)
        self._requests = cast("Hook", environment.events.request)
        self._closing = ExitStack()
        options, number = self._options, next(self._numbers)
        # The processes of a distributed run must not all send the same texts in step.
        process: int = getattr(environment.runner, "worker_index", 0)
        seed = f"{options.seed}/{process}/{number}"
        self._texts = zipf_texts(options.distinct, options.exponent, seed)
        started = time.perf_counter()
        try:
            client = Client(options.askonce_url, shards=options.askonce_shards)
            self._client = self._closing.enter_context(client)
        except (AskonceError, RedisError) as error:
            self._report("connect", started, error)
            raise StopUser from error

    def on_stop(self) -> None:
        """Close the client's connections."""
        self._closing.close()

    @task
    def ask(self) -> None:
        """Send one batch and report every reply, or the failure of the whole."""
        options = self._options
        jobs = [
            Job(task=options.askonce_task, text=next(self._texts)) for _ in range(options.batch)
        ]
        started = time.perf_counter()
        try:
            for reply in self._client.ask_many(jobs, timeout_s=REPLY_TIMEOUT_S):
                failed = reply.error
                error = JobFailed(f"{failed.code}: {failed.message}") if failed else None
                self._report(options.askonce_task, started, error)
        except (AskonceError, RedisError) as error:
            self._report(options.askonce_task, started, error)
            time.sleep(PAUSE_AFTER_FAILURE_S)

    def _report(self, name: str, started: float, error: Exception | None) -> None:
        """Fire locust's request event; `started` is on the clock of `time.perf_counter`, in s."""
        self._requests.fire(
            request_type="askonce",
            name=name,
            response_time=(time.perf_counter() - started) * 1_000,
            response_length=0,
            exception=error,
            context={},
        )
