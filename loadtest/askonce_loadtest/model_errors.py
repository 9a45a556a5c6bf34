"""The errors of HTTP that the stand-in model server sends, in the shape of each API.

OpenAI `{"error": {message, type, param, code}}`; Anthropic `{"type": "error", "error": {type,
message}, "request_id"}`; TEI `{"error", "error_type"}`. Status and codes are those of the APIs'
references.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import msgspec
from aiohttp import web

from askonce_loadtest.model_behaviour import Fault

Style = Literal["openai", "anthropic", "tei"]
"""Whose errors an API's are like."""


class ApiError(NamedTuple):
    """Status, code (OpenAI) or type (Anthropic, TEI), and message of an error."""

    status: int
    code: str
    message: str


_SLOW_DOWN = "Rate limit reached, slow down"
_PLAN = "You exceeded your current quota, please check your plan and billing details."
_ERRORS: dict[Fault, dict[Style, ApiError]] = {
    "status_400": {
        "openai": ApiError(400, "invalid_request_error", "This input cannot be read"),
        "anthropic": ApiError(400, "invalid_request_error", "messages: this cannot be read"),
        "tei": ApiError(422, "tokenizer", "Tokenization error"),
    },
    "status_429": {
        "openai": ApiError(429, "rate_limit_exceeded", _SLOW_DOWN),
        "anthropic": ApiError(429, "rate_limit_error", _SLOW_DOWN),
        "tei": ApiError(429, "overloaded", "Model is overloaded"),
    },
    "status_500": {
        "openai": ApiError(500, "server_error", "The server had an error"),
        "anthropic": ApiError(500, "api_error", "Internal server error"),
        "tei": ApiError(500, "unhealthy", "The server had an error"),
    },
    "unauthorized": {
        "openai": ApiError(401, "invalid_api_key", "Incorrect API key provided"),
        "anthropic": ApiError(401, "authentication_error", "invalid x-api-key"),
        "tei": ApiError(401, "unauthorized", "wrong key"),
    },
    "quota": {
        "openai": ApiError(429, "insufficient_quota", _PLAN),
        "anthropic": ApiError(402, "billing_error", "Your credit balance is too low"),
        "tei": ApiError(429, "insufficient_quota", _PLAN),  # of a gateway before it
    },
    "overload": {
        "openai": ApiError(503, "server_error", "The engine is overloaded, try again later"),
        "anthropic": ApiError(529, "overloaded_error", "Overloaded"),
        "tei": ApiError(429, "overloaded", "Model is overloaded"),
    },
}


def fault_reply(fault: Fault, style: Style, retry_after_s: float | None) -> web.Response | None:
    """Return the response of a fault of HTTP; None for one of the body."""
    if fault == "wrong_content_type":
        return web.Response(text="<html>It works!</html>", content_type="text/html")
    if fault not in _ERRORS:
        return None
    reply = error_reply(*_ERRORS[fault][style], style)
    if fault == "status_429" and retry_after_s is not None:
        reply.headers["Retry-After"] = str(math.ceil(retry_after_s))
        reply.headers["Retry-After-Ms"] = str(math.ceil(retry_after_s * 1000))
    return reply


def error_reply(status: int, code: str, message: str, style: Style = "openai") -> web.Response:
    """Return an error in the shape of an API."""
    body: dict[str, Any]
    match style:
        case "openai":
            body = {"error": {"message": message, "type": code, "param": None, "code": code}}
        case "anthropic":
            error = {"type": code, "message": message}
            body = {"type": "error", "error": error, "request_id": "req_stand-in"}
        case "tei":
            body = {"error": message, "error_type": code}
    return web.Response(
        status=status, body=msgspec.json.encode(body), content_type="application/json"
    )


async def send_cut(request: web.Request, body: bytes) -> web.StreamResponse:
    """Send half of `body` under a Content-Length for all of it, then close the connection."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = len(body)
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    if request.transport is not None:
        request.transport.close()
    return response
