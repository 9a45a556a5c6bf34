"""Commands packed in C: redis-py's connections, with hiredis for the way out as well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import hiredis
import redis
from redis.asyncio import connection as async_connection
from redis.exceptions import DataError

if TYPE_CHECKING:
    from redis.typing import EncodableT

_PACKED_TYPES = frozenset({bytes, str, int, float})


def pack(args: tuple[EncodableT, ...]) -> bytes:
    """A command in RESP. Raises `DataError` for arguments that are not bytes, text or numbers."""
    head = args[0].encode() if isinstance(args[0], str) else bytes(cast("bytes", args[0]))
    if b" " in head:  # redis-py's own commands: "CONFIG GET"
        args = (*head.split(), *args[1:])
    try:
        if not _PACKED_TYPES.issuperset(map(type, args)):
            args = tuple(_plain(arg) for arg in args)
        words = cast("tuple[str | int | float | bytes]", args)
        packed = cast("bytes", hiredis.pack_command(words))
    except UnicodeEncodeError as error:
        raise DataError(f"not valid Unicode: {error}") from error
    return packed


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


class Packer:
    """Packs the commands of redis-py's synchronous clients."""

    def pack(self, *args: EncodableT) -> list[bytes]:
        """Pack one command."""
        return [pack(args)]


class _FastPacking:
    """Packs in C; redis-py's asyncio connections pack in Python (parsing is in C for both)."""

    def pack_command(self, *args: EncodableT) -> list[bytes]:
        return [pack(args)]


class _Connection(_FastPacking, async_connection.Connection):
    """TCP."""


class _SSLConnection(_FastPacking, async_connection.SSLConnection):
    """TLS over TCP. Its files are read at every connect, so that they can be replaced."""

    def _connection_arguments(self) -> Mapping[str, Any]:
        self.ssl_context.context = None  # redis-py keeps it, even when it was refused
        return cast("Mapping[str, Any]", super()._connection_arguments())


class _UnixConnection(_FastPacking, async_connection.UnixDomainSocketConnection):
    """A unix socket."""


ASYNC_CONNECTIONS: dict[type, type] = {
    async_connection.Connection: _Connection,
    async_connection.SSLConnection: _SSLConnection,
    async_connection.UnixDomainSocketConnection: _UnixConnection,
}
SYNC_CONNECTIONS: dict[type, type] = {
    async_connection.Connection: redis.Connection,
    async_connection.SSLConnection: redis.SSLConnection,
    async_connection.UnixDomainSocketConnection: redis.UnixDomainSocketConnection,
}
