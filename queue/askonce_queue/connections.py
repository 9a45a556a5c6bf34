"""Connections to one server: how commands are packed, how long replies may take, who re-sends.

`Endpoint` and `SyncEndpoint` send a batch of commands and read a batch of replies, once: what to do
about a failure is decided by `exchange.py`. `connect` and `connect_sync` give redis-py's own
clients, for tools and tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar, cast

import anyio
import redis
import redis.asyncio
from redis.asyncio import connection as async_connection
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import EqualJitterBackoff, NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import AuthenticationError, ResponseError
from redis.exceptions import ConnectionError as StoreDown
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from askonce_queue.errors import ConfigError
from askonce_queue.packing import ASYNC_CONNECTIONS, SYNC_CONNECTIONS, Packer, pack
from askonce_queue.store_config import Address, StoreConfig, as_config, read_url

Role = Literal["commands", "blocking"]
Words = tuple[Any, ...]
"""A command and its arguments."""
Client = TypeVar("Client", redis.Redis, redis.asyncio.Redis)

RETRIES = 3
RETRY_BASE_S = 0.1
RETRY_CAP_S = 1.0
"""With both, the retries outlast a restart of at least 0.7 s."""
POOL_WAIT_S = 20.0
CLOSED = "the handler is closed"
"""What uvloop says, in a RuntimeError, when the peer closed a connection just before it is used."""

_RAW_REPLIES = (
    "XREAD",
    "XREADGROUP",
    "XRANGE",
    "XREVRANGE",
    "XCLAIM",
    "XAUTOCLAIM",
    "XPENDING",
)


class Endpoint:
    """Connections to one server, opened as needed, at most `max_connections`."""

    def __init__(
        self,
        config: StoreConfig,
        address: Address,
        *,
        block_s: float = 0.0,
        max_connections: int,
        sentinel: bool = False,
    ) -> None:
        options = _options(config, address, block_s, max_connections, sentinel=sentinel)
        kind = options.pop("connection_class", async_connection.Connection)
        self.address = address
        self._retired = False
        self._pool = redis.asyncio.BlockingConnectionPool(
            connection_class=ASYNC_CONNECTIONS[kind],
            retry=AsyncRetry(NoBackoff(), 0),
            **options,
        )

    async def exchange(self, commands: Sequence[Words]) -> list[Any]:
        """Send commands, and return one raw reply each; a refusal is an exception in its place.

        Raises redis-py's `ConnectionError` and `TimeoutError`; what was executed is then unknown.
        Raises `DataError`, before anything is sent, for arguments that cannot be.
        """
        packed = b"".join(map(pack, commands))
        try:
            return await self._exchange(packed, len(commands))
        except RuntimeError as error:
            if CLOSED not in str(error):
                raise
            raise StoreDown(f"the connection was closed: {error}") from error

    async def _exchange(self, packed: bytes, count: int) -> list[Any]:
        connection = await self._pool.get_connection()
        try:
            await connection.send_packed_command(packed, check_health=False)
            replies: list[Any] = []
            for _ in range(count):
                try:
                    replies.append(await connection.read_response())
                except ResponseError as refusal:
                    replies.append(refusal)
            if self._retired:
                await connection.disconnect(nowait=True)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await connection.disconnect(nowait=True)  # replies may still be on their way
                await self._pool.release(connection)
            raise
        await self._pool.release(connection)
        return replies

    async def retire(self) -> None:
        """Close idle connections now, and those in use after what they are used for."""
        self._retired = True
        await self.forget_idle()

    async def forget_idle(self) -> None:
        """Close connections that nobody uses: after a time-out they may lead nowhere."""
        await self._pool.disconnect(inuse_connections=False)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pool.aclose()


class SyncEndpoint:
    """`Endpoint` without asyncio."""

    def __init__(
        self,
        config: StoreConfig,
        address: Address,
        *,
        block_s: float = 0.0,
        max_connections: int,
        sentinel: bool = False,
    ) -> None:
        options = _options(config, address, block_s, max_connections, sentinel=sentinel)
        kind = options.pop("connection_class", async_connection.Connection)
        self.address = address
        self._pool = redis.BlockingConnectionPool(
            connection_class=SYNC_CONNECTIONS[kind], retry=Retry(NoBackoff(), 0), **options
        )

    def exchange(self, commands: Sequence[Words]) -> list[Any]:
        """Send commands, and return one raw reply each; a refusal is an exception in its place."""
        packed = list(map(pack, commands))
        connection = cast("redis.Connection", self._pool.get_connection())
        try:
            connection.send_packed_command(packed, check_health=False)
            replies: list[Any] = []
            for _ in commands:
                try:
                    replies.append(connection.read_response())
                except ResponseError as refusal:
                    replies.append(refusal)
        except BaseException:
            connection.disconnect()
            raise
        finally:
            self._pool.release(connection)
        return replies

    def forget_idle(self) -> None:
        """Close connections that nobody uses: after a time-out they may lead nowhere."""
        self._pool.disconnect(inuse_connections=False)

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()


def connect(
    store: str | StoreConfig, *, role: Role, block_s: float = 2.0, max_connections: int = 16
) -> redis.asyncio.Redis:
    """Return redis-py's asyncio client for a store of one server. Close it with `aclose()`.

    It connects on first use. In the role `commands` it re-sends after a lost reply. Replies are
    bytes; stream reads return the wire's lists: `[[stream, [[id, [field, value, …]], …]], …]`.
    Raises `ConfigError` when the URL cannot be read.
    """
    config = as_config(store)
    wait_s = block_s if role == "blocking" else 0.0
    options = _options(config, config.addresses[0], wait_s, max_connections)
    kind = options.pop("connection_class", async_connection.Connection)
    retries = RETRIES if role == "commands" else 0
    pool = redis.asyncio.BlockingConnectionPool(
        connection_class=ASYNC_CONNECTIONS[kind],
        retry=AsyncRetry(EqualJitterBackoff(RETRY_CAP_S, RETRY_BASE_S), retries),
        **options,
    )
    return _with_raw_replies(redis.asyncio.Redis.from_pool(pool))


def connect_sync(
    store: str | StoreConfig, *, role: Role, block_s: float = 2.0, max_connections: int = 16
) -> redis.Redis:
    """Return a synchronous client, otherwise like `connect`; close it with `close()`."""
    config = as_config(store)
    wait_s = block_s if role == "blocking" else 0.0
    options = _options(config, config.addresses[0], wait_s, max_connections)
    kind = options.pop("connection_class", async_connection.Connection)
    retries = RETRIES if role == "commands" else 0
    pool = redis.BlockingConnectionPool(
        connection_class=SYNC_CONNECTIONS[kind],
        retry=Retry(EqualJitterBackoff(RETRY_CAP_S, RETRY_BASE_S), retries),
        command_packer=Packer(),
        **options,
    )
    return _with_raw_replies(redis.Redis.from_pool(pool))


def _options(
    config: StoreConfig,
    address: Address,
    block_s: float,
    max_connections: int,
    *,
    sentinel: bool = False,
) -> dict[str, Any]:
    """What all connections to one server have in common."""
    options = read_url(config.url)
    if "path" not in options:
        options["host"], options["port"] = address
        # A peer that vanished without a word is noticed although nothing is sent.
        options["socket_keepalive"] = True
    provider = _credentials(config, options, sentinel=sentinel)
    if provider is not None:
        options.pop("username", None)
        options.pop("password", None)
        options["credential_provider"] = provider
    if sentinel:
        options.pop("db", None)
    for name, option in (
        ("tls_ca_file", "ssl_ca_certs"),
        ("tls_cert_file", "ssl_certfile"),
        ("tls_key_file", "ssl_keyfile"),
    ):
        if getattr(config, name) is not None:
            options[option] = getattr(config, name)
    return {
        **options,
        "max_connections": max_connections,
        "timeout": POOL_WAIT_S,
        "socket_timeout": config.timeout_s + block_s,
        "socket_connect_timeout": config.timeout_s,
        # No health checks: against a server that hangs, redis-py reconnects and checks without end.
        "health_check_interval": 0,
        "decode_responses": False,
        # RESP2: stream reads are plain lists on every server, and nothing is pushed unasked.
        "protocol": 2,
        # Even in "auto", pools with these notifications skip the check for closed connections, and
        # the first command after a restart of the server fails.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }


def _credentials(
    config: StoreConfig, options: dict[str, Any], *, sentinel: bool
) -> _Credentials | None:
    """Where the password comes from when it is not in the URL.

    The URL's credentials are the primary's; sentinels have their own or none.
    """
    name = "sentinel_password" if sentinel else "password"
    username = config.sentinel_username if sentinel else options.get("username")
    if getattr(config, f"{name}_env") is not None or getattr(config, f"{name}_file") is not None:
        return _Credentials(config, name, username)
    if sentinel:
        options.pop("username", None)
        options.pop("password", None)
    return None


class _Credentials(CredentialProvider):
    """Reads a password anew for every connection, so that it can be rotated without a restart."""

    def __init__(self, config: StoreConfig, name: str, username: str | None) -> None:
        self._config = config
        self._name = name
        self._username = username

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        try:
            password = self._config.secret(self._name) or ""
        except ConfigError as error:
            raise AuthenticationError(str(error)) from error
        return (password,) if self._username is None else (self._username, password)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        return self.get_credentials()


def _with_raw_replies(client: Client) -> Client:
    """Take away redis-py's parsing of stream replies: it costs more than what we do with them."""
    callbacks = cast("dict[str, Any]", client.response_callbacks)
    for command in _RAW_REPLIES:
        callbacks.pop(command, None)
    return client
