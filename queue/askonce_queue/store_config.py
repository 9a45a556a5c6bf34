"""The `[redis]` table: where the store is, how to reach it, and what must survive its failures."""

from __future__ import annotations

import inspect
import os
import re
import urllib.parse
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import connection as async_connection

from askonce_queue.errors import ConfigError
from askonce_queue.shards import MAX_SHARDS

Address = tuple[str, int]
"""Host and port; of a unix socket its path and 0."""

_URL_OPTIONS = frozenset({"connection_class", "host", "port", "path", "db", "username", "password"})
_TLS_URL_OPTIONS = frozenset(
    name
    for name in inspect.signature(async_connection.SSLConnection).parameters
    if name.startswith("ssl_")
)
_TLS_OPTIONS = ("tls_ca_file", "tls_cert_file", "tls_key_file")
_URL_PASSWORD = re.compile(r"(?<=:)[^:@/]*(?=@)|(?<=password=)[^&]*")
_UNREADABLE = (
    "redis://user:password@host:port/database, with every special character of user and password "
    "percent-encoded"
)
MAX_TIMEOUT_S = 60
MAX_WAIT_REPLICAS = 10
_NODE = re.compile(r"(\[[0-9A-Fa-f:]+\]|[^\s:\[\]/@]+):(\d{1,5})")
_ENV_NAME = re.compile(r"[A-Za-z_]\w*")
FILE_OPTIONS = ("password_file", "sentinel_password_file", *_TLS_OPTIONS)
"""Options that name files; relative ones count from the configuration file."""


class StoreConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One server, a cluster (`cluster`), or a primary that sentinels watch (`sentinel`)."""

    url: str
    """`redis://`, `rediss://` (TLS) or `unix://`; of a cluster one node, else one sentinel."""
    shards: int = 1
    """Over how many hash slots work is spread: a few for each primary of a cluster."""
    cluster: bool = False
    sentinel: str = ""
    """The name under which the sentinels at `url` and `nodes` know the primary."""
    nodes: tuple[str, ...] = ()
    """More nodes of the cluster, or more sentinels, as `host:port`."""
    password_env: str | None = None
    password_file: str | None = None
    """The password, if it is not in the URL; read again for every connection."""
    sentinel_username: str | None = None
    """The sentinels' user, if it is not their default one."""
    sentinel_password_env: str | None = None
    sentinel_password_file: str | None = None
    tls_ca_file: str | None = None
    tls_cert_file: str | None = None
    tls_key_file: str | None = None
    timeout_s: float = 5.0
    """How long one reply of the store may take."""
    wait_replicas: int = 0
    """How many replicas must have a job before its enqueue returns (WAIT)."""
    wait_fsync: bool = False
    """Whether a job must be on disk, at the primary and `wait_replicas` replicas (WAITAOF)."""
    wait_timeout_s: float | None = None
    """How long that may take; less than `timeout_s`. WAITAOF takes up to a second when the server
    writes its AOF to disk every second. `None`: 2 s, and no more than half of `timeout_s`."""

    def __post_init__(self) -> None:
        self._check_ranges()
        try:
            options = read_url(self.url)
        except ValueError as error:
            raise ValueError(f"url: expected a store's URL: {error}") from None
        self._check_topology(options)
        for name in ("password", "sentinel_password"):
            self._check_secret(name)
        self._check_tls()

    @property
    def confirm_s(self) -> float:
        """How long replicas and disk have to confirm."""
        given = self.wait_timeout_s
        return min(2.0, self.timeout_s / 2) if given is None else given

    def __repr__(self) -> str:
        """The options that differ from their defaults; of the URL, no password."""
        shown = (
            f"{field.name}={_without_password(value) if field.name == 'url' else value!r}"
            for field in msgspec.structs.fields(self)
            if (value := getattr(self, field.name)) != field.default
        )
        return f"StoreConfig({', '.join(shown)})"

    def _check_ranges(self) -> None:
        # Here and not in the types: a configuration made in Python is checked as well.
        if not 1 <= self.shards <= MAX_SHARDS:
            raise ValueError(f"shards: expected 1 to {MAX_SHARDS}, got {self.shards}")
        if not 0 < self.timeout_s <= MAX_TIMEOUT_S:
            raise ValueError(
                f"timeout_s: expected more than 0 and at most {MAX_TIMEOUT_S}, got {self.timeout_s}"
            )
        if not 0 <= self.wait_replicas <= MAX_WAIT_REPLICAS:
            raise ValueError(
                f"wait_replicas: expected 0 to {MAX_WAIT_REPLICAS}, got {self.wait_replicas}"
            )
        if not 0 < self.confirm_s < self.timeout_s:
            raise ValueError(
                f"wait_timeout_s: expected more than 0 and less than timeout_s ({self.timeout_s}), "
                f"got {self.confirm_s}"
            )

    def _check_topology(self, options: dict[str, Any]) -> None:
        if self.cluster and self.sentinel:
            raise ValueError("sentinel: expected none beside cluster = true")
        if self.nodes and not (self.cluster or self.sentinel):
            raise ValueError("nodes: expected cluster = true or sentinel beside it")
        if "path" in options and (self.cluster or self.sentinel):
            raise ValueError("url: expected host and port of a node, got a unix socket")
        if self.cluster and options.get("db"):
            raise ValueError("url: expected database 0, a cluster has no other")
        for node in self.nodes:
            match = _NODE.fullmatch(node)
            if not match or not 0 < int(match[2]) <= 65535:  # noqa: PLR2004 -- the last port
                raise ValueError(f'nodes: expected "host:port", got {node!r}')

    def _check_secret(self, name: str) -> None:
        variable, file = getattr(self, f"{name}_env"), getattr(self, f"{name}_file")
        if variable is not None and file is not None:
            raise ValueError(f"{name}_file: expected none beside {name}_env")
        if variable is not None and not _ENV_NAME.fullmatch(variable):
            # Not shown: it may be the password itself.
            raise ValueError(f"{name}_env: expected the name of an environment variable")
        if name == "sentinel_password" and (variable or file) and not self.sentinel:
            given = f"{name}_env" if variable else f"{name}_file"
            raise ValueError(f"{given}: expected sentinel beside it")
        if name == "sentinel_password" and self.sentinel_username and not (variable or file):
            raise ValueError(f"sentinel_username: expected {name}_env or {name}_file beside it")

    def _check_tls(self) -> None:
        given = [name for name in _TLS_OPTIONS if getattr(self, name) is not None]
        if given and not self.url.startswith("rediss://"):
            raise ValueError(f"{given[0]}: expected a rediss:// URL beside it")
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            given = [name for name in given if name != "tls_ca_file"]
            raise ValueError(f"{given[0]}: expected tls_cert_file and tls_key_file, or neither")

    @property
    def addresses(self) -> list[Address]:
        """The server's address, or those of the nodes or sentinels to ask first."""
        options = read_url(self.url)
        if "path" in options:
            return [(str(options["path"]), 0)]
        first = (str(options.get("host", "localhost")), int(options.get("port", 6379)))
        matches = [_NODE.fullmatch(node) for node in self.nodes]
        return [first, *((m[1].strip("[]"), int(m[2])) for m in matches if m)]

    def secret(self, name: str) -> str | None:
        """The `password` or `sentinel_password`; None when there is none beside the URL.

        Raises `ConfigError` when it is not where it should be.
        """
        variable, file = getattr(self, f"{name}_env"), getattr(self, f"{name}_file")
        if variable is not None:
            found = os.environ.get(variable, "").strip()
            if not found:
                raise ConfigError(
                    f"[redis] {name}_env: expected a password in the environment variable "
                    f"{variable}, got nothing"
                )
            return found
        if file is not None:
            try:
                found = Path(file).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise ConfigError(
                    f"[redis] {name}_file: cannot be read: {error.strerror}"
                ) from None
            except UnicodeDecodeError:
                raise ConfigError(f"[redis] {name}_file: cannot be read: not UTF-8") from None
            if not found:
                raise ConfigError(f"[redis] {name}_file: expected a password, got an empty file")
            return found
        return None


def as_config(store: str | StoreConfig, shards: int = 1) -> StoreConfig:
    """A store given by URL (and number of shards), or by its whole configuration.

    Raises `ConfigError`.
    """
    if isinstance(store, StoreConfig):
        return store
    try:
        return StoreConfig(url=store, shards=shards)
    except ValueError as error:
        raise ConfigError(f"[redis] {error}") from error


def _without_password(url: str) -> str:
    return _URL_PASSWORD.sub("***", url)


def read_url(url: str) -> dict[str, Any]:
    """What redis-py reads from a URL; raises `ValueError` for what it would silently ignore.

    Its messages never show what may be a password.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        options = dict(async_connection.parse_url(url))
    except ValueError:
        if "@" in url:  # and the message may quote what stands before it
            raise ValueError(_UNREADABLE) from None
        raise
    if parts.scheme != "unix" and ("@" in url.replace(parts.netloc, "", 1) or parts.fragment):
        raise ValueError(_UNREADABLE)
    known = _URL_OPTIONS | _TLS_URL_OPTIONS if parts.scheme == "rediss" else _URL_OPTIONS
    for name in options:
        if name not in known:
            raise ValueError(f"unknown option {name!r} in the store's URL")
    if parts.scheme == "unix":
        if not parts.path:
            raise ValueError("a unix:// URL needs the path of a socket: unix:///path/to/socket")
    elif not re.fullmatch(r"(/\d*)?", parts.path):
        raise ValueError(
            f"the database in the store's URL must be a number, not {parts.path[1:]!r}"
        )
    return options
