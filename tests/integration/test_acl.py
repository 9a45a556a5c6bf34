"""The users of `deploy/redis/users.acl`: each can do all of its work, and needs all that it may do.

The rules are exact in both directions: what is granted is compared with what was used.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis.asyncio
from redis.exceptions import AuthenticationError, ResponseError

from askonce_loadtest.servers.node import Node
from askonce_loadtest.servers.replicated import Replicated
from askonce_queue import names
from tests.support import acl_work
from tests.support.acl import (
    ADMIN,
    AUTOSCALER,
    DOCUMENTATION,
    FILE,
    GATEWAY,
    OPERATOR,
    PASSWORD,
    PRODUCER,
    ROLES,
    WORKER,
    Grants,
    Recorder,
    conf_with_users,
    denials,
    read_rules,
    users_of,
)

RULES = read_rules(FILE.read_text())
CONNECTION: Grants = frozenset(
    ("", command) for command in ("ping", "client|setinfo", "cluster|slots", "asking")
)
"""Granted to all, whether their part of askonce happens to use them in this topology or not."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicated]:
    """A primary with the users of the file, and a replica that is one of them to it."""
    folder = tmp_path_factory.mktemp("acl")
    conf = [*conf_with_users(folder), "maxmemory 256mb", "maxmemory-policy volatile-lfu"]
    pair = Replicated(folder, user=ADMIN, password=PASSWORD, conf=conf)
    try:
        asyncio.run(pair.start())
        yield pair
    finally:
        pair.close()


@pytest.fixture
async def node(servers: Replicated) -> Node:
    """The primary, empty, where nothing was denied yet."""
    await servers.primary.command("FLUSHALL")
    await servers.primary.command("ACL", "LOG", "RESET")
    return servers.primary


async def test_every_role_can_do_its_work_and_needs_all_it_may_do(
    node: Node, servers: Replicated, tmp_path: Path
) -> None:
    recorder = Recorder(node, {pattern for grants in RULES.values() for pattern, _ in grants})
    async with recorder.watching():
        async with recorder.phase(PRODUCER):
            await acl_work.produce(node)
        await acl_work.prepare_work(node)
        async with recorder.phase(WORKER):
            await acl_work.serve(node, servers.replica)
        async with recorder.phase(GATEWAY):
            await acl_work.share(node)
        await acl_work.prepare_letters(node)
        async with recorder.phase(OPERATOR):
            await acl_work.operate(node, tmp_path)
        async with recorder.phase(AUTOSCALER):
            await acl_work.scale(node)
        await acl_work.prepare_again(node)
        async with recorder.phase(PRODUCER):
            await acl_work.produce_synchronously(node, "four")
        async with recorder.phase(WORKER):
            await acl_work.serve_again(node)
        async with recorder.phase(GATEWAY):
            await acl_work.share(node)
        async with recorder.phase(PRODUCER):
            await acl_work.collect(node)
    assert await denials(node) == []
    for role in ROLES:
        assert recorder.used[role] | CONNECTION == RULES[role], role


REFUSED: dict[str, list[tuple[str, ...]]] = {
    PRODUCER: [
        ("XREADGROUP", "GROUP", "workers", "me", "STREAMS", "jobs:{0}:default:bulk", ">"),
        ("XREAD", "STREAMS", "jobs:{0}:default:interactive", "0"),
        ("XREAD", "STREAMS", "reply:{0}:me", "jobs:{0}:default:interactive", "0", "0"),
        ("XDEL", "jobs:{0}:default:interactive", "1-1"),
        ("XACK", "jobs:{0}:default:interactive", "workers", "1-1"),
        ("DEL", "jobs:{0}:default:interactive"),
        ("XADD", "reply:{0}:me", "*", "n", "1"),
        ("SET", "a:{0}:key", "answer"),
        ("MGET", "a:{0}:key"),
        ("SCAN", "0"),
        ("HSET", "lease:{0}", "key", "mine"),
        ("HSET", "stamp:{0}", "inv", "0"),
        ("HSET", "askonce:meta", "shards", "9"),
        ("HGETALL", "clients:{0}"),
        ("XRANGE", "dead:{0}:default", "-", "+"),
        ("EVAL", "return redis.call('GET', KEYS[1])", "1", "a:{0}:key"),
        ("EVAL", "return redis.call('XTRIM', KEYS[1], 'MAXLEN', 0)", "1", "jobs:{0}:p:bulk"),
    ],
    WORKER: [
        ("XREAD", "STREAMS", "reply:{0}:shop", "0"),
        ("XTRIM", "jobs:{0}:default:interactive", "MAXLEN", "0"),
        ("UNLINK", "jobs:{0}:default:interactive"),
        ("XGROUP", "DESTROY", "jobs:{0}:default:interactive", "workers"),
        ("XRANGE", "dead:{0}:default", "-", "+"),
        ("HSET", "askonce:meta", "shards", "9"),
        ("ZADD", "last:{0}", "1", "tag"),
        ("SLOWLOG", "GET"),
        ("SCAN", "0"),
    ],
    GATEWAY: [
        ("XRANGE", "jobs:{0}:default:interactive", "-", "+"),
        ("XADD", "jobs:{0}:default:interactive", "*", "v", "1"),
        ("XREAD", "STREAMS", "reply:{0}:shop", "0"),
        ("HGETALL", "lease:{0}"),
        ("SCAN", "0"),
        ("EVAL", "return redis.call('XLEN', KEYS[1])", "1", "jobs:{0}:default:bulk"),
    ],
    AUTOSCALER: [
        ("XRANGE", "jobs:{0}:default:interactive", "-", "+"),
        ("XREAD", "STREAMS", "jobs:{0}:default:interactive", "0"),
        ("XINFO", "STREAM", "jobs:{0}:default:interactive"),  # shows the first and the last job
        ("XINFO", "CONSUMERS", "jobs:{0}:default:interactive", "workers"),
        ("XLEN", "dead:{0}:default"),
        ("XADD", "jobs:{0}:default:interactive", "*", "v", "1"),
        ("HGETALL", "stats:{0}"),
        ("EVAL", "return 1", "0"),
        ("SCAN", "0"),
    ],
    OPERATOR: [
        ("MGET", "a:{0}:key"),
        ("SET", "a:{0}:key", "answer"),
        ("XREAD", "STREAMS", "reply:{0}:shop", "0"),
        ("XDEL", "jobs:{0}:default:interactive", "1-1"),
        ("HSET", "askonce:meta", "shards", "9"),
    ],
}
"""What belongs to other roles."""
REFUSED_TO_ALL: list[tuple[str, ...]] = [
    ("FLUSHALL",),
    ("FLUSHDB",),
    ("KEYS", "*"),
    ("CONFIG", "GET", "requirepass"),
    ("CONFIG", "SET", "maxmemory", "1"),
    ("ACL", "WHOAMI"),
    ("ACL", "SETUSER", "me", "on"),
    ("CLIENT", "KILL", "TYPE", "normal"),
    ("CLIENT", "LIST"),
    ("SCRIPT", "FLUSH"),
    ("SCRIPT", "KILL"),
    ("FUNCTION", "FLUSH"),
    ("MONITOR",),
    ("SHUTDOWN", "NOSAVE"),
    ("REPLICAOF", "NO", "ONE"),
    ("CLUSTER", "RESET"),
    ("SELECT", "1"),
    ("SUBSCRIBE", "channel"),
    ("PUBLISH", "channel", "message"),
    ("MULTI",),
    ("DUMP", "a:{0}:key"),
    ("TYPE", "jobs:{0}:default:interactive"),
    ("SET", "somebody:else", "value"),
    ("GET", "somebody:else"),
]


@pytest.mark.parametrize("role", ROLES)
async def test_no_role_can_do_what_belongs_to_others(node: Node, role: str) -> None:
    await node.command("XADD", "jobs:{0}:default:interactive", "*", "p", "a job")
    async with redis.asyncio.Redis.from_url(node.url_of(role, PASSWORD), protocol=2) as client:
        for words in [*REFUSED_TO_ALL, *REFUSED[role]]:
            with pytest.raises(ResponseError, match="permissions"):
                await client.execute_command(*words)
    assert await node.command("DBSIZE") == 1


async def test_nobody_does_anything_without_logging_in(node: Node) -> None:
    strangers = [("", ""), ("default", "default"), (PRODUCER, "guessed"), ("nobody", PASSWORD)]
    for user, password in strangers:
        async with redis.asyncio.Redis.from_url(node.url_of(user, password)) as client:
            with pytest.raises(AuthenticationError):
                await client.ping()


def test_the_file_has_no_passwords_and_no_open_door() -> None:
    """Nor anything else that only the server would notice: it takes no comments."""
    lines = [line for line in FILE.read_text().splitlines() if line]
    assert lines[0] == "user default off"
    assert all(re.fullmatch(r"user askonce-[a-z]+ on [^#<>]*", line) for line in lines[1:])
    assert not any("nopass" in line for line in lines)
    everything = [line for line in lines if re.search(r"[+~&]@?(all|\*)( |$)", line)]
    assert everything == [f"user {ADMIN} on ~* &* +@all"]


def test_the_rules_cover_every_key_there_is() -> None:
    kinds = re.findall(r"^\| `(\S+?):", str(names.__doc__), re.MULTILINE)
    patterns = {pattern for role in ROLES for pattern, _ in RULES[role]} - {""}
    assert {pattern.split(":")[0] for pattern in patterns} == set(kinds)


def test_the_documentation_says_what_the_file_says() -> None:
    text = DOCUMENTATION.read_text()
    for role in ROLES:
        section = re.split(r"\n##+ ", text.partition(f"\n### `{role}`\n")[2])[0]
        rows = re.findall(r"^\| (.+?) \| (`.+) \|$", section.replace("\\|", "/"), re.MULTILINE)
        documented = {
            (pattern, command.replace("/", "|"))
            for keys, commands in rows
            for pattern in re.findall(r"`(.+?)`", keys) or [""]
            for command in re.findall(r"`(.+?)`", commands)
        }
        assert documented == RULES[role], role
    users = re.findall(r"^\| `(askonce-\w+)` \|", text, re.MULTILINE)
    assert set(users) == set(users_of(FILE.read_text()))
