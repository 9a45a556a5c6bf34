"""An OpenAI-compatible model over real HTTP: good answers, and every way a call can fail."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from askonce_loadtest.model_server import Behaviour, Fault, ModelServer
from askonce_queue.errors import ConfigError
from askonce_queue.reply import ErrorCode, Usage
from askonce_worker.models.http_reply import MAX_BODY_BYTES
from askonce_worker.models.protocol import (
    ModelFailure,
    Prompt,
    Question,
    Rejection,
    TransientFailure,
)
from tests.support.chat_models import KEY, LABELS, TEXT, answering, failure_of, model_at
from tests.support.waiting import eventually


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


async def test_an_answer_has_label_model_and_usage(session: aiohttp.ClientSession) -> None:
    async with ModelServer() as server:
        answer = await model_at(server.base_url, session).ask(LABELS, TEXT)
        assert answer.label in LABELS.labels
        assert answer.model == "m"
        assert answer.usage == Usage(input_tokens=5, output_tokens=4)
        assert server.calls == {"buy now": 1}


async def test_mapped_labels_free_text_and_conversations(session: aiohttp.ClientSession) -> None:
    async with ModelServer(labels={"buy now": "eggs"}) as server:
        model = model_at(server.base_url + "/", session)
        assert (await model.ask(LABELS, TEXT)).label == "eggs"
        assert (await model.ask(Prompt(), Question(text="hello"))).label == "echo: hello"
        turns = [{"role": "user", "content": "a"}, {"role": "user", "content": "buy now"}]
        assert (await model.ask(LABELS, Question(messages=turns))).label == "eggs"
        assert server.calls["buy now"] == 2


FAULTS: list[tuple[Fault, type[ModelFailure], ErrorCode]] = [
    ("status_429", TransientFailure, "rate_limited"),
    ("status_500", TransientFailure, "unavailable"),
    ("cut", TransientFailure, "unavailable"),
    ("truncate", Rejection, "truncated"),
    ("malformed", Rejection, "unparsable"),
    ("refuse", Rejection, "refused"),
    ("out_of_set", Rejection, "out_of_set"),
    ("wrong_content_type", Rejection, "unparsable"),
    ("empty_choices", Rejection, "unparsable"),
]


@pytest.mark.parametrize(("fault", "kind", "code"), FAULTS)
async def test_each_fault_has_its_failure_and_does_no_harm_to_the_next_call(
    session: aiohttp.ClientSession, fault: Fault, kind: type[ModelFailure], code: ErrorCode
) -> None:
    script: dict[str, list[Fault]] = {"buy now": [fault, "ok", fault]}
    async with ModelServer(script=script, api_key=KEY) as server:
        model = model_at(server.base_url, session)
        error = await failure_of(model)
        assert isinstance(error, kind)
        assert error.code == code
        assert (await model.ask(LABELS, TEXT)).label in LABELS.labels
        if fault != "out_of_set":  # any text is good where there is no set
            assert (await failure_of(model, Prompt())).code == code


async def test_retry_after_reaches_the_caller(session: aiohttp.ClientSession) -> None:
    behaviour = Behaviour(status_429=1.0, retry_after_s=1.25)
    async with ModelServer(behaviour) as server:
        error = await failure_of(model_at(server.base_url, session))
        assert isinstance(error, TransientFailure)
        assert error.retry_after_s == 1.25
        server.reset(Behaviour(status_429=1.0))
        error = await failure_of(model_at(server.base_url, session))
        assert isinstance(error, TransientFailure)
        assert error.retry_after_s is None


async def test_a_stalled_call_times_out_and_leaves_the_server(
    session: aiohttp.ClientSession,
) -> None:
    async with ModelServer(Behaviour(stall=1.0)) as server:
        error = await failure_of(model_at(server.base_url, session, timeout_s=0.05))
        assert isinstance(error, TransientFailure)
        assert error.code == "timeout"
        await eventually(lambda: server.in_flight == 0)


async def test_a_body_that_stalls_halfway_times_out(session: aiohttp.ClientSession) -> None:
    stopped = asyncio.Event()

    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b'{"choices"')
        await stopped.wait()
        return response

    async with answering(half) as url:
        assert (await failure_of(model_at(url, session, timeout_s=0.05))).code == "timeout"
        stopped.set()


async def test_waiting_for_a_connection_counts_towards_the_timeout() -> None:
    async with (
        ModelServer(Behaviour(stall=1.0)) as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as narrow,
    ):
        model = model_at(server.base_url, narrow, timeout_s=0.1)
        errors = await asyncio.gather(*(failure_of(model) for _ in range(3)))
        assert [error.code for error in errors] == ["timeout"] * 3
        assert server.total_calls < 3  # a freed connection may be had in the last moment


async def test_cancelling_a_call_propagates_and_closes_its_connection(
    session: aiohttp.ClientSession,
) -> None:
    async with ModelServer(Behaviour(stall=1.0)) as server:
        call = asyncio.create_task(model_at(server.base_url, session).ask(LABELS, TEXT))
        await eventually(lambda: server.in_flight == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await eventually(lambda: server.in_flight == 0)


async def test_nobody_listening_is_unavailable(session: aiohttp.ClientSession) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        model = model_at(f"http://127.0.0.1:{held.getsockname()[1]}/v1", session)
        error = await failure_of(model)
        assert isinstance(error, TransientFailure)
        assert error.code == "unavailable"
        with pytest.raises(ModelFailure, match="unavailable"):
            await model.check()


async def test_a_server_that_speaks_no_http_is_unavailable(session: aiohttp.ClientSession) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        error = await failure_of(model_at(f"http://127.0.0.1:{port}", session))
        assert error.code == "unavailable"


async def test_redirects_are_not_followed(session: aiohttp.ClientSession) -> None:
    paths: list[str] = []

    async def redirect(request: web.Request) -> web.Response:
        paths.append(request.path)
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    async with answering(redirect) as url:
        error = await failure_of(model_at(url, session))
        assert isinstance(error, Rejection)
        assert error.code == "rejected"
    assert paths == ["/v1/chat/completions"]


@pytest.mark.parametrize("status", [200, 500])
async def test_a_body_without_end_is_not_read_to_its_end(
    session: aiohttp.ClientSession, status: int
) -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse(status=status, headers={"Content-Type": "application/json"})
        await response.prepare(request)
        while True:
            await response.write(b" " * 65536)
            sent += 65536

    async with answering(endless) as url:
        expected = "unparsable" if status == 200 else "unavailable"
        assert (await failure_of(model_at(url, session))).code == expected
    assert MAX_BODY_BYTES - 65536 <= sent < 4 * MAX_BODY_BYTES


async def test_an_error_whose_body_is_cut_keeps_its_status(session: aiohttp.ClientSession) -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        headers = {"Retry-After": "3", "Content-Length": "100"}
        response = web.StreamResponse(status=429, headers=headers)
        await response.prepare(request)
        await response.write(b"half")
        assert request.transport is not None
        request.transport.close()
        return response

    async with answering(cut) as url:
        error = await failure_of(model_at(url, session))
        assert isinstance(error, TransientFailure)
        assert (error.code, error.retry_after_s) == ("rate_limited", 3.0)


@pytest.mark.parametrize(
    ("status", "body", "line"),
    [
        (200, {"data": [{"id": "m"}]}, "offers 'm'"),
        (200, {"data": [{"id": "other"}]}, "answers, but does not list 'm'"),
        (200, [], "answers, but does not list 'm'"),
        (404, {}, "answers (it lists no models, so 'm' is unchecked)"),
    ],
)
async def test_check_says_what_it_found(
    session: aiohttp.ClientSession, status: int, body: Any, line: str
) -> None:
    async def models(request: web.Request) -> web.Response:
        assert (request.method, request.path) == ("GET", "/v1/models")
        return web.json_response(body, status=status)

    async with answering(models) as url:
        model = model_at(url, session)
        assert await model.check() == f"{url} {line}"
        await model.aclose()
        assert not session.closed


@pytest.mark.parametrize(
    "base_url",
    ["", "localhost:80", "ftp://h/v1", "http://", "http://h:99999", "http://h/?q=1", "http://[x/"],
)
async def test_a_base_url_that_is_none_is_refused(
    session: aiohttp.ClientSession, base_url: str
) -> None:
    with pytest.raises(ConfigError, match="base_url"):
        model_at(base_url, session)
