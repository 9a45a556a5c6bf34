"""What a test must not leave behind: tasks, threads, connections, keys."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator
from typing import cast

import redis.asyncio

from tests.support.waiting import eventually

KNOWN_KEYS = re.compile(
    rb"askonce:meta|(jobs|ids|owed|reply|beat|solo|dead|clients|a|stamp|last|lease|tries|memory|stats)"
    rb":\{\d+\}(:.*)?",
    re.DOTALL,
)
"""Every key of `askonce_queue.names`."""
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


async def assert_no_other_connections(store: redis.asyncio.Redis) -> None:
    """Fail when anyone but `store` is still connected to the server."""
    await store.connection_pool.disconnect()

    async def alone() -> bool:
        return len(cast("list[object]", await store.client_list())) == 1

    await eventually(alone)


async def assert_only_known_keys(store: redis.asyncio.Redis) -> None:
    """Fail when a key is not one of `askonce_queue.names`, or one besides answers has a TTL."""
    keys = [key async for key in cast("AsyncIterator[bytes]", store.scan_iter(count=1000))]
    unknown = [key for key in keys if not KNOWN_KEYS.fullmatch(key)]
    assert not unknown, f"keys that no function in names.py makes: {unknown[:10]}"
    lasting = [key for key in keys if not key.startswith(b"a:")]
    expiring = [key for key in lasting if await store.ttl(key) != -1]
    assert not expiring, f"only answers may have a TTL, not {expiring[:10]}"
