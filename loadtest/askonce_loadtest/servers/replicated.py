"""One primary and one replica on loopback, without anybody who watches them: for WAIT and WAITAOF.

async with Replicated(folder) as pair:
    pair.replica.pause()      # WAIT now waits in vain
    await pair.swap_roles()   # writes on the old primary's connections are refused: READONLY
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from redis.exceptions import RedisError

from askonce_loadtest.servers.node import Node
from askonce_loadtest.servers.rig import Rig

SYNC_S = 15.0


class Replicated(Rig):
    """A primary and its replica; `user`, `password` and `conf` are as of both `Node`s."""

    def __init__(
        self, folder: Path, *, user: str = "", password: str = "", conf: Sequence[str] = ()
    ) -> None:
        self.primary, self.replica = (
            Node(folder / name, user=user, password=password, conf=conf)
            for name in ("data0", "data1")
        )

    @property
    def nodes(self) -> list[Node]:
        """Both."""
        return [self.primary, self.replica]

    async def start(self) -> None:
        """Start both and wait until they are in sync. Raises `ServerFailed`."""
        await asyncio.gather(*(node.start() for node in self.nodes))
        await self.replica.command("REPLICAOF", *self.primary.address)
        await self.replica.command("CONFIG", "REWRITE")
        await self.wait_in_sync()

    async def wait_in_sync(self, timeout_s: float = SYNC_S) -> None:
        """Wait until the replica has all that the primary has. Raises `ServerFailed`."""
        await self.wait_until(self.lag, "the replica is in sync", timeout_s)

    async def lag(self) -> str:
        """What keeps the two from being in sync; "" if nothing does."""
        try:
            primary, replica = [await node.info("replication") for node in self.nodes]
        except (RedisError, OSError) as error:
            return str(error)
        if (primary["role"], replica["role"]) != ("master", "slave"):
            return f"their roles are {primary['role']} and {replica['role']}"
        if replica["master_link_status"] != "up" or "state=online" not in primary.get("slave0", ""):
            return f"the link is {replica['master_link_status']}: {primary.get('slave0')}"
        behind = int(primary["master_repl_offset"]) - int(replica["slave_repl_offset"])
        return f"the replica is {behind} bytes behind" if behind else ""

    async def swap_roles(self) -> None:
        """Make the replica the primary and the other way round, as an operator would by hand.

        Replication is asynchronous: what was written in the last milliseconds may be lost.
        """
        old, new = self.primary, self.replica
        await new.command("REPLICAOF", "NO", "ONE")
        await old.command("REPLICAOF", *new.address)
        for node in (new, old):
            await node.command("CONFIG", "REWRITE")
        self.primary, self.replica = new, old
        await self.wait_in_sync()
