"""What a test must not leave behind: tasks, threads, sockets and child processes; on the server
connections and unknown keys.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self, cast

import redis.asyncio

from askonce_loadtest.chaos.leftovers import KNOWN_KEYS
from askonce_loadtest.servers.node import Node, known_nodes
from askonce_queue.connections import connect_sync
from askonce_queue.scripts import send_sync

POOLED_THREADS = ("asyncio_", "AnyIO worker thread", "ThreadPoolExecutor")
"""Threads that belong to an event loop's executor, and end with the loop."""


def other_tasks() -> list[str]:
    """The unfinished tasks of the running loop, besides the current one."""
    current = asyncio.current_task()
    return [repr(task) for task in asyncio.all_tasks() if task is not current and not task.done()]


def new_threads(before: set[threading.Thread]) -> list[str]:
    """The threads started since `before`, besides pooled ones."""
    return [
        thread.name
        for thread in set(threading.enumerate()) - before
        if not thread.name.startswith(POOLED_THREADS)
    ]


class ProcessState(NamedTuple):
    """What this process has open. Sockets and children are only known where there is a /proc."""

    threads: set[threading.Thread]
    sockets: set[str]
    children: set[int]
    nodes: set[Node]
    """Servers that many tests share: each may restart them."""

    @classmethod
    def now(cls) -> Self:
        return cls(set(threading.enumerate()), _open_sockets(), _child_processes(), known_nodes())

    def new(self) -> list[str]:
        """What has been opened since, and is still there."""
        shared = {node.pid for node in self.nodes & known_nodes() if node.running}
        children = _child_processes() - self.children - shared
        return [
            *(f"thread {name}" for name in new_threads(self.threads)),
            *sorted(_open_sockets() - self.sockets),
            *(f"child process {_command(pid)}" for pid in children),
        ]


def _open_sockets() -> set[str]:
    found: set[str] = set()
    for entry in _entries("/proc/self/fd"):
        with suppress(OSError):  # the one that reads the folder is closed
            found.add(str(entry.readlink()))
    return {target for target in found if target.startswith("socket:")}


def _child_processes() -> set[int]:
    """Children, those that have ended and were not waited for among them."""
    found: set[int] = set()
    for thread in _entries("/proc/self/task"):
        with suppress(OSError):  # a thread may have ended
            found.update(map(int, (thread / "children").read_text().split()))
    return found


def _entries(folder: str) -> list[Path]:
    try:
        return list(Path(folder).iterdir())
    except OSError:
        return []


def _command(pid: int) -> str:
    with suppress(OSError):
        return f"{pid}: {Path(f'/proc/{pid}/cmdline').read_text().replace(chr(0), ' ')[:200]}"
    return str(pid)


def left_on_server(url: str) -> list[str]:
    """Connections of others to the server, and keys that should not be there."""
    client = connect_sync(url, role="commands")
    try:
        connections: list[bytes] = send_sync(client, "CLIENT", "LIST").splitlines()
        own: bytes = b"id=%d " % send_sync(client, "CLIENT", "ID")
        keys = list(cast("Iterable[bytes]", client.scan_iter(count=1000)))
        ttls = {key: send_sync(client, "PTTL", key) for key in keys if not key.startswith(b"a:")}
    finally:
        client.close()
    return [
        *(f"connection {line!r}" for line in connections if not line.startswith(own)),
        *(f"key {key!r}" for key in keys if not KNOWN_KEYS.fullmatch(key)),
        *(f"key with a TTL {key!r}" for key, ttl in ttls.items() if ttl >= 0),
    ]


async def assert_only_known_keys(store: redis.asyncio.Redis) -> None:
    """Fail when a key is not one of `askonce_queue.names`, or one besides answers has a TTL."""
    keys = [key async for key in cast("AsyncIterator[bytes]", store.scan_iter(count=1000))]
    unknown = [key for key in keys if not KNOWN_KEYS.fullmatch(key)]
    assert not unknown, f"keys that no function in names.py makes: {unknown[:10]}"
    lasting = [key for key in keys if not key.startswith(b"a:")]
    expiring = [key for key in lasting if await store.ttl(key) != -1]
    assert not expiring, f"only answers may have a TTL, not {expiring[:10]}"
