"""The worker's own HTTP port: `/livez`, `/readyz` and `/metrics`, and nothing else.

For probes and scrapes, so it says no more than they need, takes no bodies and keeps nobody waiting
who stops the worker. It answers from the worker's own event loop: one that hangs answers nothing.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
import msgspec
import structlog
from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from askonce_worker.config_listen import ListenAddress
from askonce_worker.observe.health import Verdict
from askonce_worker.observe.log import without_password

SHUTDOWN_S = 1.0
"""How long answers that are under way may hold up the end."""

log = structlog.get_logger("askonce.http")
_server_log = logging.getLogger("askonce.http.server")


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether a fault is ours: whoever can connect could fill the log with bad requests."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


_server_log.addFilter(_is_ours)


class Status(msgspec.Struct, omit_defaults=True):
    """The body of `/livez` and `/readyz`."""

    ok: bool
    reasons: list[str]
    consumer: str
    notes: list[str] = []


@asynccontextmanager
async def serving(
    address: ListenAddress,
    *,
    consumer: str,
    live: Callable[[], Verdict],
    ready: Callable[[], Verdict],
    metrics: Callable[[str], tuple[bytes, str]],
    notes: Callable[[], Sequence[str]] = tuple,
) -> AsyncGenerator[ListenAddress]:
    """Serve for the length of a block; where, is what the block gets.

    `notes` go with what is well, too. `metrics` gets the request's Accept header and returns body
    and content type. Raises `OSError` when it cannot listen there.
    """

    def status(verdict: Verdict) -> web.Response:
        reasons = [without_password(reason) for reason in verdict.reasons]
        return _response(
            msgspec.json.encode(Status(verdict.ok, reasons, consumer, list(notes()))),
            "application/json",
            status=200 if verdict.ok else 503,
        )

    async def livez(_: web.Request) -> web.Response:
        return status(live())

    async def readyz(_: web.Request) -> web.Response:
        return status(ready())

    async def metricsz(request: web.Request) -> web.Response:
        return _response(*metrics(request.headers.get(hdrs.ACCEPT, "")))

    application = web.Application()
    application.router.add_get("/livez", livez)  # and HEAD
    application.router.add_get("/readyz", readyz)
    application.router.add_get("/metrics", metricsz)
    runner = web.AppRunner(
        application,
        access_log=None,
        logger=_server_log,
        handle_signals=False,
        shutdown_timeout=SHUTDOWN_S,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, address.host, address.port).start()
        at = address._replace(port=runner.addresses[0][1])
        log.info("serving health and metrics", url=f"http://{at}")
        yield at
    finally:
        with anyio.CancelScope(shield=True):
            await runner.cleanup()


def check_free(address: ListenAddress) -> None:
    """Raise `OSError` when nobody could listen at `address` now."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    socket.create_server((address.host, address.port), family=family).close()


def why_not(error: OSError) -> str:
    """Why one cannot listen, for people; libraries put more into the text than they should."""
    return {
        errno.EADDRINUSE: "somebody listens there already",
        errno.EADDRNOTAVAIL: "no interface of this machine has that address",
    }.get(error.errno or 0, error.strerror or str(error))


def _response(body: bytes, content_type: str, *, status: int = 200) -> web.Response:
    headers = {hdrs.CONTENT_TYPE: content_type, hdrs.CACHE_CONTROL: "no-store"}
    return web.Response(body=body, status=status, headers=headers)
