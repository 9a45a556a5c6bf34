"""A fallback model: asked while the first is unavailable, and never taken for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis.asyncio

from askonce_loadtest.model_server import ModelServer
from askonce_queue import CacheControl, Client, Job
from askonce_queue.reply import Answer, ErrorCode, Reply
from askonce_queue.store import Store
from askonce_worker.backend import Backend
from askonce_worker.build import build_tasks, digest_of, fallback_of, open_models
from askonce_worker.cache.invalidation import invalidate
from askonce_worker.cache.key import KeyMaker
from askonce_worker.cache.policy import Control
from askonce_worker.cache.tags import version_tag
from askonce_worker.cli.invalidate_target import Chosen, tasks_of
from askonce_worker.config import load_settings
from askonce_worker.models.protocol import ModelFailure, Rejection, TransientFailure
from askonce_worker.pool.worker import Worker
from askonce_worker.resolver import Resolver
from askonce_worker.tasks import Task
from tests.support.queue_worker import QUICK
from tests.support.resolving import (
    DIGEST,
    Outcome,
    StepModel,
    Waiter,
    ask,
    assert_at_rest,
    make_task,
    resolver_on,
)
from tests.support.waiting import eventually


class Breaker:
    """A limit that is closed by the test: it holds the model for dead."""

    def __init__(self) -> None:
        self.down = False

    def room(self, in_flight: int) -> int:
        del in_flight
        return 0 if self.down else 1000

    def began(self) -> None:
        pass

    def ended(self, outcome: Answer | ModelFailure | None) -> None:
        pass


class Pair:
    """A task, its two models, and what holds the first for dead."""

    def __init__(self, *, slots: int = 64, remember_s: float = 60.0, **policy: Any) -> None:
        self.first, self.second = StepModel("first"), StepModel("second")
        self.breaker = Breaker()
        self.task = make_task(self.first, slots=slots, remember_s=remember_s, **policy)
        self.task.backend.limits.append(self.breaker)
        self.task.fallback = self.fallback = make_task(self.second, remember_s=remember_s, **policy)
        self.fallback.backend = Backend("m2", self.second, 64, 60.0)
        self.fallback.key_maker = KeyMaker(DIGEST[::-1], shared=False)
        self.fallback.version = version_tag(DIGEST[::-1])

    @property
    def calls(self) -> tuple[int, int]:
        return self.first.total, self.second.total

    def failing(self, failure: Exception) -> None:
        async def fail(_text: str, _number: int) -> None:
            raise failure

        self.first.behave = fail


async def label(resolver: Resolver, pair: Pair, text: str) -> tuple[str | None, str | None]:
    outcome = await ask(resolver, pair.task, text)
    return outcome.label, outcome.source


def code(outcome: Outcome) -> str | None:
    return outcome.error.code if outcome.error else None


async def test_each_model_has_answers_of_its_own(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    """Whatever one has said while the other was away is served only while it is away again."""
    pair = Pair()
    async with resolver_on(store_url) as resolver:
        assert await label(resolver, pair, "known") == ("first", "model")
        pair.breaker.down = True
        assert await label(resolver, pair, "known") == ("first", "memory")
        assert await label(resolver, pair, "new") == ("second", "model")
        assert await label(resolver, pair, "new") == ("second", "memory")
        pair.breaker.down = False
        assert await label(resolver, pair, "new") == ("first", "model")
        pair.breaker.down = True
        assert await label(resolver, pair, "new") == ("first", "memory")
        assert pair.calls == (2, 1)
        assert resolver.counters.total("fallbacks") == 2
        assert resolver.counters.total("errors") == 0
        await assert_at_rest(store, resolver, pair.task, pair.fallback)
    async with resolver_on(store_url) as another:  # from the store, as from memory
        assert await label(another, pair, "new") == ("first", "store")


async def test_many_who_wait_are_one_question_to_the_fallback(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    del store
    pair = Pair()
    pair.breaker.down = True
    pair.second.close()
    async with resolver_on(store_url) as resolver, resolver_on(store_url) as other:
        waiters = [Waiter(pair.task, "x") for _ in range(5)]
        resolver.resolve(waiters[:3])
        other.resolve(waiters[3:])
        await eventually(lambda: pair.second.in_flight)
        pair.second.open()
        outcomes = [await waiter.outcome() for waiter in waiters]
        assert {one.label for one in outcomes} == {"second"}
        assert [one.source for one in outcomes].count("model") == 1
    assert pair.calls == (0, 1)


@pytest.mark.parametrize(
    "failure",
    [
        *(TransientFailure(c, "away") for c in ("unavailable", "timeout", "rate_limited")),
        TransientFailure("model_failed", "raised"),
        Rejection("unauthorized", "HTTP 401"),
        Rejection("quota_exceeded", "HTTP 429"),
    ],
    ids=lambda failure: str(failure.code),
)
async def test_when_the_first_model_gives_up(
    store: redis.asyncio.Redis, store_url: str, failure: ModelFailure
) -> None:
    """Other processes are told, and ask the fallback at once."""
    del store
    pair = Pair()
    pair.failing(failure)
    async with resolver_on(store_url) as resolver, resolver_on(store_url) as other:
        assert await label(resolver, pair, "x") == ("second", "model")
        asked = pair.first.total
        assert asked == (3 if isinstance(failure, TransientFailure) else 1)
        assert await label(other, pair, "x") == ("second", "store")
        assert pair.calls == (asked, 1)
        bypass = Waiter(pair.task, "y", cacheable=False)
        resolver.resolve([bypass])
        assert (await bypass.outcome()).label == "second"


@pytest.mark.parametrize("said", ["refused", "truncated", "unparsable", "out_of_set", "rejected"])
async def test_what_is_wrong_with_the_question_is_for_no_other_model(
    store: redis.asyncio.Redis, store_url: str, said: ErrorCode
) -> None:
    del store
    pair = Pair()
    pair.failing(Rejection(said, "no"))
    async with resolver_on(store_url) as resolver:
        assert code(await ask(resolver, pair.task, "x")) == said
    assert pair.second.total == 0


async def test_no_retries_of_a_model_that_is_down(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    del store
    pair = Pair()

    async def fail(_text: str, _number: int) -> None:
        pair.breaker.down = True
        raise TransientFailure("unavailable", "away")

    pair.first.behave = fail
    async with resolver_on(store_url) as resolver:
        assert await label(resolver, pair, "x") == ("second", "model")
    assert pair.calls == (1, 1)


async def test_who_waits_for_a_slot_of_a_model_that_dies(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    pair = Pair(slots=1)
    pair.first.close()
    async with resolver_on(store_url) as resolver:
        held, waiting = Waiter(pair.task, "held"), Waiter(pair.task, "waiting")
        alone = Waiter(pair.task, "alone", cacheable=False)
        resolver.resolve([held])
        await eventually(lambda: pair.first.in_flight)
        resolver.resolve([waiting, alone])
        pair.breaker.down = True
        assert (await waiting.outcome()).label == "second"
        pair.first.open()
        assert (await held.outcome()).label == "first"
        assert (await alone.outcome()).label == "second"
        await assert_at_rest(store, resolver, pair.task, pair.fallback)


async def test_a_stale_answer_of_the_first_model_goes_before_the_fallback(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    """Where the task, or the job, accepts one: of a model that is down, and of one that fails."""
    del store
    pair = Pair(ttl_s=0.2, stale_if_error_s=60.0, remember_s=0.001)
    async with resolver_on(store_url, memory_bytes=0) as resolver:
        assert await label(resolver, pair, "x") == ("first", "model")
        pair.breaker.down = True

        async def is_stale() -> bool:
            return await label(resolver, pair, "x") == ("first", "stale")

        await eventually(is_stale)
        strict = Waiter(pair.task, "x", control=Control())
        resolver.resolve([strict])
        assert (await strict.outcome()).label == "second"
        pair.breaker.down = False
        pair.failing(TransientFailure("unavailable", "away"))
        assert await label(resolver, pair, "x") == ("first", "stale")
        assert pair.second.total == 1


async def test_neither_answers(store: redis.asyncio.Redis, store_url: str) -> None:
    pair = Pair()
    pair.failing(TransientFailure("unavailable", "the first is away"))

    async def fail(_text: str, _number: int) -> None:
        raise Rejection("refused", "the second will not")

    pair.second.behave = fail
    async with resolver_on(store_url) as resolver:
        (outcome,) = [await ask(resolver, pair.task, "x")]
        assert outcome.error is not None
        assert outcome.error.code == "refused"
        for part in ("the second will not", "'m2'", "the first is away"):
            assert part in outcome.error.message
        await assert_at_rest(store, resolver, pair.task, pair.fallback)


async def test_another_task_without_a_fallback_waits(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    """It asks the same of the same model, and joined the flight."""
    del store
    pair = Pair()
    patient = make_task(pair.first, "patient")
    patient.backend = pair.task.backend
    pair.breaker.down = True
    async with resolver_on(store_url) as resolver:
        waiters = [Waiter(pair.task, "x"), Waiter(patient, "x")]
        resolver.resolve(waiters)
        assert (await waiters[0].outcome()).label == "second"
        assert not waiters[1].outcomes
        pair.breaker.down = False
        patient.backend.opened()
        assert (await waiters[1].outcome()).label == "first"


async def test_an_invalidation_of_the_task_reaches_both(
    askonce_store: Store, store_url: str
) -> None:
    pair = Pair()
    async with resolver_on(store_url) as resolver:
        await label(resolver, pair, "x")
        pair.breaker.down = True
        await label(resolver, pair, "y")
        done = await invalidate(askonce_store, [pair.task.tag])
        assert done.complete
        await resolver.see_invalidations()
        assert await label(resolver, pair, "y") == ("second", "model")
        pair.breaker.down = False
        assert await label(resolver, pair, "x") == ("first", "model")
    assert pair.calls == (2, 2)


# From a configuration

CONFIG = """
[models.first]
kind = "openai"
base_url = "{first}"
model = "model-1"
timeout_s = 5
price = {{ per_call = 2.0 }}
breaker = {{ open_s = 0.2 }}

[models.second]
kind = "openai"
base_url = "{second}"
model = "model-2"
price = {{ per_call = 0.5 }}

[tasks.tone]
model = "first"
fallback = "second"
labels = ["good", "bad"]
cache = {{ verify_share = 0.5, max_disagreement = 0.2 }}
budget = {{ per_day = 100.0 }}

[worker]
max_attempts = 1
remember_exhausted_s = 0.001
"""


async def test_over_http(store: redis.asyncio.Redis, store_url: str, tmp_path: Path) -> None:
    """The first model dies and comes back; each reply says which model has answered."""
    del store
    path = tmp_path / "askonce.toml"
    texts: dict[str, Any] = {"labels": {"x": "good"}}
    async with ModelServer(**texts) as second:
        async with ModelServer(**texts) as first:
            path.write_text(CONFIG.format(first=first.base_url, second=second.base_url))
            port = first.port
        settings = load_settings(path)
        async with open_models(settings) as backends:
            tasks = build_tasks(settings, backends)
            worker = Worker(store_url, tasks, msgspec.structs.replace(settings.worker, **QUICK))
            async with worker.running(), Client(store_url, name="shop") as client:

                async def answered(**job: Any) -> Reply:
                    reply = await client.ask(Job(task="tone", text="x", **job))
                    assert reply.answer is not None, reply.error
                    return reply

                reply = await answered()
                assert (reply.answer.model, reply.cost) == ("model-2", 0.5)  # type: ignore[union-attr]
                apart = await answered(tenant="acme", cache=CacheControl(namespace="mine"))
                assert apart.source == "model"
                async with ModelServer(port=port, **texts):

                    async def asked_anew() -> Reply | None:
                        reply = await answered()  # from memory, until the next one is a probe
                        return reply if reply.source == "model" else None

                    back = await eventually(asked_anew)
                    assert isinstance(back, Reply)
                    assert back.cost == 2.0
                    assert back.answer.model == "model-1"  # type: ignore[union-attr]
            counts = worker.counters.since_start()
            assert counts["tone", "fallbacks"] >= 2
            assert counts["tone", "spent_nano"] == 5_000_000_000
            assert counts["tone", "lane_interactive_calls"] == 4
            assert counts["tone", "lane_interactive_spent_nano"] == 5_000_000_000
            budget = tasks["tone"].budget
            assert budget is not None
            assert budget.spent_nano == 5_000_000_000
            assert worker.vitals().slots_in_use == {"first": 0, "second": 0}


def test_what_a_configuration_makes_of_it(tmp_path: Path) -> None:
    path = tmp_path / "askonce.toml"
    path.write_text(CONFIG.format(first="http://a/v1", second="http://b/v1"))
    settings = load_settings(path)
    config = settings.tasks["tone"]
    fallback = fallback_of(config)
    assert fallback is not None
    assert (fallback.model, fallback.fallback) == ("second", None)
    assert (fallback.cache.verify_share, fallback.hit_log.share) == (0, 0)
    alone = msgspec.structs.replace(config, model="second", fallback=None)
    assert digest_of(settings, fallback) == digest_of(settings, alone)  # shared with who asks it
    assert digest_of(settings, fallback) != digest_of(settings, config)
    for model in ("first", "second"):
        assert tasks_of(Chosen(models=[model]), settings, force=False) == (["tone"], [])


async def test_tasks_share_their_budget_with_their_fallback(tmp_path: Path) -> None:
    path = tmp_path / "askonce.toml"
    path.write_text(CONFIG.format(first="http://a/v1", second="http://b/v1"))
    settings = load_settings(path)
    async with open_models(settings) as backends:
        task: Task = build_tasks(settings, backends)["tone"]
        assert task.fallback is not None
        assert task.fallback.budget is task.budget
        assert (task.price.per_call, task.fallback.price.per_call) == (2.0, 0.5)
        assert task.fallback.tags == task.tags
        assert task.fallback.version != task.version
