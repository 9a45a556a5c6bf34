"""The `[redis]` table: what is refused, in which words, and that secrets are in none of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from askonce_queue.errors import ConfigError
from askonce_queue.store_config import StoreConfig, as_config
from tests.support.config_file import ConfigLoader

SECRET = "hunter2"  # noqa: S105 -- the tests look for it in messages
URL = "redis://h"
TLS = "rediss://h"
Options = dict[str, Any]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigLoader:
    monkeypatch.chdir(tmp_path)
    return ConfigLoader(tmp_path)


def toml(options: Options) -> str:
    """`[redis]` with these options."""
    lines = ["[redis]"]
    for name, value in options.items():
        text = repr(value)
        if isinstance(value, bool):
            text = text.lower()
        elif isinstance(value, tuple):
            text = f"[{text[1:-1]}]"
        lines.append(f"{name} = {text}")
    return "\n".join(lines)


BAD: list[tuple[Options, str, str]] = [
    ({"url": "localhost:6379"}, "url", "expected a store's URL: "),
    ({"url": "http://h"}, "url", "expected a store's URL: "),
    ({"url": "redis://h/first"}, "url", "the database in the store's URL must be a number"),
    ({"url": "redis://h:port"}, "url", "expected a store's URL: "),
    ({"url": "redis://h:70000"}, "url", "expected a store's URL: "),
    ({"url": "redis://h?db=x"}, "url", "expected a store's URL: Invalid value for 'db'"),
    ({"url": "redis://h?shards=3"}, "url", "unknown option 'shards' in the store's URL"),
    ({"url": "redis://h?socket_timeout=3"}, "url", "unknown option 'socket_timeout'"),
    ({"url": "redis://h?ssl_ca_certs=/ca"}, "url", "unknown option 'ssl_ca_certs'"),
    ({"url": "rediss://h?ssl_ca_cert=/ca"}, "url", "unknown option 'ssl_ca_cert'"),
    ({"url": "redis://h#x"}, "url", "percent-encoded"),
    ({"url": "unix://"}, "url", "the path of a socket"),
    ({"url": URL, "shards": 0}, "shards", "expected 1 to 256, got 0"),
    ({"url": URL, "shards": 257}, "shards", "expected 1 to 256, got 257"),
    ({"url": URL, "timeout_s": 0.0}, "timeout_s", "expected more than 0 and at most 60, got 0.0"),
    ({"url": URL, "timeout_s": 61.0}, "timeout_s", "at most 60, got 61.0"),
    ({"url": URL, "timeout_s": math.nan}, "timeout_s", "at most 60, got nan"),
    ({"url": URL, "wait_replicas": -1}, "wait_replicas", "expected 0 to 10, got -1"),
    ({"url": URL, "wait_replicas": 11}, "wait_replicas", "expected 0 to 10, got 11"),
    ({"url": URL, "wait_timeout_s": 0.0}, "wait_timeout_s", "expected more than 0 and less than"),
    (
        {"url": URL, "wait_timeout_s": 5.0},
        "wait_timeout_s",
        "less than timeout_s (5.0), got 5.0",
    ),
    (
        {"url": URL, "timeout_s": 0.5, "wait_timeout_s": 2.0},
        "wait_timeout_s",
        "less than timeout_s (0.5), got 2.0",
    ),
    ({"url": URL, "cluster": True, "sentinel": "x"}, "sentinel", "none beside cluster = true"),
    ({"url": URL, "nodes": ("h:1",)}, "nodes", "expected cluster = true or sentinel beside it"),
    ({"url": URL, "cluster": True, "nodes": ("h",)}, "nodes", "expected \"host:port\", got 'h'"),
    ({"url": URL, "cluster": True, "nodes": ("h:0",)}, "nodes", 'expected "host:port"'),
    ({"url": URL, "cluster": True, "nodes": ("h:65536",)}, "nodes", 'expected "host:port"'),
    ({"url": URL, "cluster": True, "nodes": ("::1:7000",)}, "nodes", 'expected "host:port"'),
    ({"url": URL, "sentinel": "m", "nodes": ("h:1", "h 2:3")}, "nodes", 'expected "host:port"'),
    ({"url": "unix:///s", "cluster": True}, "url", "got a unix socket"),
    ({"url": "unix:///s", "sentinel": "m"}, "url", "got a unix socket"),
    ({"url": "redis://h/1", "cluster": True}, "url", "a cluster has no other"),
    ({"url": URL, "tls_ca_file": "ca"}, "tls_ca_file", "expected a rediss:// URL beside it"),
    ({"url": "unix:///s", "tls_cert_file": "c"}, "tls_cert_file", "a rediss:// URL beside it"),
    ({"url": TLS, "tls_cert_file": "c"}, "tls_cert_file", "tls_cert_file and tls_key_file, or"),
    (
        {"url": TLS, "tls_ca_file": "ca", "tls_key_file": "k"},
        "tls_key_file",
        "expected tls_cert_file and tls_key_file, or neither",
    ),
    (
        {"url": URL, "password_env": "P", "password_file": "p"},
        "password_file",
        "expected none beside password_env",
    ),
    (
        {"url": URL, "sentinel_password_env": "P"},
        "sentinel_password_env",
        "expected sentinel beside it",
    ),
    (
        {"url": URL, "sentinel_password_file": "p"},
        "sentinel_password_file",
        "expected sentinel beside it",
    ),
    (
        {"url": URL, "sentinel": "m", "sentinel_username": "u"},
        "sentinel_username",
        "expected sentinel_password_env or sentinel_password_file beside it",
    ),
]
LEAKY: list[Options] = [
    {"url": f"redis://:{SECRET}/x@h"},
    {"url": f"redis://:x/{SECRET}@h"},
    {"url": f"redis://:x/{SECRET}@h/0"},
    {"url": f"redis://:{SECRET}#x@h"},
    {"url": f"redis://:12#{SECRET}@h"},
    {"url": f"redis://:x?{SECRET}=1@h"},
    {"url": f"redis://:[{SECRET}]@h"},
    {"url": f"redis://:{SECRET}\uff0f@h"},
    {"url": f"redis://:{SECRET}@h:port"},
    {"url": f"redis://:{SECRET}@h/first"},
    {"url": f"redis://:{SECRET}@h?shards=3"},
    {"url": f"redis://:{SECRET}@h", "shards": 0},
    {"url": f"redis://:{SECRET}@h", "timeout_s": "5"},
    {"url": f"rediss://:{SECRET}@h", "tls_key_file": "k"},
    {"url": f"redis://:{SECRET}@h", "sentinel_password_env": "P"},
    {"url": f"redis://:{SECRET}@h", "password_env": "P", "password_file": "p"},
    {"url": f"redis://:{SECRET}@h", "cluster": True, "nodes": ("h",)},
    {"url": f"redis://:{SECRET}@h", "unknown": 1},
    {"url": URL, "password_env": f"{SECRET}!"},
    {"url": URL, "sentinel": "m", "sentinel_password_env": f"{SECRET}!"},
]


@pytest.mark.parametrize(("options", "key", "expected"), BAD, ids=lambda value: str(value)[:60])
def test_a_bad_value_is_told_with_its_key(
    load: ConfigLoader, options: Options, key: str, expected: str
) -> None:
    """The same words in Python and from a file."""
    with pytest.raises(ValueError, match=f"^{key}: expected ") as caught:
        StoreConfig(**options)
    assert expected in str(caught.value)
    for name in ("ca", "c", "k", "p"):  # files are looked for after all else
        Path(name).touch()
    line = load.error(toml(options))
    assert line == f"redis.{caught.value}"


@pytest.mark.parametrize("options", LEAKY, ids=str)
def test_a_password_is_never_shown(load: ConfigLoader, options: Options) -> None:
    assert SECRET not in load.error(toml(options))
    if not {"unknown", "timeout_s"} & options.keys():
        with pytest.raises(ValueError, match="expected") as caught:
            StoreConfig(**options)
        assert SECRET not in str(caught.value)
        chain: BaseException | None = caught.value
        while chain is not None and not chain.__suppress_context__:
            chain = chain.__cause__ or chain.__context__
            assert SECRET not in str(chain)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"url": f"redis://u:{SECRET}@h/0"}, "StoreConfig(url='redis://u:***@h/0')"),
        ({"url": f"redis://h?password={SECRET}&db=2"}, "password=***&db=2"),
        ({"url": f"rediss://h?ssl_password={SECRET}"}, "ssl_password=***"),
        ({"url": URL, "shards": 3, "timeout_s": 3.0}, "(url='redis://h', shards=3, timeout_s=3.0)"),
    ],
)
def test_what_a_configuration_looks_like(options: Options, shown: str) -> None:
    """In a log, or a traceback with its values."""
    assert shown in repr(StoreConfig(**options))
    assert SECRET not in repr(StoreConfig(**options))


def test_a_url_alone_is_a_configuration() -> None:
    assert as_config(URL, 3) == StoreConfig(url=URL, shards=3)
    given = StoreConfig(url=URL, shards=2)
    assert as_config(given, 3) is given
    with pytest.raises(ConfigError, match=r"^\[redis\] url: expected a store's URL"):
        as_config("h")
    with pytest.raises(ConfigError, match=r"^\[redis\] shards: expected 1 to 256, got 0"):
        as_config(URL, 0)


def test_everything_can_be_set_in_the_file(load: ConfigLoader) -> None:
    for name in ("ca.pem", "cert.pem", "key.pem", "password"):
        (load.folder / name).write_text("x")
    found = load(
        """
        [redis]
        url = "rediss://user@[::1]:26379"
        shards = 12
        sentinel = "mymaster"
        nodes = ["sentinel-2:26379", "[2001:db8::3]:26379"]
        password_file = "password"
        sentinel_password_env = "SENTINEL_PASSWORD"
        tls_ca_file = "ca.pem"
        tls_cert_file = "cert.pem"
        tls_key_file = "key.pem"
        timeout_s = 2
        wait_replicas = 1
        wait_fsync = true
        wait_timeout_s = 0.5
        """
    ).redis
    assert found is not None
    assert found.addresses == [("::1", 26379), ("sentinel-2", 26379), ("2001:db8::3", 26379)]
    assert found.tls_ca_file == str(load.folder / "ca.pem")
    assert found.password_file == str(load.folder / "password")
    assert found.sentinel_password_env == "SENTINEL_PASSWORD"  # noqa: S105 -- its name
    assert (found.timeout_s, found.wait_replicas, found.wait_timeout_s) == (2.0, 1, 0.5)


@pytest.mark.parametrize(("option", "at"), [("password_file", ""), ("tls_ca_file", " at none.txt")])
def test_a_file_that_is_not_there(load: ConfigLoader, option: str, at: str) -> None:
    """One for a password is not named: it may be the password itself."""
    text = toml({"url": TLS, option: "none.txt"})
    assert load.error(text) == f"redis.{option}: expected a file, found none{at}"


class TestSecrets:
    def test_there_is_none_beside_the_url(self) -> None:
        assert StoreConfig(url=URL).secret("password") is None

    def test_a_variable_is_read_each_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        config = StoreConfig(url=URL, password_env="STORE_PASSWORD")  # noqa: S106 -- its name
        for value in ("one", "  two\n"):
            monkeypatch.setenv("STORE_PASSWORD", value)
            assert config.secret("password") == value.strip()
        for nothing in ("", "  "):
            monkeypatch.setenv("STORE_PASSWORD", nothing)
            with pytest.raises(ConfigError, match=r"\[redis\] password_env: .* STORE_PASSWORD"):
                config.secret("password")
        monkeypatch.delenv("STORE_PASSWORD")
        with pytest.raises(ConfigError, match="got nothing"):
            config.secret("password")

    def test_a_file_is_read_each_time(self, tmp_path: Path) -> None:
        file = tmp_path / "password"
        config = StoreConfig(url=URL, sentinel="m", sentinel_password_file=str(file))
        for value in ("one\n", "two"):
            file.write_text(value)
            assert config.secret("sentinel_password") == value.strip()
        assert config.secret("password") is None
        file.write_text("\n")
        with pytest.raises(ConfigError, match=r"sentinel_password_file: .* an empty file"):
            config.secret("sentinel_password")
        file.write_bytes(b"\xff")
        with pytest.raises(ConfigError, match="cannot be read"):
            config.secret("sentinel_password")
        file.unlink()
        with pytest.raises(ConfigError, match="cannot be read"):
            config.secret("sentinel_password")
