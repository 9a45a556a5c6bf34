"""Every error of every API over real HTTP: the reply, what is kept (nothing), what is counted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple, get_args

import aiohttp
import pytest
import redis.asyncio

from askonce_loadtest.model_server import Fault, ModelServer
from askonce_queue.reply import ErrorCode
from askonce_worker.resolver import Resolver
from askonce_worker.tasks import Task
from tests.support.apis import APIS, Api, prompt_of
from tests.support.chat_models import KEY, model_at
from tests.support.resolving import (
    QUICK_RETRY,
    Outcome,
    all_keys,
    ask,
    assert_at_rest,
    make_task,
)
from tests.support.virtual_time import VirtualTime

LONG_S, SHORT_S = 60.0, 5.0
"""How long rejections are remembered, and what passes."""
TEXT = "buy now"


class Ends(NamedTuple):
    """How a call ends that an API fails: the error's code, and what its message says."""

    code: ErrorCode
    says: str
    again: bool = False
    """Whether it is tried again."""
    passes: bool = False
    """Whether it is no fault of the question: it is remembered for a short time only."""


LATER = Ends("rate_limited", "HTTP 429", again=True, passes=True)
DOWN = Ends("unavailable", "HTTP 5", again=True, passes=True)
ERRORS: dict[Fault, Ends] = {
    "status_400": Ends("rejected", "HTTP 4"),
    "status_429": LATER,
    "status_500": DOWN,
    "overload": DOWN,
    "unauthorized": Ends("unauthorized", "check the API key", passes=True),
    "quota": Ends("quota_exceeded", "check its plan and billing", passes=True),
    "stall": Ends("timeout", "no answer from http", again=True, passes=True),
    "cut": Ends("unavailable", "Payload", again=True, passes=True),
    "truncate": Ends("truncated", "raise max_tokens"),
    "refuse": Ends("refused", "the model refused"),
    "content_filter": Ends("refused", ""),
    "malformed": Ends("unparsable", ""),
    "empty_choices": Ends("unparsable", ""),
    "out_of_set": Ends("out_of_set", "not a label of the task: 'a-label-nobody-offered'"),
    "wrong_content_type": Ends("unparsable", "text/html, not application/json"),
}
UNKNOWN: dict[str, dict[Fault, str]] = {
    "moderations": {
        "truncate": "it writes nothing",
        "refuse": "it judges everything",
        "content_filter": "it is one",
        "out_of_set": "a category that is not in the labels is nothing flagged",
    },
    "predict": {
        "truncate": "it writes nothing",
        "refuse": "it judges everything",
        "content_filter": "it has none",
    },
}
"""API → the errors that it does not have, and why."""
OTHERWISE: dict[tuple[str, Fault], Ends] = {
    ("predict", "overload"): LATER,  # TEI says so with a 429
}


def test_every_fault_is_here() -> None:
    assert {*ERRORS, "ok"} == set(get_args(Fault))


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


def task_on(
    server: ModelServer, session: aiohttp.ClientSession, api: Api, *, timeout_s: float = 20.0
) -> Task:
    """A task on a server; equal questions have equal keys."""
    url = server.root_url + api.root
    model = model_at(url, session, dialect=api.dialect, timeout_s=timeout_s)
    task = make_task(model, remember_s=LONG_S)
    task.prompt = prompt_of(api)
    task.remember_exhausted_s = SHORT_S
    return task


def counted(resolver: Resolver, code: str) -> dict[str, int]:
    names = ("model_calls", "model_requests", "calls_fill", "calls_retry", f"failures_{code}")
    more = ("errors", "model", "fills", "spent_nano")
    return {name: resolver.counters.total(name) for name in (*names, *more)}


def assert_failed(outcome: Outcome, ends: Ends) -> None:
    assert outcome.entry is None
    assert outcome.error is not None
    assert outcome.error.code == ends.code
    assert ends.says in outcome.error.message
    assert KEY not in outcome.error.message


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        pytest.param(name, fault, id=f"{name}: {fault}")
        for name in APIS
        for fault in ERRORS
        if fault not in UNKNOWN.get(name, {})
    ],
)
async def test_an_error(
    store: redis.asyncio.Redis,
    time: VirtualTime,
    session: aiohttp.ClientSession,
    name: str,
    fault: Fault,
) -> None:
    api, ends = APIS[name], OTHERWISE.get((name, fault), ERRORS[fault])
    calls = QUICK_RETRY.max_attempts if ends.again else 1
    script: dict[str, list[Fault]] = {TEXT: [fault] * calls}
    async with ModelServer(script=script, api_key=KEY) as server, time.resolver() as resolver:
        task = task_on(server, session, api, timeout_s=0.1 if fault == "stall" else 20.0)

        assert_failed(await ask(resolver, task, TEXT), ends)
        assert server.total_calls == calls
        assert await all_keys(store, "a:*") == []
        assert counted(resolver, ends.code) == {
            "model_calls": calls,
            "model_requests": calls,
            "calls_fill": 1,
            "calls_retry": calls - 1,
            f"failures_{ends.code}": calls,
            "errors": 1,
            "model": 0,
            "fills": 0,
            "spent_nano": 0,
        }

        # The API is mended: for a while everybody is told what was found, then there is an answer.
        task = task_on(server, session, api)
        assert_failed(await ask(resolver, task, TEXT), ends)
        await time.advance(SHORT_S + 1)
        if not ends.passes:
            assert_failed(await ask(resolver, task, TEXT), ends)
            await time.advance(LONG_S)
        assert server.total_calls == calls
        outcome = await ask(resolver, task, TEXT)
        assert outcome.source == "model"
        assert outcome.label in {*api.labels, "fine"}
        assert server.total_calls == calls + 1
        assert len(await all_keys(store, "a:*")) == 1
        await assert_at_rest(store, resolver, task)
