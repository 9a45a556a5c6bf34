"""One server: killed, paused, restarted, and always gone in the end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import redis.asyncio
from redis.exceptions import ReadOnlyError
from redis.exceptions import TimeoutError as RedisTimeoutError

from askonce_loadtest.servers.node import Node
from askonce_loadtest.servers.replicated import Replicated
from askonce_loadtest.servers.waiting import ServerFailed
from tests.support.embedded_server import is_running
from tests.support.waiting import eventually_sync

PASSWORD = 'a "quoted\\ one'  # noqa: S105 -- of servers that live for a test


async def test_what_a_killed_server_had_accepted_is_there_again(tmp_path: Path) -> None:
    async with Node(tmp_path / "node", password=PASSWORD) as node:
        async with redis.asyncio.Redis.from_url(node.url) as client:
            await client.set("key", "value")
        url, pid = node.url, node.pid
        node.kill()
        assert not node.running
        await node.start()
        assert node.url == url
        assert node.pid != pid
        async with redis.asyncio.Redis.from_url(node.url) as client:
            assert await client.get("key") == b"value"


async def test_a_paused_server_answers_nothing_until_it_goes_on(tmp_path: Path) -> None:
    async with Node(tmp_path / "node") as node:
        async with redis.asyncio.Redis.from_url(node.url, socket_timeout=0.1) as client:
            await client.set("key", "value")
            node.pause()
            assert (node.running, node.answering) == (True, False)
            with pytest.raises(RedisTimeoutError):
                await client.get("key")
            node.resume()
            assert await client.get("key") == b"value"
        node.pause()
        await node.restart()
        assert await node.command("GET", "key") == "value"


async def test_a_server_that_cannot_run_is_an_error_with_its_log(tmp_path: Path) -> None:
    node = Node(tmp_path / "node", conf=["no-such-option yes"])
    with pytest.raises(ServerFailed, match=r"exit code 1(.|\n)*no-such-option"):
        await node.start()
    assert not node.running


async def test_a_server_that_answers_nobody_is_an_error_in_time(tmp_path: Path) -> None:
    async with Node(tmp_path / "node") as node:
        node.pause()
        with pytest.raises(ServerFailed, match=r"not within 0 s(.|\n)*Ready to accept"):
            await node.wait_ready(timeout_s=0)


async def test_the_server_ends_with_its_block_however_that_ends(tmp_path: Path) -> None:
    pids: list[int] = []

    async def fail() -> None:
        async with Node(tmp_path / "node") as node:
            pids.append(node.pid)
            node.pause()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert not is_running(pids[0])


def test_the_server_ends_with_the_process_that_forgot_it(tmp_path: Path) -> None:
    program = (
        "import asyncio, pathlib, sys\n"
        "from askonce_loadtest.servers.node import Node\n"
        "node = Node(pathlib.Path(sys.argv[1]))\n"
        "asyncio.run(node.start())\n"
        "print(node.pid)\n"
        "raise SystemExit(3)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "node")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stderr) == (3, "")
    eventually_sync(lambda: not is_running(int(ended.stdout)))


async def test_a_port_that_was_taken_in_between_is_replaced(tmp_path: Path) -> None:
    async with Node(tmp_path / "first") as first:
        second = Node(tmp_path / "second")
        second.port = first.port  # as if another process had been quicker
        async with second:
            assert second.port != first.port
            assert await second.command("PING") == "PONG"


async def test_wait_counts_replicas_that_confirm(tmp_path: Path) -> None:
    async with Replicated(tmp_path, password=PASSWORD) as pair:
        async with redis.asyncio.Redis.from_url(pair.primary.url) as client:
            await client.set("key", "1")
            assert await client.wait(1, 5000) == 1
            assert await client.waitaof(1, 1, 5000) == [1, 1]
            pair.replica.pause()
            await client.set("key", "2")
            assert await client.wait(1, 50) == 0
            pair.replica.resume()
            await pair.wait_in_sync()
            assert await client.wait(1, 5000) == 1
        assert await pair.replica.command("GET", "key") == "2"


async def test_after_roles_are_swapped_old_connections_are_refused_writes(tmp_path: Path) -> None:
    async with Replicated(tmp_path) as pair:
        old, new = pair.primary, pair.replica
        async with redis.asyncio.Redis.from_url(old.url) as client:
            await client.set("key", "before")
            await pair.wait_in_sync()
            await pair.swap_roles()
            assert (pair.primary, pair.replica) == (new, old)
            with pytest.raises(ReadOnlyError):
                await client.set("key", "after")
        await new.command("SET", "key", "after")
        old.kill()
        await old.start()  # it knows that it is a replica now
        await pair.wait_in_sync()
        assert await old.command("GET", "key") == "after"
