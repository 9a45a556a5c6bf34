"""A model behind an OpenAI-compatible chat completions API: OpenAI, vLLM, Ollama and others.

One POST a question, no retries, no redirects, no streaming. What a response means is decided in
`completion.py`; this file holds the request and the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson

from askonce_queue.errors import ConfigError
from askonce_queue.reply import Answer
from askonce_worker.models.completion import (
    MAX_BODY_BYTES,
    failure_of_status,
    parse_completion,
    shown,
)
from askonce_worker.models.protocol import (
    ModelFailure,
    Prompt,
    Question,
    Rejection,
    TransientFailure,
)

RESERVED_PARAMS = ("messages", "model", "stream")
"""What the task itself decides; a `params` that names one is rejected, not overridden."""

_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=None)
"""`asyncio.timeout` covers the whole call instead: aiohttp rounds totals above 5 s up."""


class OpenAIModel:
    """Asks an OpenAI-compatible server; implements `Model`.

    `session` is shared and stays the caller's to close; its connector decides how many connections
    there are. `base_url` is the API's root, with `/v1` where the server has it. `api_key` is asked
    before each call, so that a rotated key is picked up; None sends no Authorization. `timeout_s`
    bounds a whole call, waiting for a connection included.

    Raises `ConfigError` for a `base_url` that is not a plain http(s) address, or a `timeout_s`
    that is not positive.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        base_url: str,
        model: str,
        api_key: Callable[[], str | None],
        timeout_s: float,
    ) -> None:
        if timeout_s <= 0:
            raise ConfigError(f"timeout_s must be positive, not {timeout_s}")
        self._base_url = _checked_base_url(base_url)
        self._session = session
        self._model = model
        self._api_key = api_key
        self._timeout_s = timeout_s

    def __repr__(self) -> str:
        return f"OpenAIModel(base_url={self._base_url!r}, model={self._model!r})"

    async def ask(self, prompt: Prompt, question: Question) -> Answer:
        """See `Model.ask`. `question.params` win over `prompt.params`, these over the rest."""
        body = request_body(self._model, prompt, question)
        key = self._key()
        status, headers, reply = await self._exchange("POST", "/chat/completions", key, body)
        return parse_completion(status, headers, reply, prompt, secret=key)

    async def check(self) -> str:
        """See `Model.check`: asks for the list of models, which costs no tokens.

        A server without `/models` (404, 405) passes: reaching it is all that can be known.
        """
        key = self._key()
        status, headers, reply = await self._exchange("GET", "/models", key)
        if status in {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED}:
            return f"{self._base_url} answers (it lists no models, so {self._model!r} is unchecked)"
        if status != HTTPStatus.OK:
            raise failure_of_status(status, headers, reply, secret=key)
        listed = "offers" if self._model in _model_ids(reply) else "answers, but does not list"
        return f"{self._base_url} {listed} {self._model!r}"

    async def aclose(self) -> None:
        """Do nothing: the session is the caller's."""

    def _key(self) -> str:
        """Return the API key, empty for none. Raises `Rejection` when it cannot be sent."""
        try:
            key = (self._api_key() or "").strip()
        except OSError as error:
            reason = type(error).__name__
            raise Rejection("unauthorized", f"the API key cannot be read: {reason}") from None
        if not (key.isascii() and (not key or key.isprintable())):
            raise Rejection(
                "unauthorized", "the API key has characters that no HTTP header can carry"
            )
        return key

    async def _exchange(
        self, method: str, path: str, key: str, body: bytes | None = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Send one request; return status, headers and at most `MAX_BODY_BYTES` + 1 of the body.

        Raises `TransientFailure` `timeout` or `unavailable`. The failure is raised outside the
        handlers: aiohttp's exceptions hold the request's headers, and with them the key.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        failure: ModelFailure
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._session.request(
                    method,
                    self._base_url + path,
                    data=body,
                    headers=headers,
                    allow_redirects=False,
                    raise_for_status=False,
                    timeout=_NO_TIMEOUT,
                ) as response,
            ):
                return response.status, response.headers, await _read_bounded(response)
        except TimeoutError:
            failure = TransientFailure(
                "timeout", f"no answer from {self._base_url} within {self._timeout_s:g} s"
            )
        except (aiohttp.ClientError, OSError) as error:
            reason = shown(f"{type(error).__name__}: {error}", key)
            failure = TransientFailure("unavailable", f"{self._base_url}: {reason}")
        raise failure


def request_body(model: str, prompt: Prompt, question: Question) -> bytes:
    """Return the JSON body of a chat completion request.

    Raises `Rejection` `rejected` for params that would change what the task is: those in
    `RESERVED_PARAMS`, an `n` other than 1, and a question's own `response_format` where the task
    has labels. (The task's may set one, for servers that hold labels another way.)
    """
    given = question.params or {}
    params = {**(prompt.params or {}), **given}
    for name in RESERVED_PARAMS:
        if name in params:
            raise Rejection("rejected", f"params must not set {name!r}: the task decides it")
    if "n" in params and (isinstance(params["n"], bool) or params["n"] != 1):
        raise Rejection("rejected", "params may set 'n' to 1 only: a question has one answer")
    body: dict[str, Any] = {"model": model, "messages": _messages(prompt, question)}
    if prompt.temperature is not None:
        body["temperature"] = prompt.temperature
    if prompt.max_tokens is not None:
        body["max_tokens"] = prompt.max_tokens
    if prompt.labels:
        if "response_format" in given:
            raise Rejection(
                "rejected", "params must not set 'response_format': the task's labels decide it"
            )
        body["response_format"] = _label_format(prompt.labels)
    try:
        return orjson.dumps(body | params)
    except TypeError as error:
        raise Rejection("rejected", f"the request is not JSON: {error}") from None


def _messages(prompt: Prompt, question: Question) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if prompt.system:
        messages.append({"role": "system", "content": prompt.system})
    if question.messages is not None:
        return messages + question.messages
    return [*messages, {"role": "user", "content": question.text or ""}]


def _label_format(labels: tuple[str, ...]) -> dict[str, Any]:
    """Return the strict JSON schema of `{"label": one of labels}`."""
    schema = {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": labels}},
        "required": ["label"],
        "additionalProperties": False,
    }
    return {
        "type": "json_schema",
        "json_schema": {"name": "classification", "strict": True, "schema": schema},
    }


async def _read_bounded(response: aiohttp.ClientResponse) -> bytes:
    """Return the body, or its first part when it is too large.

    A body cut off raises for a 200; an error keeps its status and Retry-After without its text.
    """
    body = bytearray()
    try:
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                break  # aiohttp closes a connection that is given back with an unread rest
    except aiohttp.ClientPayloadError:
        if response.status == HTTPStatus.OK:
            raise
    return bytes(body[: MAX_BODY_BYTES + 1])


def _checked_base_url(base_url: str) -> str:
    """Return `base_url` without trailing slashes; raises `ConfigError`."""
    if "@" in base_url:  # not quoted: what stands before it is a secret
        raise ConfigError("base_url must not hold a user or password: use the API key setting")
    try:
        url = urlsplit(base_url)
        plain = not url.query and not url.fragment and url.port != 0
        usable = plain and url.hostname and url.scheme in {"http", "https"}
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"base_url must be http(s)://host[:port][/path], not {base_url!r}")
    return base_url.rstrip("/")


def _model_ids(reply: bytes) -> set[str]:
    """Return the ids in a `/models` reply, empty when it is in another format."""
    try:
        models = orjson.loads(reply)["data"]
        return {model["id"] for model in models}
    except (ValueError, TypeError, KeyError):
        return set()
