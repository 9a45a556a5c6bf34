"""Connections to the store by role, and the checks that it is one askonce can run on.

Two roles keep their own clients, because their time limits and retries contradict each other:
`commands` re-sends after a lost reply, which is safe because every script is idempotent; `blocking`
(XREADGROUP with BLOCK) never does, because a re-sent read leaves the first one's deliveries pending
with nobody who knows of them. After any error of a blocking read, read your own pending entries.
"""

from __future__ import annotations

import re
import urllib.parse
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import hiredis
import msgspec
import redis
import redis.asyncio
from redis.asyncio import connection as async_connection
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import EqualJitterBackoff
from redis.exceptions import DataError, RedisError
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from askonce_queue.errors import ConfigError, StoreUnavailable
from askonce_queue.queue_scripts import record_shards
from askonce_queue.scripts import run, run_sync
from askonce_queue.shards import MAX_SHARDS

if TYPE_CHECKING:
    from redis.typing import EncodableT

Role = Literal["commands", "blocking"]
Client = TypeVar("Client", redis.Redis, redis.asyncio.Redis)

RETRIES = 3
RETRY_BASE_S = 0.1
RETRY_CAP_S = 1.0
"""With both, the retries outlast a restart of at least 0.7 s."""
POOL_WAIT_S = 20.0

_RAW_REPLIES = (
    "XREAD",
    "XREADGROUP",
    "XRANGE",
    "XREVRANGE",
    "XCLAIM",
    "XAUTOCLAIM",
    "XPENDING",
)
_PACKED_TYPES = frozenset({bytes, str, int, float})
_URL_OPTIONS = frozenset({"connection_class", "host", "port", "path", "db", "username", "password"})


class StoreConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The `[redis]` table: where the store is, and over how many hash slots work is spread."""

    url: str
    shards: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.shards <= MAX_SHARDS:
            raise ValueError(f"shards: expected 1 to {MAX_SHARDS}, got {self.shards}")
        try:
            _read_url(self.url)
        except ValueError as error:
            raise ValueError(f"url: expected a store's URL: {error}") from error


def connect(
    url: str,
    *,
    role: Role,
    timeout_s: float = 5.0,
    block_s: float = 2.0,
    max_connections: int = 16,
) -> redis.asyncio.Redis:
    """Return an asyncio client. It connects on first use; close it with `aclose()`.

    A reply is awaited for `timeout_s`; in the blocking role for `block_s` more, the longest BLOCK
    that the caller may use. A command beyond `max_connections` waits for a free connection. Replies
    are bytes; stream reads return the wire's lists: `[[stream, [[id, [field, value, …]], …]], …]`.
    Raises `ConfigError` when the URL cannot be read.
    """
    options = _options(url, role, timeout_s, block_s, max_connections)
    kind = options.pop("connection_class", async_connection.Connection)
    retries = RETRIES if role == "commands" else 0
    pool = redis.asyncio.BlockingConnectionPool(
        connection_class=_ASYNC_CONNECTIONS[kind],
        retry=AsyncRetry(EqualJitterBackoff(RETRY_CAP_S, RETRY_BASE_S), retries),
        **options,
    )
    return _with_raw_replies(redis.asyncio.Redis.from_pool(pool))


def connect_sync(
    url: str,
    *,
    role: Role,
    timeout_s: float = 5.0,
    block_s: float = 2.0,
    max_connections: int = 16,
) -> redis.Redis:
    """Return a synchronous client, otherwise like `connect`; close it with `close()`."""
    options = _options(url, role, timeout_s, block_s, max_connections)
    kind = options.pop("connection_class", async_connection.Connection)
    retries = RETRIES if role == "commands" else 0
    pool = redis.BlockingConnectionPool(
        connection_class=_SYNC_CONNECTIONS[kind],
        retry=Retry(EqualJitterBackoff(RETRY_CAP_S, RETRY_BASE_S), retries),
        command_packer=_Packer(),
        **options,
    )
    return _with_raw_replies(redis.Redis.from_pool(pool))


async def check_store(client: redis.asyncio.Redis) -> None:
    """Raise `StoreUnavailable` unless the store answers, is new enough and evicts only answers."""
    try:
        server: dict[str, Any] = await client.info("server")
        memory: dict[str, Any] = await client.info("memory")
    except RedisError as error:
        raise StoreUnavailable(
            f"the store does not answer: {error}. Check [redis] url, and that the server runs"
        ) from error
    # Valkey calls itself Redis 7.2.4 for old clients' sake, whatever its own version is.
    is_valkey = "valkey_version" in server
    name, oldest = ("Valkey", (7, 2)) if is_valkey else ("Redis", (7, 0))
    version = str(server["valkey_version" if is_valkey else "redis_version"])
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < oldest:
        raise StoreUnavailable(
            f"the store is {name} {version}; askonce needs Redis 7.0 or Valkey 7.2, or newer"
        )
    policy = str(memory["maxmemory_policy"])
    if policy.startswith("allkeys-"):
        raise StoreUnavailable(
            f"the store's maxmemory-policy is {policy}, which would evict accepted jobs; "
            "set it to volatile-lfu (only answers carry a TTL)"
        )


async def check_shards(client: redis.asyncio.Redis, shards: int) -> None:
    """Record the number of shards in a new store; raise `ConfigError` if it has another one.

    With another number, jobs and answers would be looked for where they are not.
    """
    _compare_shards(shards, await run(client, record_shards(shards)))


def check_shards_sync(client: redis.Redis, shards: int) -> None:
    """`check_shards` on a synchronous client."""
    _compare_shards(shards, run_sync(client, record_shards(shards)))


def _compare_shards(shards: int, recorded: bytes) -> None:
    if int(recorded) != shards:
        raise ConfigError(
            f"[redis] shards is {shards}, but this store was set up with "
            f"{recorded.decode()}: use that number, or an empty database"
        )


def _read_url(url: str) -> dict[str, Any]:
    """What redis-py reads from a URL; raises `ValueError` for what it would silently ignore."""
    options = dict(async_connection.parse_url(url))
    for name in options:
        if name not in _URL_OPTIONS and not name.startswith("ssl_"):
            raise ValueError(f"unknown option {name!r} in the store's URL")
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "unix":
        if not parts.path:
            raise ValueError("a unix:// URL needs the path of a socket: unix:///path/to/socket")
    elif not re.fullmatch(r"(/\d*)?", parts.path):
        raise ValueError(
            f"the database in the store's URL must be a number, not {parts.path[1:]!r}"
        )
    return options


def _options(
    url: str, role: Role, timeout_s: float, block_s: float, max_connections: int
) -> dict[str, Any]:
    """What both kinds of client have in common."""
    try:
        from_url = _read_url(url)
    except ValueError as error:
        raise ConfigError(f"[redis] url: {error}") from error
    return {
        **from_url,
        "max_connections": max_connections,
        "timeout": POOL_WAIT_S,
        "socket_timeout": timeout_s + (block_s if role == "blocking" else 0.0),
        "socket_connect_timeout": timeout_s,
        # No health checks: against a server that hangs, redis-py reconnects and checks without end.
        "health_check_interval": 0,
        "decode_responses": False,
        # RESP2: stream reads are plain lists on every server, and nothing is pushed unasked.
        "protocol": 2,
        # Even in "auto", pools with these notifications skip the check for closed connections, and
        # the first command after a restart of the server fails.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }


def _with_raw_replies(client: Client) -> Client:
    """Take away redis-py's parsing of stream replies: it costs more than what we do with them."""
    callbacks = cast("dict[str, Any]", client.response_callbacks)
    for command in _RAW_REPLIES:
        callbacks.pop(command, None)
    return client


def _pack(args: tuple[EncodableT, ...]) -> list[bytes]:
    """A command in RESP. Raises `DataError` for arguments that are not bytes, text or numbers."""
    head = args[0].encode() if isinstance(args[0], str) else bytes(cast("bytes", args[0]))
    if b" " in head:  # redis-py's own commands: "CONFIG GET"
        args = (*head.split(), *args[1:])
    try:
        if not _PACKED_TYPES.issuperset(map(type, args)):
            args = tuple(_plain(arg) for arg in args)
        return [hiredis.pack_command(cast("tuple[str | int | float | bytes]", args))]
    except UnicodeEncodeError as error:
        raise DataError(f"not valid Unicode: {error}") from error


def _plain(arg: object) -> bytes | str | int | float:
    """`arg` as a type that hiredis packs. Raises `DataError`."""
    if isinstance(arg, bytes | bytearray | memoryview):
        return bytes(
            cast("bytes", arg)
        )  # hiredis would read a memoryview's buffer without its strides
    if isinstance(arg, str):
        return arg.encode()
    if isinstance(arg, int) and not isinstance(arg, bool):
        return int(arg)
    if isinstance(arg, float):
        return float(arg)
    raise DataError(f"an argument must be bytes, str, int or float, not {type(arg).__name__}")


class _Packer:
    """Packs the commands of synchronous connections."""

    def pack(self, *args: EncodableT) -> list[bytes]:
        return _pack(args)


class _FastPacking:
    """Packs in C; redis-py's asyncio connections pack in Python (parsing is in C for both)."""

    def pack_command(self, *args: EncodableT) -> list[bytes]:
        return _pack(args)


class _Connection(_FastPacking, async_connection.Connection):
    """TCP."""


class _SSLConnection(_FastPacking, async_connection.SSLConnection):
    """TLS over TCP."""


class _UnixConnection(_FastPacking, async_connection.UnixDomainSocketConnection):
    """A unix socket."""


_ASYNC_CONNECTIONS: dict[type, type] = {
    async_connection.Connection: _Connection,
    async_connection.SSLConnection: _SSLConnection,
    async_connection.UnixDomainSocketConnection: _UnixConnection,
}
_SYNC_CONNECTIONS: dict[type, type] = {
    async_connection.Connection: redis.Connection,
    async_connection.SSLConnection: redis.SSLConnection,
    async_connection.UnixDomainSocketConnection: redis.UnixDomainSocketConnection,
}
