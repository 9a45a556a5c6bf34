"""Where a client is in its reply streams, one a shard. Reading deletes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from askonce_queue import names
from askonce_queue.ledger import Ledger, reply_lines
from askonce_queue.scripts import Arg

READ_COUNT = 200
"""Reply entries a read; each may hold some hundred replies."""
_START = b"0"


class Positions:
    """Makes the commands that read replies, and hands what they bring to the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._tags = {names.replies(tag, ledger.name): tag for tag in ledger.tags}
        self._last_ids = dict.fromkeys(ledger.tags, _START)

    def read(self, tags: Sequence[str], block_s: float) -> tuple[bytes, list[Arg]]:
        """The command that reads the streams of `tags`, after the key that says where to.

        It waits up to `block_s` for the first entry; not at all when that is 0.
        """
        wait: tuple[Arg, ...] = ("BLOCK", max(1, int(block_s * 1000))) if block_s > 0 else ()
        keys = [names.replies(tag, self._ledger.name) for tag in tags]
        ids = [self._last_ids[tag] for tag in tags]
        return keys[0], ["XREAD", "COUNT", READ_COUNT, *wait, "STREAMS", *keys, *ids]

    def take(self, rows: list[Any] | None) -> int:
        """Hand the entries of a read to the ledger; return how many there were."""
        entries = 0
        for stream, batch in rows or ():
            tag = self._tags[stream]
            for entry_id, fields in batch:
                self._ledger.receive(tag, entry_id, reply_lines(fields))
                self._last_ids[tag] = entry_id
                entries += 1
        return entries

    def rewind(self, tags: Sequence[str]) -> None:
        """Begin anew after a failure: after a failover, entries may have smaller ids than before.

        What was received before and is still there is known to the ledger.
        """
        for tag in tags:
            self._last_ids[tag] = _START
