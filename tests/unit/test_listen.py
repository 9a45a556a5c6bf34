"""`[worker] listen`: what is an address to listen at, and what a worker says of what is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from askonce_worker.config_listen import ListenAddress, parse_listen
from tests.support.config_file import TASK, ConfigLoader


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:9464", ListenAddress("127.0.0.1", 9464)),
        ("0.0.0.0:0", ListenAddress("0.0.0.0", 0)),  # noqa: S104 -- read, not bound
        ("[::1]:65535", ListenAddress("::1", 65535)),
        ("[::]:80", ListenAddress("::", 80)),
        ("[FD00:0::1]:80", ListenAddress("fd00::1", 80)),
    ],
)
def test_addresses(text: str, expected: ListenAddress) -> None:
    address = parse_listen(text)
    assert address == expected
    assert parse_listen(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        *("9464", ":9464", "localhost:9464", "example.com:80", "127.0.0.1", "127.0.0.1:"),
        *("127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:99999999", "127.0.0.1:9464 ", "1.2.3:80"),
        *("::1:9464", "[::1]", "[::1:9464", "[fe80::1%eth0]:80", "[]:80", "127.0.0.1:٣", " "),
        *("http://127.0.0.1:9464", "127.0.0.1:80/metrics", "127.0.0.1%1:80", "\n127.0.0.1:80"),
    ],
)
def test_what_is_no_address(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"expected an IP address and a port"):
        parse_listen(text)
    quoted = text.replace("\n", "\\n")
    message = ConfigLoader(tmp_path).error(f'{TASK}\n[worker]\nlisten = "{quoted}"\n')
    assert message.startswith("worker.listen: expected an IP address and a port, like ")
    assert message.endswith(f"got {text!r}")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("listen = 9464", "worker.listen: expected str, got int"),
        ("max_read_age_s = 9", "worker.max_read_age_s: expected float >= 10.0, got 9"),
        ("max_loop_lag_s = 0.5", "worker.max_loop_lag_s: expected float >= 1.0, got 0.5"),
    ],
)
def test_what_is_no_limit(
    line: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ConfigLoader(tmp_path).error(f"{TASK}\n[worker]\n{line}\n") == expected


def test_nothing_is_served_unless_somebody_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    load = ConfigLoader(tmp_path)
    assert load(TASK).worker.listen_address is None
    assert load(f'{TASK}\n[worker]\nlisten = ""\n').worker.listen_address is None
    address = load(f'{TASK}\n[worker]\nlisten = "[::1]:1"\n').worker.listen_address
    assert address == ListenAddress("::1", 1)


def test_each_process_has_a_port_of_its_own() -> None:
    first = ListenAddress("127.0.0.1", 9464)
    assert [first.of_process(index).port for index in range(3)] == [9464, 9465, 9466]
    assert ListenAddress("127.0.0.1", 0).of_process(2).port == 0
