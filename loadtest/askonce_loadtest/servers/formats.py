"""The server's text formats: values in its configuration file, and the fields of INFO."""

from __future__ import annotations


def quoted(value: str) -> str:
    """A value of a configuration line, in quotes."""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def fields_of(info: str) -> dict[str, str]:
    """The `name:value` lines of INFO and CLUSTER INFO."""
    pairs = (line.partition(":") for line in info.splitlines())
    return {name: value for name, colon, value in pairs if colon}
