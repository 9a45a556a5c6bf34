"""Every API over real HTTP: what is sent, and what comes back. Errors: test_model_errors.py."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web

from askonce_loadtest.model_server import ModelServer
from askonce_worker.models.anthropic import AnthropicMessages
from askonce_worker.models.http_model import Dialect
from askonce_worker.models.moderations import Moderations
from askonce_worker.models.predict import Predict
from askonce_worker.models.protocol import (
    Prompt,
    Question,
    Rejection,
    TransientFailure,
)
from askonce_worker.models.responses import Responses
from tests.support.apis import APIS, WORDS, Api, prompt_of
from tests.support.chat_models import KEY, TEXT, answering, failure_of, model_at

apis = pytest.mark.parametrize("api", APIS.values(), ids=APIS)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as opened:
        yield opened


@apis
async def test_an_answer(session: aiohttp.ClientSession, api: Api) -> None:
    async with ModelServer(api_key=KEY) as server:
        model = model_at(server.root_url + api.root, session, dialect=api.dialect)
        answers = [await model.ask(prompt_of(api), Question(text=f"{n}")) for n in range(12)]
        assert {answer.label for answer in answers} <= {*api.labels, "fine"}
        assert len({answer.label for answer in answers}) > 1
        if api.talks:
            assert all(answer.usage and answer.usage.input_tokens > 0 for answer in answers)
        else:
            assert all(answer.score and answer.score > 0.9 for answer in answers)
        assert await model.check()


@apis
async def test_mapped_labels(session: aiohttp.ClientSession, api: Api) -> None:
    label = api.labels[1]
    async with ModelServer(labels={"buy now": label}) as server:
        model = model_at(server.root_url + api.root, session, dialect=api.dialect)
        assert (await model.ask(prompt_of(api), TEXT)).label == label


@apis
async def test_a_wrong_key(session: aiohttp.ClientSession, api: Api) -> None:
    """The server's message has the key in it, the failure's has not."""
    async with ModelServer(api_key="another") as server:
        model = model_at(server.root_url + api.root, session, dialect=api.dialect)
        assert (await failure_of(model, prompt_of(api))).code == "unauthorized"


# --- what is sent ----------------------------------------------------------------------------


async def sent(
    session: aiohttp.ClientSession, dialect: Dialect, prompt: Prompt, question: Question
) -> tuple[str, dict[str, str], dict[str, Any]]:
    """Path, headers and body of a request."""
    seen: list[tuple[str, dict[str, str], dict[str, Any]]] = []

    async def note(request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        seen.append((request.path, headers, orjson.loads(await request.read())))
        return web.Response(status=500)

    async with answering(note) as url:
        with pytest.raises(TransientFailure):
            await model_at(url, session, dialect=dialect).ask(prompt, question)
    return seen[0]


PROMPT = Prompt(system="Classify.", labels=WORDS, temperature=0.0, max_tokens=9)


async def test_anthropic_of_both_generations(session: aiohttp.ClientSession) -> None:
    path, headers, body = await sent(session, AnthropicMessages(), PROMPT, TEXT)
    assert path == "/v1/v1/messages"
    assert (headers["x-api-key"], headers["anthropic-version"]) == (KEY, "2023-06-01")
    assert "authorization" not in headers
    assert (body["system"], body["max_tokens"], body["temperature"]) == ("Classify.", 9, 0.0)
    assert body["tools"][0]["input_schema"]["properties"]["label"]["enum"] == list(WORDS)
    assert body["tool_choice"] == {"type": "tool", "name": body["tools"][0]["name"]}
    _, headers, body = await sent(session, AnthropicMessages("2026-10-21"), PROMPT, TEXT)
    assert headers["authorization"] == f"Bearer {KEY}"
    assert "x-api-key" not in headers
    assert "temperature" not in body


async def test_anthropic_always_has_a_limit(session: aiohttp.ClientSession) -> None:
    _, _, body = await sent(session, AnthropicMessages(), Prompt(), TEXT)
    assert body["max_tokens"] > 0
    assert "tools" not in body


async def test_responses(session: aiohttp.ClientSession) -> None:
    path, headers, body = await sent(session, Responses(), PROMPT, TEXT)
    assert (path, headers["authorization"]) == ("/v1/responses", f"Bearer {KEY}")
    assert (body["instructions"], body["input"], body["store"]) == ("Classify.", "buy now", False)
    assert body["max_output_tokens"] == 9
    assert body["text"]["format"]["schema"]["properties"]["label"]["enum"] == list(WORDS)


async def test_moderations(session: aiohttp.ClientSession) -> None:
    image = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    question = Question(messages=[{"role": "user", "content": image}])
    path, _, body = await sent(session, Moderations(), Prompt(), question)
    assert (path, body) == ("/v1/moderations", {"model": "m", "input": image})


async def test_predict(session: aiohttp.ClientSession) -> None:
    path, _, body = await sent(session, Predict(), Prompt(), TEXT)
    assert (path, body) == ("/v1/predict", {"inputs": "buy now", "truncate": False})


@pytest.mark.parametrize(
    ("dialect", "prompt", "question"),
    [
        (AnthropicMessages(), PROMPT, Question(text="x", params={"tools": []})),
        (AnthropicMessages(), PROMPT, Question(text="x", params={"system": "other"})),
        (AnthropicMessages("2026-10-21"), PROMPT, Question(text="x", params={"top_p": 0.5})),
        (Responses(), PROMPT, Question(text="x", params={"text": {}})),
        (Responses(), Prompt(params={"instructions": "other"}), TEXT),
        (Moderations(), Prompt(), Question(messages=[])),
        (Moderations(), Prompt(params={"model": "other"}), TEXT),
        (Predict(), Prompt(), Question(messages=[{"role": "user", "content": "x"}])),
        (Predict(), Prompt(params={"raw_scores": True}), TEXT),
    ],
)
def test_what_an_api_cannot_be_asked(dialect: Dialect, prompt: Prompt, question: Question) -> None:
    with pytest.raises(Rejection) as caught:
        dialect.request("m", prompt, question)
    assert caught.value.code == "rejected"
