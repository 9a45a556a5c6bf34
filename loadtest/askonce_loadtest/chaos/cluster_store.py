"""A cluster under test: three primaries, each with a replica, that die, stop, swap and hand over.

Clients reach the nodes directly, since a cluster tells them where its nodes are: there are no links
to break, and nodes break instead. Enqueues wait for a replica (`wait_replicas = 1`), as must be for
what shall survive a failover; nothing else does.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import anyio
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from askonce_loadtest.chaos.links import Address
from askonce_loadtest.chaos.plan import MAX_MEMORY, Plan
from askonce_loadtest.chaos.processes import ChaosError
from askonce_loadtest.chaos.schedule import RECIPES, Fault, Recipe
from askonce_loadtest.chaos.store import COMMAND_S, DRIVER, PATIENCE_S, Table
from askonce_loadtest.servers.cluster import Cluster, How
from askonce_loadtest.servers.node import Node
from askonce_loadtest.servers.waiting import ServerFailed
from askonce_queue.durability import HISTORY, unconfirmed
from askonce_queue.shards import shard_tags
from askonce_queue.store_config import StoreConfig
from askonce_queue.topology import hash_tag

T = TypeVar("T")

NODE_TIMEOUT_MS = 1_500
LAST_WRITES_S = 1.0
"""How long before a failover writes may have been lost with the primary that dies."""
WAIT_MS = 2_000
_CONFIRMED = StoreConfig(url="redis://any", wait_replicas=1)
WRITES = frozenset({"XADD", "UNLINK", "DEL", "EVAL"})
"""What the driver has a replica confirm: what it did must not be undone by a failover."""

CLUSTER_RECIPES: Mapping[str, Recipe] = {
    "kill-primary": Recipe("store", (0.2, 2.0), 2, "kill -9 of a primary; its replica takes over"),
    "stop-primary": Recipe("store", (0.5, 4.0), 2, "SIGSTOP of a primary, too short or long enough "
                           "for a failover; then SIGCONT"),
    "kill-replica": Recipe("store", (0.2, 2.0), 1, "kill -9 of a replica: enqueues wait for it"),
    "fail-over": Recipe("store", (0.0, 0.0), 1, "a failover that primary and replica agree on"),
    "take-over": Recipe("store", (0.0, 0.0), 1, "a replica takes over without asking"),
    "move-slot": Recipe("store", (0.0, 0.0), 1, "a shard's slot goes to another primary, by keys"),
    **{
        kind: recipe
        for kind, recipe in RECIPES.items()
        if recipe.target in ("worker", "producer", "model", "data")
    },
}  # fmt: skip
"""Every kind of fault on a cluster."""
FAILOVERS = ("kill-primary", "stop-primary", "fail-over", "take-over", "move-slot")
"""The kinds after which a shard may have lost what no replica had confirmed."""


class ClusterStore:
    """Three primaries and three replicas with AOF. See `StoreUnderTest`."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._plan = plan
        self._tags = shard_tags(plan.shards)
        self._rng = random.Random(f"cluster:{plan.seed}")
        self._turn = anyio.Lock()
        self._owners: dict[str, Node] = {}
        self._clients: dict[str, redis.asyncio.Redis] = {}
        self._rig = Cluster(
            folder,
            node_timeout_ms=NODE_TIMEOUT_MS,
            conf=[
                f"appendfsync {plan.appendfsync}",
                f"maxmemory {MAX_MEMORY}",
                "maxmemory-policy volatile-lfu",
            ],
        )

    @property
    def shards(self) -> int:
        """See `StoreUnderTest`."""
        return self._plan.shards

    @property
    def servers(self) -> Mapping[str, Address]:
        """None that a link could stand before."""
        return {}

    @property
    def faults(self) -> Mapping[str, Callable[[Fault], Awaitable[str]]]:
        """See `StoreUnderTest`."""
        actions: dict[str, Callable[[Fault], Awaitable[str]]] = {
            "kill-primary": self._kill_primary,
            "stop-primary": self._stop_primary,
            "kill-replica": self._kill_replica,
            "fail-over": lambda _: self._fail_over(""),
            "take-over": lambda _: self._fail_over("TAKEOVER"),
            "move-slot": self._move_slot,
        }
        return {kind: partial(self._in_turn, action) for kind, action in actions.items()}

    def table(self, through: Mapping[str, Address] | None = None) -> Table:
        """See `StoreUnderTest`."""
        del through
        first, *others = (f"{host}:{port}" for host, port in map(_address, self._rig.nodes))
        return {
            "url": f"redis://{first}/0",
            "nodes": others,
            "cluster": True,
            "shards": self._plan.shards,
            "wait_replicas": 1,
        }

    async def start(self) -> None:
        """See `StoreUnderTest`."""
        await self._rig.start()

    async def heal(self) -> None:
        """See `StoreUnderTest`."""
        await self._rig.heal()
        self._owners.clear()

    async def close(self) -> None:
        """See `StoreUnderTest`."""
        for client in self._clients.values():
            await client.aclose()
        self._rig.close()

    # The driver's own commands

    async def ask(self, key: bytes, *words: bytes | str | int) -> Any:
        """See `StoreUnderTest`."""
        tag = hash_tag(key)
        return await self._patiently(words[0], lambda: self._ask_owner(tag, *words))

    async def ask_all(self, *words: bytes | str | int) -> list[Any]:
        """See `StoreUnderTest`."""

        async def ask() -> list[Any]:
            replies: list[Any] = []
            for node in await self._rig.primaries():
                reply = await self._send(node, *words)
                replies.append(_of_clients(reply) if words[:2] == ("CLIENT", "LIST") else reply)
            return replies

        return await self._patiently(words[0], ask)

    async def keys(self, pattern: str) -> list[bytes]:
        """See `StoreUnderTest`."""

        async def scan() -> list[bytes]:
            found: dict[bytes, None] = {}
            for node in await self._rig.primaries():
                cursor = b"0"
                while True:
                    words = ("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
                    reply = await self._send(node, *words)
                    cursor, page = reply
                    found.update(dict.fromkeys(page))
                    if cursor == b"0":
                        break
            return list(found)

        return await self._patiently("SCAN", scan)

    async def _patiently(self, what: object, ask: Callable[[], Awaitable[T]]) -> T:
        """Repeat while nodes are down, loading, or not who they were."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await ask()
            except (RedisError, OSError, ServerFailed) as error:
                self._owners.clear()
                if time.monotonic() > deadline:
                    raise ChaosError(f"the store does not answer {what!r}: {error}") from error
                await anyio.sleep(0.2)

    async def _ask_owner(self, tag: str, *words: bytes | str | int) -> Any:
        node = self._owners.get(tag)
        if node is None:
            node = self._owners[tag] = await self._rig.primary_of(tag)
        client = self._client(node)
        if words[0] not in WRITES:
            return await self._send(node, *words)
        async with client.pipeline(transaction=False) as pipe:
            # WAIT may confirm what was thrown away since: see durability.py.
            pipe.execute_command(*HISTORY.words)
            pipe.execute_command(*words)
            pipe.execute_command("WAIT", 1, WAIT_MS)
            pipe.execute_command(*HISTORY.words)
            before, result, confirmed, after = await pipe.execute()
        missing = unconfirmed(confirmed, _CONFIRMED, 1, before=before, after=after)
        if missing:
            raise RedisError(missing)
        return result

    async def _send(self, node: Node, *words: bytes | str | int) -> Any:
        return await cast("Awaitable[Any]", self._client(node).execute_command(*words))

    def _client(self, node: Node) -> redis.asyncio.Redis:
        client = self._clients.get(node.name)
        if client is None:
            client = self._clients[node.name] = redis.asyncio.Redis.from_url(
                node.url,
                protocol=2,
                client_name=DRIVER,
                socket_timeout=COMMAND_S,
                socket_connect_timeout=COMMAND_S,
                retry=Retry(NoBackoff(), 0),
            )
            client.response_callbacks.clear()
        return client

    # Faults. Each begins with a healthy cluster: two failures at once may lose what one may not.

    async def _in_turn(self, action: Callable[[Fault], Awaitable[str]], fault: Fault) -> str:
        async with self._turn:
            return await action(fault)

    async def _some_tag(self) -> str:
        await _done(self._rig.wait_healthy())
        return self._rng.choice(self._tags)

    async def _kill_primary(self, fault: Fault) -> str:
        tag = await self._some_tag()
        killed = await _done(self._rig.kill_primary(tag))
        began = time.monotonic()
        await _done(self._rig.wait_new_primary(tag, killed))
        took_s = time.monotonic() - began
        await asyncio.sleep(fault.for_s)
        await _done(self._rig.rejoin(killed))
        return f"{killed.name} (shard {tag}) killed, replaced after {took_s:.1f} s"

    async def _stop_primary(self, fault: Fault) -> str:
        tag = await self._some_tag()
        node = await _done(self._rig.primary_of(tag))
        node.pause()
        await asyncio.sleep(fault.for_s)
        node.resume()
        await _done(self._rig.wait_healthy())
        now = await _done(self._rig.primary_of(tag))
        outcome = "it still is the primary" if now is node else f"{now.name} has taken over"
        return f"{node.name} (shard {tag}) stopped, and resumed: {outcome}"

    async def _kill_replica(self, fault: Fault) -> str:
        tag = await self._some_tag()
        node = await _done(self._rig.replica_of(tag))
        node.kill()
        await asyncio.sleep(fault.for_s)
        await _done(self._rig.rejoin(node))
        return f"{node.name} (shard {tag}) killed, and started again"

    async def _fail_over(self, how: How) -> str:
        tag = await self._some_tag()
        node = await _done(self._rig.fail_over(tag, how))
        await _done(self._rig.wait_healthy())
        return f"{node.name} is the primary of shard {tag} now"

    async def _move_slot(self, fault: Fault) -> str:
        del fault
        tag = await self._some_tag()
        owner = await _done(self._rig.primary_of(tag))
        others = [node for node in await _done(self._rig.primaries()) if node is not owner]
        target = self._rng.choice(others)
        await _done(self._rig.migrate_slot(tag, target))
        return f"shard {tag} moved from {owner.name} to {target.name}"


def _address(node: Node) -> Address:
    return node.address


def _of_clients(listed: bytes) -> bytes:
    """CLIENT LIST without the nodes' connections to each other."""
    lines = listed.splitlines(keepends=True)
    return b"".join(line for line in lines if b" flags=S" not in line and b" flags=M" not in line)


async def _done(step: Awaitable[T]) -> T:
    """The result of a step of the rig. Raises `ChaosError` when the rig fails."""
    try:
        return await step
    except (ServerFailed, RedisError, OSError, RuntimeError) as error:
        raise ChaosError(str(error).partition("\n")[0]) from error
