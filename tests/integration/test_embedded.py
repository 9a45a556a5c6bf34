from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
from redis.exceptions import RedisError

from askonce_queue.connections import connect, connect_sync
from askonce_queue.embedded import EmbeddedStore
from tests.support.embedded_server import USER, User, is_running, server_pid
from tests.support.waiting import eventually, eventually_sync


def test_it_starts_a_private_durable_server_and_stops_it(state_folder: Path) -> None:
    with EmbeddedStore(state_folder, maxmemory="64mb") as embedded:
        client = connect_sync(embedded.url, role="commands")
        config = cast("dict[str, str]", client.config_get("*"))
        client.close()
        assert config["appendonly"] == "yes"
        assert config["appendfsync"] == "everysec"
        assert config["save"] == ""
        assert config["port"] == "0"
        assert config["maxmemory"] == str(64 << 20)
        assert config["maxmemory-policy"] == "volatile-lfu"
        socket_path = state_folder / "store.sock"
        assert embedded.url == f"unix://{socket_path}"
        assert stat.S_IMODE(socket_path.stat().st_mode) == 0o700
        assert stat.S_IMODE(state_folder.stat().st_mode) == 0o700
        pid = server_pid(embedded.url)
        # Ctrl-C in a terminal reaches the sessions of that terminal only.
        assert os.getsid(pid) != os.getsid(0)
    eventually_sync(lambda: not is_running(pid))
    assert not socket_path.exists()


def test_one_process_may_be_several_users(state_folder: Path) -> None:
    with EmbeddedStore(state_folder) as first:
        with EmbeddedStore(state_folder) as second:
            assert second.url == first.url
            pid = server_pid(first.url)
        assert server_pid(first.url) == pid
    eventually_sync(lambda: not is_running(pid))


async def test_it_is_an_async_context_manager(state_folder: Path) -> None:
    async with EmbeddedStore(state_folder) as embedded:
        client = connect(embedded.url, role="commands")
        await client.ping()
        await client.aclose()


def test_the_last_one_out_stops_it(state_folder: Path) -> None:
    first = User(state_folder)
    pid = first.server_pid()
    second = User(state_folder)
    assert second.server_pid() == pid
    first.leave()
    assert is_running(pid)
    second.leave()
    eventually_sync(lambda: not is_running(pid))


def test_it_is_shared_after_its_starter_was_killed(state_folder: Path) -> None:
    starter = User(state_folder)
    pid = starter.server_pid()
    second = User(state_folder)
    assert second.server_pid() == pid
    starter.kill()
    with EmbeddedStore(state_folder) as embedded:
        assert server_pid(embedded.url) == pid
        second.leave()
        assert server_pid(embedded.url) == pid
    eventually_sync(lambda: not is_running(pid))


def test_an_orphan_is_found_and_stopped_by_the_next_user(state_folder: Path) -> None:
    starter = User(state_folder)
    pid = starter.server_pid()
    starter.kill()
    assert is_running(pid)
    with EmbeddedStore(state_folder) as embedded:
        assert server_pid(embedded.url) == pid
    eventually_sync(lambda: not is_running(pid))


def test_an_orphan_is_found_under_another_tmpdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("x" * 120)
    starter = User(folder)
    pid = starter.server_pid()
    starter.kill()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with EmbeddedStore(folder) as embedded:
        assert server_pid(embedded.url) == pid
    eventually_sync(lambda: not is_running(pid))


def test_a_race_of_six_starts_one_server(state_folder: Path) -> None:
    users = [User(state_folder) for _ in range(6)]
    pids = {user.server_pid() for user in users}
    assert len(pids) == 1
    for user in users:
        user.leave()
    eventually_sync(lambda: not any(map(is_running, pids)))


def test_a_race_of_starts_and_stops_loses_no_write(state_folder: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, str(USER), str(state_folder), "10"]) for _ in range(6)
    ]
    assert [process.wait(timeout=60) for process in processes] == [0] * 6
    with EmbeddedStore(state_folder) as embedded:
        client = connect_sync(embedded.url, role="commands")
        assert client.get("count") == b"60"
        client.close()


def test_a_revived_server_has_its_data_and_its_url(state_folder: Path) -> None:
    with EmbeddedStore(state_folder) as embedded:
        url, pid = embedded.url, server_pid(embedded.url)
        client = connect_sync(url, role="commands")
        client.set("kept", "1")
        os.kill(pid, signal.SIGKILL)
        eventually_sync(lambda: not is_running(pid))
        embedded.revive()
        assert client.get("kept") == b"1"
        client.close()
        assert embedded.url == url
        assert server_pid(url) != pid
        embedded.revive()  # nothing to do


def test_a_long_path_gets_a_short_private_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    with EmbeddedStore(folder) as embedded:
        socket_path = Path(embedded.url.removeprefix("unix://"))
        assert len(os.fsencode(socket_path)) < 100
        assert stat.S_IMODE(socket_path.parent.stat().st_mode) == 0o700
        pid = server_pid(embedded.url)
    eventually_sync(lambda: not is_running(pid))


def test_a_path_may_have_any_characters(tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path / 'a b%20?#"é') as embedded:
        pid = server_pid(embedded.url)
    eventually_sync(lambda: not is_running(pid))


async def test_a_server_that_died_is_started_again(state_folder: Path) -> None:
    """Nobody has to notice: a run or a worker on it goes on."""
    async with EmbeddedStore(state_folder) as embedded:
        client = connect(embedded.url, role="commands")
        await client.set("kept", "1")
        dead = await asyncio.to_thread(server_pid, embedded.url)
        os.kill(dead, signal.SIGKILL)
        await eventually(lambda: not is_running(dead))
        await eventually(embedded.is_alive)
        await eventually(lambda: socket_answers(embedded.url))
        await client.aclose()
        assert await asyncio.to_thread(server_pid, embedded.url) != dead


def socket_answers(url: str) -> bool:
    """Whether the server at `url` answers."""
    client = connect_sync(url, role="commands")
    try:
        return bool(client.ping())
    except RedisError:
        return False
    finally:
        client.close()
