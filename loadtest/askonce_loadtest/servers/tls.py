"""TLS before a server that has none: ends it on loopback and passes the plain bytes on.

with TlsFront(node.address, certificates.server, client_ca=certificates.ca) as front:
    client = redis.Redis.from_url(front.url(certificates.ca, certificates.client))

It runs in a thread of its own, with its own event loop, so that synchronous clients and those of
any loop can be tested. `async with` does the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
import urllib.parse
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self

from askonce_loadtest.servers.certificates import KeyPair
from askonce_loadtest.servers.ports import HOST

START_S = 5.0
CHUNK_BYTES = 65_536
SHUTDOWN_S = 1.0


class TlsFront:
    """Listens with TLS and forwards to `upstream`: host and port, or the path of a unix socket.

    With `client_ca`, clients must show a certificate of that authority. `port` is chosen by the
    system when it is 0. Raises `OSError` on entry when it cannot listen.
    """

    def __init__(
        self,
        upstream: tuple[str, int] | Path,
        server: KeyPair,
        *,
        client_ca: Path | None = None,
        port: int = 0,
    ) -> None:
        self.port = port
        self._upstream = upstream
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*server)
        if client_ca is not None:
            self._context.verify_mode = ssl.CERT_REQUIRED
            self._context.load_verify_locations(client_ca)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handlers: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()

    def url(self, ca: Path, client: KeyPair | None = None, *, password: str = "") -> str:
        """A URL for redis-py of someone who trusts `ca` and is `client`."""
        query = {"ssl_ca_certs": str(ca)}
        if client is not None:
            query |= {"ssl_certfile": str(client.cert), "ssl_keyfile": str(client.key)}
        user = f":{urllib.parse.quote(password, safe='')}@" if password else ""
        return f"rediss://{user}{HOST}:{self.port}/0?{urllib.parse.urlencode(query)}"

    def cut(self) -> None:
        """Drop all connections, without a word of TLS."""
        self._call(self._cut)

    # Lifecycle

    def start(self) -> None:
        """Listen. Raises `OSError`."""
        assert self._thread is None, "it is started already"
        started: Future[int] = Future()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(started)), name="tls-front", daemon=True
        )
        self._thread.start()
        try:
            self.port = started.result(START_S)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop listening, drop all connections and join the thread."""
        if self._thread is None:
            return
        self._call(self._stopped.set)
        self._thread.join(START_S)
        self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.stop)

    def _call(self, function: Callable[[], None]) -> None:
        """Run `function` in the thread's loop, if it still runs."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has just ended
                self._loop.call_soon_threadsafe(function)

    # In the thread

    async def _serve(self, started: Future[int]) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            server = await asyncio.start_server(
                self._handle,
                HOST,
                self.port,
                ssl=self._context,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
        except OSError as error:
            started.set_exception(error)
            return
        started.set_result(server.sockets[0].getsockname()[1])
        await self._stopped.wait()
        server.close()
        self._cut()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    def _cut(self) -> None:
        for handler in self._handlers:
            handler.cancel()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await self._forward(reader, writer)
        finally:
            self._handlers.discard(task)
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if isinstance(self._upstream, Path):
            above, up = await asyncio.open_unix_connection(self._upstream)
        else:
            above, up = await asyncio.open_connection(*self._upstream)
        pumps = [asyncio.create_task(_pump(reader, up)), asyncio.create_task(_pump(above, writer))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            up.transport.abort()  # before anything here can be cancelled
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until one side ends."""
    while data := await reader.read(CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
