"""The ACL rules of `deploy/redis`: read, loaded into servers, and compared with what is done."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from redis.asyncio import Connection

from askonce_loadtest.servers.node import Node
from askonce_loadtest.servers.ports import HOST
from askonce_queue.store_config import StoreConfig
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "redis" / "users.acl"
DOCUMENTATION = ROOT / "docs" / "ACL.md"
PRODUCER = "askonce-producer"
WORKER = "askonce-worker"
GATEWAY = "askonce-gateway"
AUTOSCALER = "askonce-autoscaler"
OPERATOR = "askonce-operator"
ROLES = (PRODUCER, WORKER, GATEWAY, AUTOSCALER, OPERATOR)
ADMIN = "askonce-admin"
REPLICA = "askonce-replica"
SENTINEL = "askonce-sentinel"
PASSWORD = "of all users"  # noqa: S105 -- of servers that live for a test

Grants = frozenset[tuple[str, str]]
"""Pairs of a key pattern, "" for none, and a command that may be used on such keys."""

_SELECTOR = re.compile(r"\(([^)]*)\)")
_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"')
_CONTAINERS = {"acl", "client", "cluster", "config", "memory", "script", "xgroup", "xinfo"}
_ALL_KEYS = {"del", "exists", "mget", "unlink"}
_SCRIPTS = {"eval", "evalsha"}
_OPEN_TO_ALL = {"auth", "hello"}


def read_rules(text: str) -> dict[str, Grants]:
    """What an ACL file grants: user → pairs. Users with no `+…` at all have none."""
    return {line.split()[1]: _grants(line) for line in text.splitlines() if line.strip()}


def _grants(line: str) -> Grants:
    found: set[tuple[str, str]] = set()
    for part in (_SELECTOR.sub("", line), *_SELECTOR.findall(line)):
        words = part.split()
        patterns = [word[1:] for word in words if word.startswith("~")] or [""]
        commands = [word[1:] for word in words if word.startswith("+")]
        found |= {(pattern, command) for pattern in patterns for command in commands}
    return frozenset(found)


def users_of(text: str) -> list[str]:
    """The users that an ACL file defines, beside the default one."""
    return [line.split()[1] for line in text.splitlines() if line and "default" not in line]


def conf_with_users(folder: Path) -> list[str]:
    """Configuration lines of a server with the users of `FILE`, all of them with `PASSWORD`.

    They get it in the way that the documentation tells its readers.
    """
    path = folder / "users.acl"
    path.write_text(FILE.read_text())
    (function,) = re.findall(r"(?ms)^set_password\(\) \{$.*?^\}$", DOCUMENTATION.read_text())
    calls = [f'set_password {user} "$PASSWORD"' for user in users_of(path.read_text())]
    subprocess.run(
        ["/bin/sh", "-euc", "\n".join([function, *calls])],
        cwd=folder,
        env=os.environ | {"PASSWORD": PASSWORD},
        check=True,
    )
    return [f'aclfile "{path}"', f"masteruser {REPLICA}"]


def store_of(node: Node, user: str, **options: Any) -> StoreConfig:
    """The store at `node` for a user."""
    return StoreConfig(url=node.url_of(user, PASSWORD), **options)


async def denials(node: Node) -> list[str]:
    """Everything that users were refused: who, and which command or key."""
    found: list[str] = []
    for entry in await node.command("ACL", "LOG"):
        fields = dict(zip(entry[::2], entry[1::2], strict=True))
        found.append(f"{fields['username']}: {fields['reason']} {fields['object']}")
    return found


class Recorder:
    """Watches what is done on a server, commands in scripts included, user by user."""

    def __init__(self, node: Node, patterns: Iterable[str]) -> None:
        self.used: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
        self._node = node
        self._patterns = {
            pattern: re.compile(re.escape(pattern).replace(r"\*", ".*"), re.DOTALL)
            for pattern in patterns
            if pattern not in ("", "*")
        }
        self._lines: list[str] = []
        self._marks = 0

    @asynccontextmanager
    async def watching(self) -> AsyncGenerator[None]:
        """Watch for the length of a block."""
        connection = Connection(
            host=HOST,
            port=self._node.port,
            username=self._node.user,
            password=self._node.password,
            protocol=2,
            decode_responses=True,
            encoding="latin-1",
            socket_timeout=None,  # there may be nothing to watch for a long time
        )
        await connection.connect()
        await connection.send_command("MONITOR")
        await connection.read_response()
        reading = asyncio.create_task(self._read(connection))
        try:
            yield
        finally:
            reading.cancel()
            await asyncio.wait([reading])
            await connection.disconnect()

    @asynccontextmanager
    async def phase(self, user: str) -> AsyncGenerator[None]:
        """What is done during this block is done by `user` alone."""
        first = await self._mark()
        yield
        last = await self._mark()
        for line in self._lines[first + 1 : last]:
            if words := _WORD.findall(line):
                self.used[user] |= self._grants(words)

    async def _read(self, connection: Connection) -> None:
        while True:
            self._lines.append(cast("str", await connection.read_response()))

    async def _mark(self) -> int:
        """The place in the record of a mark that is set now."""
        self._marks += 1
        mark, start = f"mark {self._marks}", len(self._lines)
        await self._node.command("ECHO", mark)

        def places() -> list[int]:
            lines = enumerate(self._lines[start:], start)
            return [at for at, line in lines if line.endswith(f'"ECHO" "{mark}"')]

        return (await eventually(places))[0]

    def _grants(self, words: Sequence[str]) -> set[tuple[str, str]]:
        command = words[0].lower()
        if command in _CONTAINERS:
            command = f"{command}|{words[1].lower()}"
        commands = (_SCRIPTS if command in _SCRIPTS else {command}) - _OPEN_TO_ALL
        patterns = {self._pattern(key) for key in _keys(words)} or {""}
        return {(pattern, name) for pattern in patterns for name in commands}

    def _pattern(self, key: str) -> str:
        return next((p for p, regex in self._patterns.items() if regex.fullmatch(key)), "")


def _keys(words: Sequence[str]) -> Sequence[str]:
    """The keys of a command."""
    name = words[0].lower()
    if name in _SCRIPTS:
        return words[3 : 3 + int(words[2])]
    if name in _ALL_KEYS:
        return words[1:]
    if name in {"xread", "xreadgroup"}:
        streams = words[[word.upper() for word in words].index("STREAMS") + 1 :]
        return streams[: len(streams) // 2]
    if name in {"memory", "xgroup", "xinfo"}:
        return words[2:3]
    return words[1:2]
