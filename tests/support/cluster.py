"""Fixtures of one cluster that many tests share: healthy and empty when each of them begins.

A conftest.py of the tests that want it imports all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import redis.asyncio

from askonce_loadtest.servers.cluster import Cluster
from askonce_loadtest.servers.node import Node
from tests.support.leaks import assert_only_known_keys
from tests.support.waiting import eventually


@pytest.fixture(scope="session")
def session_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three primaries with a replica each. Tests ask for `cluster`, which mends what broke."""
    started = Cluster(tmp_path_factory.mktemp("cluster"), node_timeout_ms=1000)
    try:
        # Its nodes belong to no event loop: every test has its own.
        asyncio.run(started.start())
        yield started
    finally:
        started.close()


@pytest.fixture
async def cluster(session_cluster: Cluster) -> Cluster:
    """The shared cluster, healed after the tests before, and without keys."""
    await session_cluster.heal()
    await session_cluster.flush()
    return session_cluster


@pytest.fixture
async def store_cluster(cluster: Cluster) -> AsyncIterator[Cluster]:
    """`cluster` for tests of askonce itself: they may leave only known keys, and no connections."""
    yield cluster
    await cluster.heal()
    for node in cluster.nodes:
        await assert_nobody_connected(node)
    for node in await cluster.primaries():
        async with redis.asyncio.Redis.from_url(node.url, protocol=2) as client:
            await assert_only_known_keys(client)


async def assert_nobody_connected(node: Node) -> None:
    """Fail when clients are still connected to a node; its links to other nodes are none."""

    async def others() -> list[str]:
        listed = str(await node.command("CLIENT", "LIST", "TYPE", "normal"))
        # A node that has moved keys to this one stays connected for ten seconds.
        clients = [line for line in listed.splitlines() if " cmd=restore-asking " not in line]
        return [line for line in clients if " cmd=client|list " not in line]

    async def alone() -> bool:
        return not await others()

    try:
        await eventually(alone)
    except AssertionError:
        pytest.fail(f"still connected to {node}: {await others()}")
