"""A model behind an HTTP API: one POST a question, no retries, no redirects, no streaming.

What is asked, and what a response means, is a `Dialect`'s matter: one small file an API. This file
holds the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import aiohttp
import orjson

from askonce_queue.errors import ConfigError
from askonce_queue.reply import Answer
from askonce_worker.models.http_reply import (
    MAX_BODY_BYTES,
    Response,
    failure_of_status,
    shown,
)
from askonce_worker.models.protocol import (
    ModelFailure,
    Prompt,
    Question,
    Rejection,
    TransientFailure,
)

_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=None)
"""`asyncio.timeout` covers the whole call instead: aiohttp rounds totals above 5 s up."""


class Request(NamedTuple):
    """What is posted: the path below the base URL, and the JSON body."""

    path: str
    body: dict[str, Any]

    def encoded(self) -> bytes:
        """The body. Raises `Rejection` `rejected` for one that is not JSON."""
        try:
            return orjson.dumps(self.body)
        except TypeError as error:
            raise Rejection("rejected", f"the request is not JSON: {error}") from None


class Dialect(Protocol):
    """One API: how a question is put, and what a response says. No I/O and no state."""

    @property
    def probe(self) -> str:
        """The path that lists what the server offers; asking costs nothing."""
        ...

    def headers(self, key: str) -> dict[str, str]:
        """The headers of a request; `key` is empty where none is needed."""
        ...

    def request(self, model: str, prompt: Prompt, question: Question) -> Request:
        """What to post. Raises `Rejection` `rejected` for what this API cannot be asked."""
        ...

    def answer(self, response: Response, prompt: Prompt) -> Answer:
        """The answer in a response. Raises the `ModelFailure` that it stands for."""
        ...


class HttpModel:
    """Asks a server in its dialect; implements `Model`.

    `session` is shared and stays the caller's to close; its connector decides how many connections
    there are. `base_url` is the API's root, with `/v1` where the dialect wants it. `api_key` is
    asked before each call, so that a rotated key is picked up; None sends none. `timeout_s` bounds
    a whole call, waiting for a connection included.

    Raises `ConfigError` for a `base_url` that is not a plain http(s) address, or a `timeout_s`
    that is not positive.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        dialect: Dialect,
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
        self._dialect = dialect
        self._model = model
        self._api_key = api_key
        self._timeout_s = timeout_s

    def __repr__(self) -> str:
        dialect = type(self._dialect).__name__
        return f"HttpModel({dialect}, base_url={self._base_url!r}, model={self._model!r})"

    async def ask(self, prompt: Prompt, question: Question) -> Answer:
        """See `Model.ask`. `question.params` win over `prompt.params`, these over the rest."""
        request = self._dialect.request(self._model, prompt, question)
        return self._dialect.answer(await self.post(request), prompt)

    async def post(self, request: Request) -> Response:
        """Send a request. Raises `TransientFailure` `timeout` or `unavailable`, or `Rejection`."""
        return await self._exchange("POST", request.path, request.encoded())

    async def check(self) -> str:
        """See `Model.check`: asks what the server offers, which costs no tokens.

        A server that does not say (404, 405) passes: reaching it is all that can be known.
        """
        response = await self._exchange("GET", self._dialect.probe)
        if response.status in {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED}:
            return f"{self._base_url} answers (it lists no models, so {self._model!r} is unchecked)"
        if response.status != HTTPStatus.OK:
            raise failure_of_status(response)
        listed = (
            "offers" if self._model in _model_ids(response.body) else "answers, but does not list"
        )
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

    async def _exchange(self, method: str, path: str, body: bytes | None = None) -> Response:
        """Send one request; read at most `MAX_BODY_BYTES` + 1 of the response's body.

        Raises `TransientFailure` `timeout` or `unavailable`. The failure is raised outside the
        handlers: aiohttp's exceptions hold the request's headers, and with them the key.
        """
        key = self._key()
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        headers |= self._dialect.headers(key)
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
                said: Mapping[str, str] = response.headers
                return Response(response.status, said, await _read_bounded(response), key)
        except TimeoutError:
            failure = TransientFailure(
                "timeout", f"no answer from {self._base_url} within {self._timeout_s:g} s"
            )
        except (aiohttp.ClientError, OSError) as error:
            reason = shown(f"{type(error).__name__}: {error}", key)
            reached = not isinstance(error, aiohttp.ClientConnectorError)
            reason = f"{self._base_url}: {reason}"
            failure = TransientFailure("unavailable", reason, reached=reached)
        raise failure


def bearer(key: str) -> dict[str, str]:
    """The header of an API key, as most APIs want it (RFC 6750)."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def merged_params(prompt: Prompt, question: Question, reserved: tuple[str, ...]) -> dict[str, Any]:
    """The parameters of task and question, the question's winning.

    Raises `Rejection` `rejected` for those that the task itself decides.
    """
    params = {**(prompt.params or {}), **(question.params or {})}
    for name in reserved:
        if name in params:
            raise Rejection("rejected", f"params must not set {name!r}: the task decides it")
    return params


def only_text(question: Question, what: str) -> str:
    """The text of a question. Raises `Rejection` `rejected` where there are messages."""
    if question.text is None:
        raise Rejection("rejected", f"{what} take text, not messages")
    return question.text


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
    """The ids in a list of models (OpenAI, Anthropic), or in TEI's `/info`; else empty."""
    try:
        document = orjson.loads(reply)
        if "model_id" in document:
            return {str(document["model_id"])}
        return {model["id"] for model in document["data"]}
    except (ValueError, TypeError, KeyError):
        return set()
