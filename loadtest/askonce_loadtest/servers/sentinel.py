"""A primary, a replica and three sentinels on loopback: who dies is replaced, and clients are told.

    async with SentinelSet(folder) as rig:
        client = redis.asyncio.Sentinel(rig.addresses).master_for(rig.name)
        killed = await rig.kill_primary()
        await rig.wait_new_primary(killed)

All waits have deadlines and raise `ServerFailed`, with the ends of the servers' logs.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from pathlib import Path

from redis.exceptions import RedisError

from askonce_loadtest.servers.formats import quoted
from askonce_loadtest.servers.node import Node
from askonce_loadtest.servers.replicated import Replicated
from askonce_loadtest.servers.rig import Rig
from askonce_loadtest.servers.waiting import ServerFailed

NAME = "askonce"
SENTINELS = 3
QUORUM = 2
FAIL_OVER_S = 20.0
HEAL_S = 30.0
_QUICK = (
    *("info-period", "200", "ask-period", "200"),
    # In a failover the servers' state is read every second; a replica whose state is older than
    # five of these periods is not promoted.
    *("ping-period", "500"),
    # The leader learns of a promotion within a second. Others must not undo it before, and they
    # wait for four of these periods until they turn an unexpected primary back into a replica.
    *("publish-period", "500"),
    *("min-link-reconnect-period", "1000", "slave-reconf-timeout", "2000"),
)
"""How often sentinels look, ms: with their own periods (up to 10 s) every step would take long."""


class SentinelSet(Rig):
    """Two data nodes under the name `name`, and their sentinels.

    `user`, `password` and `conf` are as of the data `Node`s; sentinels log in there as `watcher`,
    or the default user, with the same password. `sentinel_password` is that of the sentinels
    themselves. A primary that does not answer for `down_after_ms` is replaced.
    """

    def __init__(
        self,
        folder: Path,
        *,
        user: str = "",
        password: str = "",
        watcher: str = "",
        sentinel_password: str = "",
        down_after_ms: int = 1000,
        conf: Sequence[str] = (),
    ) -> None:
        self.name = NAME
        self.data = Replicated(folder, user=user, password=password, conf=conf)
        self._data_nodes = self.data.nodes
        self._password = password
        self._watcher = watcher
        self._down_after_ms = down_after_ms
        self._ids = [secrets.token_hex(20) for _ in range(SENTINELS)]
        self.sentinels = [
            Node(folder / f"sentinel{number}", kind="sentinel", password=sentinel_password)
            for number in range(SENTINELS)
        ]

    @property
    def nodes(self) -> list[Node]:
        """All five processes."""
        return [*self._data_nodes, *self.sentinels]

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each sentinel."""
        return [sentinel.address for sentinel in self.sentinels]

    # Start and end

    async def start(self) -> None:
        """Start all and wait until the sentinels know each other. Raises `ServerFailed`."""
        await self.data.start()
        for number, sentinel in enumerate(self.sentinels):
            sentinel.add_conf(self._monitoring(number))
        await asyncio.gather(*(sentinel.start() for sentinel in self.sentinels))
        await asyncio.gather(
            *(sentinel.command("SENTINEL", "DEBUG", *_QUICK) for sentinel in self.sentinels)
        )
        await self.wait_healthy()

    def _monitoring(self, number: int) -> list[str]:
        """A sentinel's configuration, as if it had met all the others before."""
        lines = [
            f"sentinel myid {self._ids[number]}",
            f"sentinel monitor {NAME} {' '.join(map(str, self.data.primary.address))} {QUORUM}",
            f"sentinel down-after-milliseconds {NAME} {self._down_after_ms}",
            # Also how long they wait before they try again when votes were split.
            f"sentinel failover-timeout {NAME} 2000",
        ]
        if self._watcher:
            lines.append(f"sentinel auth-user {NAME} {self._watcher}")
        if self._password:
            lines.append(f"sentinel auth-pass {NAME} {quoted(self._password)}")
        return lines

    # Who is who

    async def primary(self) -> Node:
        """The node that most sentinels announce. Raises `ServerFailed` when no majority does."""
        announced = list((await self._announced()).values())
        for node in self._data_nodes:
            if 2 * announced.count(node.port) > SENTINELS:
                return node
        raise ServerFailed(f"the sentinels announce no primary together: {announced}")

    async def replica(self) -> Node:
        """The other one, whatever its state."""
        primary = await self.primary()
        return next(node for node in self._data_nodes if node is not primary)

    async def _announced(self) -> dict[str, int]:
        """What each sentinel that answers tells clients: its name → the primary's port."""
        found: dict[str, int] = {}
        for sentinel in self.sentinels:
            if sentinel.answering:
                try:
                    _, port = await sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME)
                except (RedisError, OSError):
                    continue
                found[sentinel.name] = int(port)
        return found

    # What breaks it

    async def kill_primary(self) -> Node:
        """Kill −9 the primary and return it, at once: nothing has failed over yet."""
        primary = await self.primary()
        primary.kill()
        return primary

    async def fail_over(self) -> Node:
        """Have the sentinels make the replica the primary, as an operator would; return it."""
        old = await self.primary()

        async def missing() -> str:
            try:
                await self.sentinels[0].command("SENTINEL", "FAILOVER", NAME)
            except RedisError as error:  # NOGOODSLAVE: the replica is not yet known to be well
                return "" if str(error).startswith("INPROG") else str(error)
            return ""

        await self.wait_until(missing, "a failover begins", FAIL_OVER_S)
        return await self.wait_new_primary(old)

    async def wait_new_primary(self, old: Node, timeout_s: float = FAIL_OVER_S) -> Node:
        """Wait until every sentinel that answers announces another primary than `old`, and that
        one takes writes; return it.
        """

        async def missing() -> str:
            announced = await self._announced()
            if not announced or old.port in announced.values():
                return f"the sentinels announce {announced}"
            return await self._refusal(await self.primary())

        await self.wait_until(missing, f"the replica of {old.name} takes over", timeout_s)
        return await self.primary()

    async def _refusal(self, node: Node) -> str:
        try:
            role = (await node.info("replication"))["role"]
        except (RedisError, OSError) as error:
            return str(error)
        return "" if role == "master" else f"{node.name} is still a replica"

    # What mends it

    async def rejoin(self, node: Node) -> None:
        """Start a node again that was killed; the sentinels make it a replica of the primary."""
        await node.start()
        await self.wait_healthy()

    async def heal(self) -> None:
        """Wake what is paused, start what is dead, and wait until healthy."""
        await self.wake()
        await self.wait_healthy()

    async def wait_healthy(self, timeout_s: float = HEAL_S) -> None:
        """Wait until all sentinels agree on the primary and know each other, and the replica is in
        sync.
        """
        await self.wait_until(self._sickness, "the set is healthy", timeout_s)

    async def _sickness(self) -> str:
        """What keeps the set from being healthy; "" if nothing does."""
        announced = await self._announced()
        if len(announced) < SENTINELS or len(set(announced.values())) > 1:
            return f"the sentinels announce {announced}"
        self.data.primary, self.data.replica = await self.primary(), await self.replica()
        if lag := await self.data.lag():
            return lag
        for sentinel in self.sentinels:
            try:
                if doubt := await _doubt(sentinel):
                    return f"{sentinel.name} {doubt}"
            except (RedisError, OSError) as error:
                return f"{sentinel.name}: {error}"
        return ""


async def _doubt(sentinel: Node) -> str:
    """Why a sentinel could not fail over now; "" if it could. Raises redis-py's errors."""
    await sentinel.command("SENTINEL", "CKQUORUM", NAME)
    primary = _fields(await sentinel.command("SENTINEL", "MASTER", NAME))
    known = (primary["flags"], primary["num-slaves"], primary["num-other-sentinels"])
    if known != ("master", "1", str(SENTINELS - 1)):
        return f"sees flags, replicas and other sentinels as {known}"
    (row,) = await sentinel.command("SENTINEL", "REPLICAS", NAME)
    replica = _fields(row)
    state = (replica["flags"], replica["master-link-status"])
    return "" if state == ("slave", "ok") else f"sees the replica as {state}"


def _fields(flat: list[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
