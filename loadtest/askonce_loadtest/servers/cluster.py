"""A cluster of real servers on loopback: formed, broken, failed over and healed.

    async with Cluster(folder) as cluster:
        killed = await cluster.kill_primary(tag)  # a replica takes over by itself
        await cluster.wait_new_primary(tag, killed)
        await cluster.rejoin(killed)

Slots are given by number or by hash tag. What a method does is done when it returns, and all nodes
that run agree about it, unless it says otherwise. All waits have deadlines and raise
`ServerFailed`, with the ends of the nodes' logs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

from redis.exceptions import RedisError

from askonce_loadtest.servers.formats import fields_of
from askonce_loadtest.servers.migration import SlotMigration
from askonce_loadtest.servers.node import Node
from askonce_loadtest.servers.rig import Rig
from askonce_loadtest.servers.topology import View, disagreement, read_view
from askonce_loadtest.servers.waiting import ServerFailed
from askonce_queue.shards import SLOTS, slot_of

FORM_S = 20.0
FAIL_OVER_S = 20.0
HEAL_S = 30.0

How = Literal["", "FORCE", "TAKEOVER"]
"""CLUSTER FAILOVER: agreed with the primary, without it, or without anybody."""


class Cluster(Rig):
    """`primaries` × (1 + `replicas_each`) nodes, the slots split evenly over the primaries.

    A primary that does not answer for `node_timeout_ms` is called dead by the others, which takes
    a failover of twice to three times that. With `full_coverage` (the server's default, not ours)
    one dead primary makes all nodes refuse (CLUSTERDOWN) until its replica has taken over. `user`,
    `password` and `conf` are as of every `Node`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        primaries: int = 3,
        replicas_each: int = 1,
        node_timeout_ms: int = 1500,
        full_coverage: bool = False,
        user: str = "",
        password: str = "",
        conf: Sequence[str] = (),
    ) -> None:
        self._primaries = primaries
        self._replicas_each = replicas_each
        self._ids: dict[str, Node] = {}
        lines = [
            "cluster-enabled yes",
            f"cluster-node-timeout {node_timeout_ms}",
            f"cluster-require-full-coverage {'yes' if full_coverage else 'no'}",
            # Replicas stay where they are put, or tests could not foretell who takes over.
            "cluster-allow-replica-migration no",
            *conf,
        ]
        self._nodes = [
            Node(folder / f"node{number}", user=user, password=password, conf=lines)
            for number in range(primaries * (1 + replicas_each))
        ]

    @property
    def nodes(self) -> list[Node]:
        """All nodes, primaries first as they were at the start."""
        return self._nodes

    # Start

    async def start(self) -> None:
        """Start the nodes and form the cluster. Raises `ServerFailed`."""
        await asyncio.gather(*(node.start() for node in self.nodes))
        ids = await asyncio.gather(*(node.command("CLUSTER", "MYID") for node in self.nodes))
        self._ids = dict(zip(ids, self.nodes, strict=True))
        await asyncio.gather(*(self._prepare(number) for number in range(len(self.nodes))))
        replicas = enumerate(ids[self._primaries :])
        await asyncio.gather(
            *(self._replicate(node_id, ids[at % self._primaries]) for at, node_id in replicas)
        )
        await self.wait_healthy(FORM_S)

    async def _prepare(self, number: int) -> None:
        """Give a node its slots and an epoch of its own, and introduce it to those before it."""
        node = self.nodes[number]
        await node.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        if number < self._primaries:
            first, last = (SLOTS * at // self._primaries for at in (number, number + 1))
            await node.command("CLUSTER", "ADDSLOTSRANGE", first, last - 1)
        for other in self.nodes[:number]:
            await node.command("CLUSTER", "MEET", *other.address)

    async def _replicate(self, replica_id: str, primary_id: str) -> None:
        replica = self._ids[replica_id]

        async def missing() -> str:
            try:
                await replica.command("CLUSTER", "REPLICATE", primary_id)
            except RedisError as error:  # it has not heard of the primary yet
                return str(error)
            return ""

        await self.wait_until(missing, "a replica joins", FORM_S)

    # Who is who

    @property
    def urls(self) -> list[str]:
        """URLs of all nodes; any of them is a place for a client to start."""
        return [node.url for node in self.nodes]

    async def primary_of(self, where: int | str) -> Node:
        """The primary of a slot, dead or alive, by the newest claim that nodes have heard of.

        Raises `ServerFailed` when nobody has heard of one.
        """
        slot = _slot(where)
        views = await self._views()
        members = [member for view in views.values() for member in view.members.values()]
        claims = [member for member in members if member.owns(slot)]
        if not claims:
            raise ServerFailed(f"slot {slot} has no primary, by the nodes {sorted(views)}")
        return self._ids[max(claims, key=lambda member: member.epoch).node_id]

    async def replica_of(self, where: int | str) -> Node:
        """A replica, that answers, of the primary of a slot. Raises `ServerFailed`."""
        primary = await self.primary_of(where)
        for view in (await self._views()).values():
            if self._ids.get(view.me.primary_id) is primary:
                return self._ids[view.me.node_id]
        raise ServerFailed(f"{primary.name} has no replica that answers")

    async def primaries(self) -> list[Node]:
        """The nodes that answer and have slots."""
        views = (await self._views()).values()
        return [self._ids[view.me.node_id] for view in views if view.me.slots]

    async def _views(self) -> dict[str, View]:
        """What every node says that runs, is not paused, and answers."""

        async def view(node: Node) -> tuple[str, View] | None:
            try:
                return node.name, read_view(await node.command("CLUSTER", "NODES"))
            except (RedisError, OSError):
                return None

        answering = [view(node) for node in self.nodes if node.answering]
        return dict(found for found in await asyncio.gather(*answering) if found is not None)

    # What breaks it

    async def kill_primary(self, where: int | str) -> Node:
        """Kill −9 the primary of a slot and return it, at once: nothing has failed over yet."""
        primary = await self.primary_of(where)
        primary.kill()
        return primary

    async def wait_new_primary(
        self, where: int | str, old: Node, timeout_s: float = FAIL_OVER_S
    ) -> Node:
        """Wait until all nodes that answer see another primary than `old` for a slot; return it."""
        slot = _slot(where)
        old_id = next(node_id for node_id, node in self._ids.items() if node is old)

        async def missing() -> str:
            views = await self._views()
            if not views:
                return "no node answers"
            for name, view in views.items():
                owner = next((m.node_id for m in view.members.values() if m.owns(slot)), old_id)
                if owner == old_id or self._ids[owner].name not in views:
                    return f"{name} sees {self._ids[owner].name} as the primary of slot {slot}"
                if not views[self._ids[owner].name].me.is_primary:
                    return f"{self._ids[owner].name} does not know yet"
            return ""

        await self.wait_until(missing, f"a replica of {old.name} takes over", timeout_s)
        return await self.primary_of(slot)

    async def fail_over(self, where: int | str, how: How = "") -> Node:
        """Have a replica take over a slot from its primary; return the new primary.

        An agreed failover loses no write; the others may, and need no primary that answers.
        """
        old, replica = await self.primary_of(where), await self.replica_of(where)
        await replica.command("CLUSTER", "FAILOVER", *([how] if how else []))
        return await self.wait_new_primary(where, old)

    @asynccontextmanager
    async def migrating(self, where: int | str, to: Node) -> AsyncGenerator[SlotMigration]:
        """Open a slot for migration to the primary `to`; at the end of the block, unless it was
        finished, the slot and what was moved of it go back.

        While it is open, the source answers ASK for keys that are not there (any more).
        """
        source = await self.primary_of(where)
        ids = {node: node_id for node_id, node in self._ids.items()}
        migration = SlotMigration(_slot(where), source, to, ids[source], ids[to])
        await migration.begin()
        try:
            yield migration
        finally:
            if not migration.finished:
                await migration.abandon()

    async def migrate_slot(self, where: int | str, to: Node) -> None:
        """Move a slot with all its keys to the primary `to`."""
        async with self.migrating(where, to) as migration:
            await migration.move()
            await migration.finish()
        await self.wait_healthy()

    async def announce(self, node: Node, port: int) -> None:
        """Have clients sent to `port` in place of the node's own: a proxy, or TLS. 0: no more.

        The nodes themselves go on to use their own ports. Needs Valkey 9.
        """
        await node.command("CONFIG", "SET", "cluster-announce-client-port", port)
        node_id = next(node_id for node_id, one in self._ids.items() if one is node)

        async def missing() -> str:
            for name, view in (await self._views()).items():
                if view.members[node_id].port != (port or node.port):
                    return f"{name} has not heard"
            return ""

        await self.wait_until(missing, f"{node.name} is known by port {port}", FORM_S)

    # What mends it

    async def rejoin(self, node: Node) -> None:
        """Start a node again that was killed, and wait until the whole cluster is healthy."""
        await node.start()
        await self.wait_healthy()

    async def heal(self) -> None:
        """Wake what is paused, start what is dead, close open slots, and wait until healthy."""
        await self.wake()
        for view in (await self._views()).values():
            if view.me.is_primary:  # and its replicas follow
                for slot in view.me.moving:
                    node = self._ids[view.me.node_id]
                    await node.command("CLUSTER", "SETSLOT", slot, "STABLE")
        await self.wait_healthy()

    async def wait_healthy(self, timeout_s: float = HEAL_S) -> None:
        """Wait until every node runs, all agree, and all replicas are in sync."""
        await self.wait_until(self._sickness, "the cluster is healthy", timeout_s)

    async def _sickness(self) -> str:
        """What keeps the cluster from being healthy; "" if nothing does."""
        views = await self._views()
        if silent := [node.name for node in self.nodes if node.name not in views]:
            return f"no answer from {', '.join(silent)}"
        wrong = disagreement(views, primaries=self._primaries, replicas_each=self._replicas_each)
        if wrong:
            return wrong
        try:
            found = await asyncio.gather(*(self._trouble(node) for node in self.nodes))
        except (RedisError, OSError) as error:
            return str(error)
        return next(filter(None, found), "")

    async def _trouble(self, node: Node) -> str:
        """Why a node cannot serve, or is not in sync. Raises redis-py's errors."""
        state = fields_of(await node.command("CLUSTER", "INFO"))["cluster_state"]
        if state != "ok":
            return f"{node.name} says cluster_state:{state}"
        info = await node.info("replication")
        if info["role"] == "slave":
            link = info["master_link_status"]
            return "" if link == "up" else f"{node.name} is not linked to its primary: {link}"
        online = sum("state=online" in value for value in info.values())
        return "" if online == self._replicas_each else f"{node.name} has {online} replicas in sync"

    async def flush(self) -> None:
        """Delete all keys."""
        await asyncio.gather(*(node.command("FLUSHALL") for node in await self.primaries()))


def _slot(where: int | str) -> int:
    return where if isinstance(where, int) else slot_of(where)
