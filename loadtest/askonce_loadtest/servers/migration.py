"""One slot on its way from one primary to another, step by step, so that ASK can be provoked.

Protocol: https://valkey.io/commands/cluster-setslot/, "Cluster live resharding explained".
"""

from __future__ import annotations

from collections.abc import Sequence

from askonce_loadtest.servers.node import Node

PAGE = 100
MOVE_MS = 5_000


class SlotMigration:
    """A slot that is open between two primaries. `Cluster.migrating` makes one."""

    def __init__(
        self, slot: int, source: Node, target: Node, source_id: str, target_id: str
    ) -> None:
        self.slot = slot
        self.source = source
        self.target = target
        self.finished = False
        self._source_id = source_id
        self._target_id = target_id

    async def begin(self) -> None:
        """Open the slot: from now on the source answers ASK for keys that it does not have."""
        await self.target.command("CLUSTER", "SETSLOT", self.slot, "IMPORTING", self._source_id)
        await self.source.command("CLUSTER", "SETSLOT", self.slot, "MIGRATING", self._target_id)

    async def move(self, *keys: bytes) -> int:
        """Move `keys`, or all keys of the slot when none are given; return how many were there."""
        if keys:
            return await self._send(self.source, self.target, keys)
        return await self._send_all(self.source, self.target)

    async def finish(self) -> None:
        """Give the slot to the target; the source answers MOVED from now on. Move all keys first.

        The target first: were it told last, both would send clients to each other in between.
        """
        for node in (self.target, self.source):
            await node.command("CLUSTER", "SETSLOT", self.slot, "NODE", self._target_id)
        self.finished = True

    async def abandon(self) -> None:
        """Close the slot where it was, and bring back what was moved."""
        # Open at the source, the slot would take back no key that it has not; closed at the
        # target, it could not be read there.
        await self.source.command("CLUSTER", "SETSLOT", self.slot, "STABLE")
        await self._send_all(self.target, self.source)
        await self.target.command("CLUSTER", "SETSLOT", self.slot, "STABLE")

    async def _send_all(self, here: Node, there: Node) -> int:
        moved = 0
        page = ("CLUSTER", "GETKEYSINSLOT", self.slot, PAGE)
        while keys := await here.command(*page, decode=False):  # keys are no texts
            moved += await self._send(here, there, keys)
        return moved

    async def _send(self, here: Node, there: Node, keys: Sequence[bytes]) -> int:
        words: list[str | bytes | int] = ["MIGRATE", *there.address, "", 0, MOVE_MS]
        if there.password:
            words += ["AUTH2", there.user or "default", there.password]
        reply = await here.command(*words, "KEYS", *keys, timeout_s=MOVE_MS / 1000 + 1)
        return 0 if reply == "NOKEY" else len(keys)
