"""One TOML table → one struct, with every error in one line: file, key, what was expected."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import msgspec

from askonce_queue.errors import ConfigError
from askonce_worker.config_units import (
    Bytes,
    Seconds,
    Stale,
    parse_bytes,
    parse_seconds,
    parse_stale,
)

Table = dict[str, Any]
Struct = TypeVar("Struct", bound=msgspec.Struct)

_OWN_FAULT = re.compile(r"(?P<field>[a-z_]+): (?P<what>expected .*)", re.DOTALL)
"""What `__post_init__` of a table's struct raises: the field is part of the message."""


CREDENTIALS = "$CREDENTIALS_DIRECTORY/"
"""What paths of files begin with that systemd hands to a service (systemd.exec(5), Credentials)."""


class ConfigFile:
    """A TOML file, read: its tables, and errors that name it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path.absolute().parent
        self.root = self._read()

    def error(self, key: str, message: str) -> ConfigError:
        """The exception for a fault at `key` ("tasks.intent.model"; empty for the whole file)."""
        # repr() of a text can hold no line break, but a message of the system's or a library's can.
        line = " ".join(f"{self.path}: {key}{': ' if key else ''}{message}".split())
        return ConfigError(line)

    def table(self, parent: Table, name: str, key: str) -> Table:
        """The table `parent[name]`, empty if absent; `key` is its full name.

        Raises `ConfigError`.
        """
        value = parent.get(name, {})
        if not isinstance(value, dict):
            raise self.error(key, f"expected table, got {type(value).__name__}")
        return typing.cast("Table", value)

    def convert(self, table: Table, kind: type[Struct], key: str) -> Struct:
        """`table` as a `kind`. Raises `ConfigError`."""
        self._check_keys(table, kind, key)
        try:
            return msgspec.convert(table, kind, dec_hook=_convert_unit)
        except msgspec.ValidationError as error:
            what, _, path = str(error).partition(" - at `$")
            path = path.rstrip("`")
            own = _OWN_FAULT.fullmatch(what)
            if own:
                raise self.error(f"{key}{path}.{own['field']}", own["what"]) from error
            raise self.error(key + path, _explain(what, table, kind, path)) from error

    def section(self, kind: type[Struct], name: str) -> Struct:
        """The table `[name]` as a `kind`, with defaults if absent. Raises `ConfigError`."""
        return self.convert(self.table(self.root, name, name), kind, name)

    def check_names(self, names: Iterable[str], known: Iterable[str], key: str) -> None:
        """Raise `ConfigError` for the first of `names` that is not in `known`."""
        known = list(known)
        for name in names:
            if name not in known:
                raise self.error(
                    key,
                    f"unknown key {name!r}{did_you_mean(name, known)}; "
                    f"known keys: {', '.join(known)}",
                )

    def path_of(self, name: str, key: str) -> Path:
        """Where a file is that is named in the configuration: relative to it, or a credential that
        systemd hands to its service. Raises `ConfigError` outside of such a service.
        """
        if not name.startswith(CREDENTIALS):
            return self.folder / Path(name).expanduser()
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if not folder:
            raise self.error(
                key,
                "expected CREDENTIALS_DIRECTORY to be set, as it is in a service of systemd with "
                "LoadCredential=",
            )
        return Path(folder, name.removeprefix(CREDENTIALS))

    def read_text(self, name: str, key: str) -> str:
        """The text of a file named in the configuration, relative to it. Raises `ConfigError`."""
        try:
            return self.path_of(name, key).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise self.error(key, f"expected a readable UTF-8 file: {error}") from error

    def _check_keys(self, table: Table, kind: type[msgspec.Struct], key: str) -> None:
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        self.check_names(table, fields, key)
        for name, field in fields.items():
            if name not in table:
                if field.required:
                    raise self.error(f"{key}.{name}", f"missing; expected {_type_name(field.type)}")
            elif isinstance(table[name], dict) and _is_struct(field.type):
                self._check_keys(table[name], field.type, f"{key}.{name}")

    def _read(self) -> Table:
        try:
            return tomllib.loads(self.path.read_text(encoding="utf-8"))
        except OSError as error:
            raise self.error("", f"expected a readable file: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise self.error("", f"expected UTF-8, got another byte at {error.start}") from error
        except tomllib.TOMLDecodeError as error:
            raise self.error("", f"not valid TOML: {error}") from error
        except RecursionError as error:
            raise self.error("", "not valid TOML: nested too deeply") from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'labels'?)`, or nothing when nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _convert_unit(kind: type, value: object) -> object:
    if kind is Seconds:
        return parse_seconds(value)
    if kind is Stale:
        return parse_stale(value)
    if kind is Bytes:
        return parse_bytes(value)
    raise NotImplementedError(f"no conversion to {kind}")


def _explain(what: str, table: Table, kind: type[msgspec.Struct], path: str) -> str:
    """The message of msgspec in the words of TOML, with what it got instead."""
    if what.startswith("Invalid enum value"):
        expected, got = f"expected {_type_name(_type_at(kind, path))}", ""
    else:
        expected, _, got = what.partition(", got ")
        expected = expected[:1].lower() + expected[1:].replace(" | null`", "`")
        expected = expected.replace("`object`", "table").replace("`", "")
    return f"{expected}, got {got.strip('`') or repr(_value_at(table, path))}"


def _type_at(kind: Any, path: str) -> Any:
    """The type of the field at `path` (".cache.ttl"); list indexes are left out."""
    for name in re.findall(r"\.(\w+)", path):
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
        kind = fields[name]
    return kind


def _value_at(value: Any, path: str) -> Any:
    """The value at `path` (".labels[1]")."""
    for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", path):
        value = value[name] if name else value[int(index)]
    return value


def _type_name(kind: Any) -> str:
    """A type for people: `str`, `float or 'default'`, `'nfc' or 'nfkc'`; of a list, its items'."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (typing.Annotated, tuple):
        return _type_name(parts[0])
    if origin is typing.Literal:
        return " or ".join(repr(choice) for choice in parts)
    if parts:
        return " or ".join(_type_name(part) for part in parts if part is not type(None))
    return getattr(kind, "__name__", str(kind))


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)
