r"""Load askonce as its producers do, over Redis streams, with locust.

Start workers on a store (`[redis] url = …` in their configuration), then, for example:

    askonce worker askonce.toml &
    locust -f loadtest/askonce_loadtest/locustfile.py --headless -u 20 -r 20 -t 30s \
        --askonce-url redis://127.0.0.1:6379/0 --askonce-task intent --distinct 2000 --batch 1

Each user is a producer with a client of its own: it sends `--batch` jobs, waits for their replies
and sends the next. Every reply is a locust request, timed from the sending of its batch to its
arrival; an error reply, a refused job and a lost store are failures, and locust then exits with 1.
Texts repeat as in a Zipf distribution over `--distinct` texts, the same in every run with one seed;
or they are those of a workload (`--workload w.jsonl`, see `python -m askonce_loadtest workload`).
`-f locustfile.py,locust_shape.py` adds a ramp, a spike or a soak. More in docs/LOADTEST.md.

Options are read from the environment too (ASKONCE_URL, ASKONCE_TASK, …; see `--help`). Locust's
users are a closed loop, and its percentiles whole milliseconds: for headline figures use
`python -m askonce_loadtest drive`.

The client is the synchronous one: under locust, sockets are gevent's, and asyncio fails.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from contextlib import ExitStack
from typing import Protocol, cast

from locust import User, constant, task
from locust.env import Environment
from locust.exception import StopUser
from redis.exceptions import RedisError

from askonce_loadtest.locust_options import (
    Hook,
    Option,
    TextOptions,
    add_options,
    at_least_one,
    requests_of,
)
from askonce_loadtest.workloads.lines import FileError
from askonce_queue.errors import AskonceError
from askonce_queue.job import Job
from askonce_queue.sync import Client

REPLY_TIMEOUT_S = 60.0
PAUSE_AFTER_FAILURE_S = 1.0
"""A store that is down makes one failure a second and user, not thousands."""

add_options(
    (
        Option("askonce-url", str, "redis://127.0.0.1:6379/0", "the workers' store"),
        Option("askonce-shards", at_least_one, 1, "as in the workers' configuration"),
        Option("askonce-task", str, "intent", "the task to ask, if no workload says"),
        Option("batch", at_least_one, 1, "jobs that a user sends at once"),
    )
)


class Options(TextOptions, Protocol):
    """The options of this file, as locust hands them out."""

    askonce_url: str
    askonce_shards: int
    askonce_task: str
    batch: int


class JobFailed(AskonceError):
    """A reply that carries an error instead of an answer."""


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
        process = max(0, getattr(environment.runner, "worker_index", 0))
        started = time.perf_counter()
        try:
            client = Client(options.askonce_url, shards=options.askonce_shards)
            self._client = self._closing.enter_context(client)
            self._texts = requests_of(options, options.askonce_task, process=process, user=number)
        except (AskonceError, RedisError) as error:
            self._report("connect", started, error)
            raise StopUser from error

    def on_stop(self) -> None:
        """Close the client's connections."""
        self._closing.close()

    @task
    def ask(self) -> None:
        """Send one batch and report every reply, or the failure of the whole."""
        try:
            batch = list(itertools.islice(self._texts, self._options.batch))
        except FileError as error:
            self._report("workload", time.perf_counter(), error)
            raise StopUser from error
        if not batch:  # another user of this process has found the fault
            raise StopUser
        groups: defaultdict[tuple[str, str], list[Job]] = defaultdict(list)
        for request in batch:
            groups[request.task, request.lane].append(Job(task=request.task, text=request.text))
        for (name, lane), jobs in groups.items():
            self._ask(name, lane, jobs)

    def _ask(self, name: str, lane: str, jobs: list[Job]) -> None:
        """Send jobs of one task and lane."""
        started = time.perf_counter()
        try:
            for reply in self._client.ask_many(jobs, lane=lane, timeout_s=REPLY_TIMEOUT_S):
                failed = reply.error
                error = JobFailed(f"{failed.code}: {failed.message}") if failed else None
                self._report(name, started, error)
        except (AskonceError, RedisError) as error:
            self._report(name, started, error)
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
