"""The users of `deploy/redis/users.acl`: each can do all of its work, and needs all that it may do.

The rules are exact in both directions: what is granted is compared with what was used.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import redis.asyncio
from redis.exceptions import AuthenticationError, NoPermissionError

from askonce_loadtest.servers.node import Node
from askonce_loadtest.servers.replicated import Replicated
from askonce_queue import Client, Job, answer_scripts, names, queue_scripts
from askonce_queue import sync as queue_sync
from askonce_queue.answer_scripts import Release
from askonce_queue.queue_scripts import Lane
from askonce_queue.scripts import Call
from askonce_queue.store import Store
from askonce_worker.dead_letters import BATCH, DeadLetters, Wanted
from askonce_worker.library import AnswerCache
from tests.support.acl import (
    ADMIN,
    FILE,
    PASSWORD,
    REPLICA,
    SENTINEL,
    Grants,
    Recorder,
    conf_with_users,
    denials,
    read_rules,
    store_of,
)
from tests.support.askonce_command import CONFIG, Askonce
from tests.support.queue_worker import EchoModel, echo_worker
from tests.support.waiting import eventually

RULES = read_rules(FILE.read_text())
PRODUCER, WORKER, GATEWAY = "askonce-producer", "askonce-worker", "askonce-gateway"
AUTOSCALER, OPERATOR = "askonce-autoscaler", "askonce-operator"
ROLES = (PRODUCER, WORKER, GATEWAY, AUTOSCALER, OPERATOR)
ONLY_IN_A_CLUSTER = {("", "cluster|slots"), ("", "asking")}
"""See tests/cluster/test_acl_topologies.py."""
LANE = Lane("0", "default", "interactive")
X = b"x" * 32
TOKEN, OTHER = b"0123456789abcdef", b"fedcba9876543210"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicated]:
    """A primary with the users of the file, and a replica that reads from it as one of them."""
    folder = tmp_path_factory.mktemp("acl")
    conf = [*conf_with_users(folder), "maxmemory 256mb", "maxmemory-policy volatile-lfu"]
    pair = Replicated(folder, user=ADMIN, password=PASSWORD, conf=conf)
    try:
        asyncio.run(pair.start())
        yield pair
    finally:
        pair.close()


@pytest.fixture
async def node(servers: Replicated) -> AsyncIterator[Node]:
    """The primary, empty and without denials."""
    await servers.primary.command("FLUSHALL")
    await servers.primary.command("ACL", "LOG", "RESET")
    yield servers.primary


async def test_every_role_can_do_its_work_and_needs_all_it_may_do(
    node: Node, tmp_path: Path
) -> None:
    patterns = {pattern for grants in RULES.values() for pattern, _ in grants}
    recorder = Recorder(node, patterns)
    async with recorder.watching():
        async with recorder.phase(PRODUCER):
            await produce(node)
        await disturb(node)
        async with recorder.phase(WORKER):
            await serve(node)
        async with recorder.phase(OPERATOR):
            await operate(node, tmp_path)
        await spoil_answers(node)
        async with recorder.phase(PRODUCER):
            await ask_again(node)
    assert await denials([node]) == []
    for role in ROLES:
        assert recorder.used[role] == RULES[role] - ONLY_IN_A_CLUSTER, role
