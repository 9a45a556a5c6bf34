"""The tap: reads every reply as it is written, beside the clients that it is for.

A client drops the second reply to a job, so that no caller sees it; that a job was settled twice is
therefore only to be seen in the reply streams. What the tap misses (a client deletes what it has
handed over) it cannot find fault with.
"""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import msgspec

from askonce_loadtest.chaos.store import StoreUnderTest
from askonce_queue import names
from askonce_queue.reply import decode_replies
from askonce_queue.shards import shard_tags

BLOCK_MS = 500
COUNT = 500


class Settled(msgspec.Struct):
    """The replies to one job: when the first was written (monotonic, rounded down), how many."""

    first: float
    times: int = 1


class Tap:
    """Reads the reply streams of some clients, for ever."""

    def __init__(
        self, store: StoreUnderTest, clients: Sequence[str], wall_minus_monotonic_s: float
    ) -> None:
        self.settled: dict[str, Settled] = {}
        """By job id."""
        self._store = store
        self._clients = clients
        self._wall_minus_monotonic_s = wall_minus_monotonic_s

    async def run(self) -> None:
        """Read until cancelled."""
        async with anyio.create_task_group() as tasks:
            for client in self._clients:
                for tag in shard_tags(self._store.shards):
                    tasks.start_soon(self._read, names.replies(tag, client))

    async def _read(self, stream: bytes) -> None:
        last = b"0"
        while True:
            found = await self._store.ask(
                stream, "XREAD", "COUNT", COUNT, "BLOCK", BLOCK_MS, "STREAMS", stream, last
            )
            for _, entries in found or ():
                for entry_id, fields in entries:
                    last = entry_id
                    self._note(entry_id, dict(zip(fields[::2], fields[1::2], strict=True)))

    def _note(self, entry_id: bytes, fields: dict[bytes, bytes]) -> None:
        at = int(entry_id.partition(b"-")[0]) / 1000 - self._wall_minus_monotonic_s
        for reply in decode_replies(fields.get(b"r", b""))[0]:
            known = self.settled.get(reply.id)
            if known is None:
                self.settled[reply.id] = Settled(at)
            else:
                known.times += 1
