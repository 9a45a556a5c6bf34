"""A stand-in model server: every API we speak, over real HTTP, wrong on demand, exactly counted.

What it answers depends on its seed, the input and how often that input was asked, never on the
order of arrival: a run can be repeated (limits a minute apart). It counts calls per distinct input,
which is how tests and load tests know that every distinct question was asked once; of a request
with many inputs each is a call. Requests past a limit are no calls: they count as `limited`.

    POST /v1/chat/completions    an answer, or the fault whose turn it is; also /v1/messages,
                                 /v1/responses, /v1/moderations and /predict
    GET  /v1/models              the one model; also /info
    GET  /stats                  counters as JSON, for other processes; ?calls=1 adds each input's
    POST /reset                  forget the counters; a JSON `Behaviour` as body replaces this one
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import msgspec
from aiohttp import web

from askonce_loadtest.model_behaviour import Behaviour, Fault, Turn, turn_of
from askonce_loadtest.model_dialects import SPEECHES
from askonce_loadtest.model_errors import error_reply, fault_reply, send_cut
from askonce_loadtest.model_limits import Limits
from askonce_loadtest.model_replies import OUT_OF_SET_LABEL
from askonce_loadtest.model_speech import Asked, Speech

__all__ = ["Behaviour", "Fault", "ModelServer", "serve"]

MAX_REQUEST_BYTES = 1024 * 1024
"""Largest request body accepted, in bytes; a larger one is answered 413."""
MAX_TRACKED_INPUTS = 1_000_000
"""Distinct inputs counted one by one; calls with further ones count as `untracked_calls`."""
MODEL_ID = "stand-in-1"
_SHUTDOWN_S = 1.0
_OWN_FAULTS: frozenset[Fault] = frozenset({"ok", "out_of_set"})
"""What one of several questions in a request can have without the others."""
_behaviour_decoder = msgspec.json.Decoder(Behaviour)


class ModelServer:
    """The server, as an async context manager; it listens while the context is open.

    `labels` maps inputs to labels, for runs that check answers; other inputs get a label of the
    request's set by their hash. `script` lists, for an input, the faults of its first calls in
    order ("ok" for none); after these `behaviour` decides. `on_call` hears of every call as it
    arrives, with its text and fault, and may return the label it is to get. With an `api_key`,
    requests without it are answered 401. `port` 0 chooses a free one. Raises `OSError` when it
    cannot listen.
    """

    def __init__(
        self,
        behaviour: Behaviour | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        script: Mapping[str, Sequence[Fault]] | None = None,
        on_call: Callable[[str, Fault], str | None] | None = None,
        api_key: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.behaviour = behaviour or Behaviour()
        self.calls: Counter[str] = Counter()
        self.total_calls = 0
        self.untracked_calls = 0
        self.total_requests = 0
        self.limited = 0
        self.in_flight = 0
        self.max_in_flight = 0
        self.faults: Counter[str] = Counter()
        self.port = port
        self._labels = labels or {}
        self._script = {text: deque(faults) for text, faults in (script or {}).items()}
        self._on_call = on_call
        self._api_key = api_key
        self._host = host
        self._limits = self._fresh_limits()
        self._stopping = asyncio.Event()
        self._runner: web.AppRunner | None = None

    @property
    def base_url(self) -> str:
        """The root of the API, `http://host:port/v1`; valid while the context is open."""
        return f"{self.root_url}/v1"

    @property
    def root_url(self) -> str:
        """`http://host:port`, where `/stats` and `/reset` are."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}"

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=MAX_REQUEST_BYTES)
        for path in SPEECHES:
            app.router.add_post(path, self._answer)
        app.router.add_get("/info", self._info)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/stats", self._stats)
        app.router.add_post("/reset", self._reset)
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=_SHUTDOWN_S
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self.port, backlog=4096)
        try:
            await site.start()
        except BaseException:
            await self._runner.cleanup()
            raise
        self.port = site.port
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping.set()
        if self._runner is not None:
            await self._runner.cleanup()

    def stats(self) -> dict[str, Any]:
        """Return the counters as `/stats` shows them."""
        return {
            "total_calls": self.total_calls,
            "total_requests": self.total_requests,
            "limited": self.limited,
            "distinct_inputs": len(self.calls),
            "repeated_inputs": sum(1 for count in self.calls.values() if count > 1),
            "max_calls_per_input": max(self.calls.values(), default=0),
            "untracked_calls": self.untracked_calls,
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "faults": dict(self.faults),
        }

    def reset(self, behaviour: Behaviour | None = None) -> None:
        """Forget all counters (calls in flight stay in flight); optionally behave otherwise."""
        if behaviour is not None:
            self.behaviour = behaviour
        self.calls.clear()
        self.faults.clear()
        self.total_calls = 0
        self.total_requests = 0
        self.limited = 0
        self._limits = self._fresh_limits()
        self.untracked_calls = 0
        self.max_in_flight = self.in_flight

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        speech = SPEECHES[request.path]
        if not self._authorized(request):
            message = f"wrong key: {_key_of(request)}"
            return error_reply(401, "invalid_api_key", message, speech.style)
        try:
            asks = speech.read(await request.read())
        except web.HTTPRequestEntityTooLarge:
            most = f"requests have at most {MAX_REQUEST_BYTES} bytes"
            return error_reply(413, "request_too_large", most, speech.style)
        except (msgspec.DecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
            return error_reply(400, "invalid_request", str(error), speech.style)
        wait_s = self._limits.admit(sum(asked.tokens for asked in asks))
        if wait_s > 0:
            return self._slow_down(speech, wait_s)
        turns = [self._next_turn(asked.text) for asked in asks]
        labels = [self._label(asked, turn) for asked, turn in zip(asks, turns, strict=True)]
        self.total_requests += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            await asyncio.sleep(max(turn.latency_s for turn in turns))
            return await self._reply(request, speech, asks, turns, labels)
        finally:
            self.in_flight -= 1

    def _slow_down(self, speech: Speech, wait_s: float) -> web.Response:
        """What a request past a limit gets."""
        self.limited += 1
        reply = fault_reply("status_429", speech.style, wait_s)
        assert reply is not None
        reply.headers.update(self._limits.headers(speech.style))
        return reply

    def _label(self, asked: Asked, turn: Turn) -> str | None:
        """The label that a question is to get; None: one of its set."""
        label = self._on_call(asked.text, turn.fault) if self._on_call else None
        return label or self._labels.get(asked.text)

    async def _reply(
        self,
        request: web.Request,
        speech: Speech,
        asks: Sequence[Asked],
        turns: Sequence[Turn],
        labels: Sequence[str | None],
    ) -> web.StreamResponse:
        """Among several questions, a wrong label is one's own; any other fault is everybody's."""
        faults: list[Fault] = [turn.fault for turn in turns]
        shared: list[Fault] = [one for one in faults if one not in _OWN_FAULTS]
        fault: Fault = shared[0] if shared else "ok"
        if len(asks) == 1:
            fault = faults[0]
        elif "out_of_set" in faults:
            wrong = zip(faults, labels, strict=True)
            labels = [OUT_OF_SET_LABEL if one == "out_of_set" else label for one, label in wrong]
        if fault == "stall":
            await self._stopping.wait()
            return error_reply(503, "stopping", "the server stopped", speech.style)
        if fault == "cut":
            return await send_cut(request, speech.good(asks, labels))
        reply = fault_reply(fault, speech.style, self.behaviour.retry_after_s)
        if reply is None:
            good = fault == "ok"
            body = speech.good(asks, labels) if good else speech.bad(fault, asks)
            if self._limits.tokens:
                self._limits.spend(_output_tokens(body))
            reply = web.Response(body=body, content_type="application/json")
        reply.headers.update(self._limits.headers(speech.style))
        return reply

    def _next_turn(self, text: str) -> Turn:
        """Count the call and decide what it gets."""
        self.total_calls += 1
        asked_before = self.calls.get(text, 0)
        if asked_before or len(self.calls) < MAX_TRACKED_INPUTS:
            self.calls[text] = asked_before + 1
        else:
            self.untracked_calls += 1
        scripted = self._script.get(text)
        turn = turn_of(self.behaviour, text, asked_before, scripted.popleft() if scripted else None)
        if turn.fault != "ok":
            self.faults[turn.fault] += 1
        return turn

    def _fresh_limits(self) -> Limits:
        behaviour = self.behaviour
        return Limits(behaviour.requests_per_minute, behaviour.tokens_per_minute, time.monotonic)

    def _authorized(self, request: web.Request) -> bool:
        if self._api_key is None:
            return True
        return hmac.compare_digest(_key_of(request).encode(), self._api_key.encode())

    async def _models(self, request: web.Request) -> web.Response:
        if not self._authorized(request):
            return error_reply(401, "invalid_api_key", "wrong key")
        models = [{"id": MODEL_ID, "object": "model", "created": 0, "owned_by": "askonce"}]
        return _json({"object": "list", "data": models})

    async def _info(self, request: web.Request) -> web.Response:
        if not self._authorized(request):
            return error_reply(401, "invalid_api_key", "wrong key")
        return _json({"model_id": MODEL_ID, "model_type": {"classifier": {}}})

    async def _stats(self, request: web.Request) -> web.Response:
        stats = self.stats()
        if "calls" in request.query:
            stats["calls"] = dict(self.calls)
        return _json(stats)

    async def _reset(self, request: web.Request) -> web.Response:
        body = await request.read()
        try:
            self.reset(_behaviour_decoder.decode(body) if body else None)
        except msgspec.DecodeError as error:
            return error_reply(400, "invalid_behaviour", str(error))
        return _json(self.stats())


def _key_of(request: web.Request) -> str:
    """The API key of a request, wherever its API puts it."""
    bearer = request.headers.get("Authorization", "")
    return bearer.removeprefix("Bearer ") or request.headers.get("x-api-key", "")


def _output_tokens(body: bytes) -> int:
    """The tokens of an answer, where its API counts them."""
    try:
        usage: dict[str, int] = msgspec.json.decode(body)["usage"]
    except (msgspec.DecodeError, KeyError, TypeError):
        return 0
    return usage.get("completion_tokens", usage.get("output_tokens", 0))


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


async def serve(
    behaviour: Behaviour,
    host: str,
    port: int,
    *,
    labels: Mapping[str, str] | None = None,
    announce: Callable[[str], None] | None = None,
) -> None:
    """Serve until cancelled. `announce` gets the base URL once the server listens."""
    async with ModelServer(behaviour, labels=labels, host=host, port=port) as server:
        if announce is not None:
            announce(server.base_url)
        await asyncio.Event().wait()
