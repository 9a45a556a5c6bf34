"""Micro-batching end to end: as configured, over real HTTP, with a store, counted and priced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio
from structlog.testing import capture_logs

from askonce_loadtest.model_server import Behaviour, Fault, ModelServer
from askonce_queue.reply import Answer
from askonce_worker.build import build_tasks, open_models
from askonce_worker.clock import SystemClock
from askonce_worker.config import load_settings
from askonce_worker.models.batching import BatchedModel
from askonce_worker.models.circuit import Circuit
from askonce_worker.models.http_many import HttpManyModel, ManyDialect
from askonce_worker.models.moderations import Moderations
from askonce_worker.models.predict import Predict
from askonce_worker.models.protocol import ModelFailure, Prompt, Question, TransientFailure
from askonce_worker.models.python_many import PythonManyModel
from askonce_worker.models.retry import RetryPolicy
from askonce_worker.observe.money import NANO
from askonce_worker.resolver import Resolver
from askonce_worker.tasks import Task
from tests.support.resolving import (
    QUICK_RETRY,
    Outcome,
    Waiter,
    assert_at_rest,
    resolver_on,
)
from tests.support.waiting import eventually

SIZE, PRICE = 25, 0.25
TEXTS = [f"text {number}" for number in range(4 * SIZE)]
FEW = TEXTS[:8]
KINDS = {"openai-moderations": "/v1", "predict": ""}
LABELS = {"openai-moderations": ("hate", "violence"), "predict": ("positive", "negative")}
PROMPT = Prompt(labels=("spam", "ham"))
kinds = pytest.mark.parametrize("kind", KINDS)


class CountingLimit:
    """A limit that only listens."""

    down = False

    def __init__(self) -> None:
        self.began_count = 0
        self.outcomes: list[Answer | ModelFailure | None] = []

    def room(self, in_flight: int) -> int:
        del in_flight
        return 1000

    def began(self) -> None:
        self.began_count += 1

    def ended(self, outcome: Answer | ModelFailure | None) -> None:
        self.outcomes.append(outcome)


@asynccontextmanager
async def tasks_of(folder: Path, config: str) -> AsyncGenerator[dict[str, Task]]:
    path = folder / "askonce.toml"
    path.write_text(config, encoding="utf-8")
    settings = load_settings(path)
    async with open_models(settings) as backends:
        tasks = build_tasks(settings, backends)
        for task in tasks.values():
            task.retry = QUICK_RETRY
        yield tasks


def api_config(server: ModelServer, kind: str, size: int = SIZE, wait_ms: int = 300) -> str:
    """Two tasks on one model. The wait is longer than anything between two flights here."""
    return f"""
[models.guard]
kind = "{kind}"
base_url = "{server.root_url}{KINDS[kind]}"
model = "m"
price = {{ per_call = {PRICE} }}
batch = {{ size = {size}, wait_ms = {wait_ms} }}
[tasks.t]
model = "guard"
[tasks.other]
model = "guard"
"""


async def outcomes_of(resolver: Resolver, task: Task, texts: list[str]) -> list[Outcome]:
    waiters = [Waiter(task, text) for text in texts]
    resolver.resolve(waiters)
    return [await waiter.outcome() for waiter in waiters]


def total(resolver: Resolver, name: str) -> int:
    return resolver.counters.total(name)


@kinds
async def test_questions_that_are_ready_together_share_requests(
    store: redis.asyncio.Redis, store_url: str, tmp_path: Path, kind: str
) -> None:
    labels = {text: LABELS[kind][number % 2] for number, text in enumerate(TEXTS)}
    async with (
        ModelServer(labels=labels) as server,
        tasks_of(tmp_path, api_config(server, kind)) as tasks,
        resolver_on(store_url) as resolver,
    ):
        task, limit = tasks["t"], CountingLimit()
        task.backend.limits.append(limit)
        with capture_logs() as lines:
            outcomes = await outcomes_of(resolver, task, TEXTS)
        assert {text: outcome.label for text, outcome in zip(TEXTS, outcomes, strict=True)} == (
            labels
        )
        assert {outcome.source for outcome in outcomes} == {"model"}
        # Asked once each, with a line each, in four requests, which is what is paid and limited.
        assert (server.total_calls, len(server.calls)) == (len(TEXTS), len(TEXTS))
        calls = [line["key"] for line in lines if line["event"] == "model call"]
        assert len(calls) == len(set(calls)) == len(TEXTS)
        assert total(resolver, "model_calls") == total(resolver, "calls_fill") == len(TEXTS)
        assert server.total_requests == total(resolver, "model_requests") == 4
        assert limit.began_count == len(limit.outcomes) == 4
        assert total(resolver, "spent_nano") == 4 * PRICE * NANO
        assert await task.backend.model.check()
        await assert_at_rest(store, resolver, task)


@kinds
async def test_tasks_share_a_model_and_no_requests(
    store: redis.asyncio.Redis, store_url: str, tmp_path: Path, kind: str
) -> None:
    async with (
        ModelServer() as server,
        tasks_of(tmp_path, api_config(server, kind, size=6)) as tasks,
        resolver_on(store_url) as resolver,
    ):
        waiters = [Waiter(tasks[name], text) for text in FEW[:3] for name in ("t", "other")]
        for waiter in waiters[1::2]:
            waiter.key = bytes([waiter.key[0] ^ 1]) + waiter.key[1:]
        resolver.resolve(waiters)
        assert all([(await waiter.outcome()).label for waiter in waiters])
        assert (server.total_requests, server.total_calls) == (2, 6)
        await assert_at_rest(store, resolver, *tasks.values())


@kinds
@pytest.mark.parametrize("fault", ["status_400", "malformed", "wrong_content_type"])
async def test_a_poisonous_input_harms_only_itself(
    store: redis.asyncio.Redis, store_url: str, tmp_path: Path, kind: str, fault: Fault
) -> None:
    script: dict[str, list[Fault]] = {FEW[5]: [fault] * 9}
    async with (
        ModelServer(script=script) as server,
        tasks_of(tmp_path, api_config(server, kind, size=len(FEW))) as tasks,
        resolver_on(store_url) as resolver,
    ):
        outcomes = await outcomes_of(resolver, tasks["t"], FEW)
        errors = [outcome.error for outcome in outcomes if outcome.error]
        assert [error.code for error in errors] == [
            "rejected" if fault == "status_400" else "unparsable"
        ]
        assert outcomes[5].error is errors[0]
        assert server.total_requests == total(resolver, "model_requests") == 1 + 2 * 3
        assert total(resolver, "model_calls") == len(FEW)
        assert total(resolver, "errors") == 1
        again = await outcomes_of(resolver, tasks["t"], FEW)
        assert [outcome.source for outcome in again].count("memory") == len(FEW) - 1
        assert server.total_requests == 7
        await assert_at_rest(store, resolver, tasks["t"])


async def test_a_label_that_nobody_offered_is_one_questions_own(
    store: redis.asyncio.Redis, store_url: str, tmp_path: Path
) -> None:
    async with (
        ModelServer(script={FEW[2]: ["out_of_set"]}) as server,
        tasks_of(tmp_path, api_config(server, "predict", size=len(FEW))) as tasks,
        resolver_on(store_url) as resolver,
    ):
        task = tasks["t"]
        task.prompt = Prompt(labels=LABELS["predict"])
        outcomes = await outcomes_of(resolver, task, FEW)
        assert [outcome.error.code for outcome in outcomes if outcome.error] == ["out_of_set"]
        assert server.total_requests == 1
        await assert_at_rest(store, resolver, task)


@kinds
@pytest.mark.parametrize(
    ("fault", "requests"),
    [("status_500", 1 + len(FEW)), ("cut", 1 + len(FEW)), ("status_429", 2)],
)
async def test_a_request_that_fails_is_tried_again_one_by_one_or_later(
    store: redis.asyncio.Redis,
    store_url: str,
    tmp_path: Path,
    kind: str,
    fault: Fault,
    requests: int,
) -> None:
    """Perhaps one of them has brought the server down; a 429 is nobody's fault."""
    async with (
        ModelServer(script={FEW[5]: [fault]}) as server,
        tasks_of(tmp_path, api_config(server, kind, size=len(FEW))) as tasks,
        resolver_on(store_url) as resolver,
    ):
        outcomes = await outcomes_of(resolver, tasks["t"], FEW)
        assert not [outcome.error for outcome in outcomes if outcome.error]
        assert server.total_requests == total(resolver, "model_requests") == requests
        assert total(resolver, "calls_retry") == len(FEW)
        await assert_at_rest(store, resolver, tasks["t"])


# --- a model that is down, limited, or both ----------------------------------------------------


DEAD = TransientFailure("unavailable", "connection refused", reached=False)
ONCE = RetryPolicy(max_attempts=1, base_s=0.001, cap_s=0.002)
BREAKER = """
[models.guard.breaker]
failures = 8
open_s = 0.2
"""


class Gate:
    """An admission that lets requests begin when it is opened."""

    def __init__(self) -> None:
        self.waiting = 0
        self.opened = asyncio.Event()

    async def admit(self) -> None:
        self.waiting += 1
        try:
            await self.opened.wait()
        finally:
            self.waiting -= 1


async def test_one_failed_request_of_many_is_no_outage(
    store: redis.asyncio.Redis, store_url: str, tmp_path: Path
) -> None:
    texts = TEXTS[:32]
    async with (
        ModelServer(script={texts[7]: ["status_500"]}) as server,
        tasks_of(tmp_path, api_config(server, "predict", size=32)) as tasks,
        resolver_on(store_url) as resolver,
    ):
        backend = tasks["t"].backend
        outcomes = await outcomes_of(resolver, tasks["t"], texts)
        assert not [outcome.error for outcome in outcomes if outcome.error]
        assert server.total_requests == 1 + 32
        vitals = backend.availability.vitals(backend.slots)
        assert (vitals.circuit, vitals.openings, vitals.limit) == ("closed", 0, backend.slots)
        await assert_at_rest(store, resolver, tasks["t"])


async def test_a_run_of_failed_requests_is_one_and_a_request_is_the_probe(
    store: redis.asyncio.Redis, store_url: str, tmp_path: Path
) -> None:
    async with ModelServer(Behaviour(status_500=1.0)) as server:
        config = api_config(server, "predict", size=4) + BREAKER
        async with tasks_of(tmp_path, config) as tasks, resolver_on(store_url) as resolver:
            task = tasks["t"]
            task.retry = ONCE
            availability = task.backend.availability
            outcomes = await outcomes_of(resolver, task, TEXTS[: 7 * 4])
            assert {outcome.error.code for outcome in outcomes if outcome.error} == {"unavailable"}
            assert availability.circuit is Circuit.CLOSED
            waiters = [Waiter(task, text) for text in TEXTS[7 * 4 : 8 * 4]]
            resolver.resolve(waiters)
            await eventually(lambda: availability.outage)
            before = server.total_requests
            server.behaviour = Behaviour()
            assert all([(await waiter.outcome()).label for waiter in waiters])
            assert availability.circuit is Circuit.CLOSED
            assert availability.vitals(256).openings == 1
            assert server.total_requests - before <= 4
            await assert_at_rest(store, resolver, task)


async def test_a_request_of_many_that_is_told_to_wait_halves_the_limit_once(
    store: redis.asyncio.Redis, store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = TEXTS[:32]
    async with (
        ModelServer(script={texts[3]: ["status_429"]}) as server,
        tasks_of(tmp_path, api_config(server, "predict", size=32)) as tasks,
        resolver_on(store_url) as resolver,
    ):
        backend = tasks["t"].backend
        ends: list[tuple[float, int]] = []
        ended = backend.ended

        def note(*args: Any) -> None:
            ended(*args)
            ends.append((backend.availability.vitals(1000).limit, backend.asking))

        monkeypatch.setattr(backend, "ended", note)
        outcomes = await outcomes_of(resolver, tasks["t"], texts)
        assert not [outcome.error for outcome in outcomes if outcome.error]
        assert server.total_requests == 2
        assert {limit for limit, _ in ends[:32]} == {32}
        assert min(limit for limit, _ in ends) == 32
        assert (ends[31][1], ends[-1][1]) == (0, 0)
        await assert_at_rest(store, resolver, tasks["t"])


async def test_who_is_late_by_the_time_of_a_request_is_not_in_it(
    store: redis.asyncio.Redis, store_url: str, tmp_path: Path
) -> None:
    async with (
        ModelServer() as server,
        tasks_of(tmp_path, api_config(server, "predict", size=len(FEW))) as tasks,
        resolver_on(store_url) as resolver,
    ):
        task, gate = tasks["t"], Gate()
        task.backend.admission = gate
        deadline = SystemClock().monotonic() + 0.3
        late = Waiter(task, FEW[2], deadline=deadline)
        waiters = [Waiter(task, text) for text in FEW if text != FEW[2]]
        resolver.resolve([*waiters, late])
        await eventually(lambda: gate.waiting == 1)
        error = (await late.outcome()).error
        assert error is not None
        assert error.code == "deadline_exceeded"
        assert total(resolver, "model_calls") == 0
        gate.opened.set()
        assert all([(await waiter.outcome()).label for waiter in waiters])
        await assert_at_rest(store, resolver, task)
        assert server.calls.keys() == set(FEW) - {FEW[2]}
        assert total(resolver, "model_calls") == len(FEW) - 1


async def test_a_batch_whose_model_goes_down_while_it_waits_gives_way(
    store: redis.asyncio.Redis, store_url: str, tmp_path: Path
) -> None:
    async with (
        ModelServer() as server,
        tasks_of(tmp_path, api_config(server, "predict", size=len(FEW)) + BREAKER) as tasks,
        resolver_on(store_url) as resolver,
    ):
        task, gate = tasks["t"], Gate()
        availability = task.backend.availability
        task.backend.admission = gate
        waiters = [Waiter(task, text) for text in FEW]
        resolver.resolve(waiters)
        await eventually(lambda: gate.waiting == 1)
        for key in (b"q", b"r"):
            availability.ended(DEAD, key, availability.began())
        assert availability.down
        gate.opened.set()
        await eventually(lambda: total(resolver, "given_way") == len(FEW))
        assert (total(resolver, "model_calls"), server.total_requests) == (0, 0)
        assert all([(await waiter.outcome()).label for waiter in waiters])
        assert set(server.calls.values()) == {1}
        assert total(resolver, "calls_fill") == len(FEW)
        await assert_at_rest(store, resolver, task)


# --- Python ----------------------------------------------------------------------------------


SOURCE = """
calls = []


def classify(texts):
    calls.append(len(texts))
    return ["short" if len(text) < 7 else {"label": "long", "score": 0.5} for text in texts]


async def classify_async(texts):
    return classify(texts)
"""


@pytest.mark.parametrize("function", ["classify", "classify_async"])
async def test_a_function_that_takes_many(
    store: redis.asyncio.Redis, store_url: str, tmp_path: Path, function: str
) -> None:
    module = f"many_{function}"
    (tmp_path / f"{module}.py").write_text(SOURCE, encoding="utf-8")
    config = f"""
[models.mine]
kind = "python"
call = "{module}:{function}"
max_concurrency = 100
batch = {{ size = {SIZE}, wait_ms = 300 }}
[tasks.t]
model = "mine"
"""
    async with tasks_of(tmp_path, config) as tasks, resolver_on(store_url) as resolver:
        outcomes = await outcomes_of(resolver, tasks["t"], TEXTS)
        assert [outcome.label for outcome in outcomes] == ["short"] * 10 + ["long"] * 90
        assert total(resolver, "model_requests") == 4
        assert total(resolver, "model_calls") == len(TEXTS)
        await assert_at_rest(store, resolver, tasks["t"])


async def said(call: Callable[[list[str]], Any], *texts: str) -> list[str]:
    """What a callable of many says to each text: a label, or the code of a failure."""
    many = PythonManyModel(call, name="mine", timeout_s=10.0, max_threads=8)
    model = BatchedModel(many, size=len(texts), wait_s=0.3)

    async def one(text: str) -> str:
        try:
            return (await model.ask(PROMPT, Question(text=text))).label or ""
        except ModelFailure as failure:
            return failure.code

    try:
        return await asyncio.gather(*map(one, texts))
    finally:
        await model.aclose()


async def test_each_text_has_its_own_result() -> None:
    def call(texts: list[str]) -> list[Any]:
        known: dict[str, Any] = {"a": "spam", "b": None, "c": {"label": "ham"}, "d": "eggs"}
        known["e"] = TransientFailure("rate_limited", "later")
        return [known[text] for text in texts]

    codes = ["spam", "unparsable", "ham", "out_of_set", "rate_limited"]
    assert await said(call, *"abcde") == codes


@pytest.mark.parametrize("result", ["spam", {"a": "spam"}, None, 3, b"ab"])
async def test_a_function_that_returns_no_list_is_unparsable(result: object) -> None:
    assert await said(lambda _: result, "a", "b") == ["unparsable"] * 2


async def test_a_list_that_is_too_short_is_asked_for_again_in_parts() -> None:
    def call(texts: list[str]) -> tuple[str, ...]:
        return tuple("spam" for text in texts if text != "lost")

    assert await said(call, "a", "b", "lost", "d") == ["spam", "spam", "unparsable", "spam"]


async def test_a_function_that_raises_fails_all_of_it() -> None:
    """They are asked again one by one."""

    def call(texts: list[str]) -> list[str]:
        return [{"a": "spam"}[text] for text in texts]

    assert await said(call, "a", "b") == ["model_failed"] * 2
    assert await said(call, "a") == ["spam"]


# --- what is sent ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        (Moderations(), {"model": "m", "input": ["a", "b"], "x": 1}),
        (Predict(), {"inputs": [["a"], ["b"]], "truncate": False, "x": 1}),
    ],
)
async def test_what_is_sent_and_what_goes_alone(dialect: ManyDialect, body: object) -> None:
    questions = [Question(text=text, params={"x": 1}) for text in "ab"]
    assert dialect.request_many("m", Prompt(), questions).body == body
    async with aiohttp.ClientSession() as session:
        model = HttpManyModel(
            session, dialect, base_url="http://h", model="m", api_key=lambda: None, timeout_s=1
        )
        assert model.group(questions[0]) == model.group(questions[1])
        assert model.group(Question(text="a")) != model.group(questions[0])
        assert model.group(Question(text="a", params={"x": 1.0})) != model.group(questions[0])
        for alone in (
            Question(messages=[{"role": "user", "content": "a"}]),
            Question(text=""),
            Question(text="a", params={"x": object()}),
        ):
            assert model.group(alone) is None
