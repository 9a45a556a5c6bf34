"""The API key: sent fresh with each call, and never repeated in a message, a repr or a log."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
from aiohttp import web

from askonce_loadtest.model_server import ModelServer
from askonce_queue.errors import ConfigError
from askonce_worker.models.protocol import Rejection
from tests.support.chat_models import KEY, LABELS, TEXT, answering, failure_of, model_at


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


async def test_a_wrong_key_is_unauthorized_and_never_repeated(
    session: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with ModelServer(api_key="another") as server:  # its 401 repeats the key it was given
        model = model_at(server.base_url, session)
        error = await failure_of(model)
        assert isinstance(error, Rejection)
        assert error.code == "unauthorized"
        with pytest.raises(Rejection, match="unauthorized"):
            await model.check()
    assert KEY not in caplog.text


async def test_an_api_that_repeats_the_key_does_not_get_it_into_a_message(
    session: aiohttp.ClientSession,
) -> None:
    async def echo(request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": str(request.headers)}}, status=400)

    async with answering(echo) as url:
        assert "[API key]" in (await failure_of(model_at(url, session))).message


def unreadable() -> str:
    raise PermissionError(13, "denied", "/run/secrets/key")


@pytest.mark.parametrize("key", [lambda: "new\nline", lambda: "schlüssel", unreadable])
async def test_a_key_that_cannot_be_sent_is_unauthorized(
    session: aiohttp.ClientSession, key: Callable[[], str]
) -> None:
    async with ModelServer() as server:
        error = await failure_of(model_at(server.base_url, session, key=key))
        assert error.code == "unauthorized"
        assert server.total_calls == 0


async def test_the_key_is_asked_before_each_call(session: aiohttp.ClientSession) -> None:
    keys = iter(["old", f"{KEY}\n", None])
    async with ModelServer(api_key=KEY) as server:
        model = model_at(server.base_url, session, key=lambda: next(keys))
        assert (await failure_of(model)).code == "unauthorized"
        assert (await model.ask(LABELS, TEXT)).label
        assert (await failure_of(model)).code == "unauthorized"


async def test_a_password_in_the_base_url_is_refused_and_not_shown(
    session: aiohttp.ClientSession,
) -> None:
    with pytest.raises(ConfigError) as caught:
        model_at("http://user:hunter2@host/v1", session)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError, match="timeout_s"):
        model_at("http://host/v1", session, timeout_s=0)
