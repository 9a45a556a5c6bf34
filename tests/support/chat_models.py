"""OpenAI-compatible models under test, and servers that answer them in any way."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import test_utils, web

from askonce_worker.models.chat import ChatCompletions
from askonce_worker.models.http_model import Dialect, HttpModel
from askonce_worker.models.protocol import Model, ModelFailure, Prompt, Question

KEY = "sk-test-4f9a0c77d1e2"
LABELS = Prompt(system="Classify.", labels=("spam", "ham", "eggs"), temperature=0.0)
TEXT = Question(text="buy now")


def model_at(
    base_url: str,
    session: aiohttp.ClientSession,
    *,
    key: Callable[[], str | None] = lambda: KEY,
    timeout_s: float = 10.0,
    dialect: Dialect | None = None,
) -> HttpModel:
    return HttpModel(
        session,
        dialect or ChatCompletions(),
        base_url=base_url,
        model="m",
        api_key=key,
        timeout_s=timeout_s,
    )


async def failure_of(model: Model, prompt: Prompt = LABELS) -> ModelFailure:
    with pytest.raises(ModelFailure) as caught:
        await model.ask(prompt, TEXT)
    error = caught.value
    assert KEY not in f"{error} {error!r} {error.__cause__!r} {error.__context__!r} {model!r}"
    return error


@asynccontextmanager
async def answering(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> AsyncGenerator[str]:
    """Serve every request with `handler`; yield the base URL."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    async with test_utils.TestServer(app) as server:
        yield str(server.make_url("/v1"))
