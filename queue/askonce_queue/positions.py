"""Where a client is in its reply streams, one a shard. Reading deletes nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

from redis.exceptions import InvalidResponse

from askonce_queue import names
from askonce_queue.ledger import Ledger, reply_lines
from askonce_queue.scripts import Arg
from askonce_queue.store_config import Address

READ_COUNT = 200
"""Reply entries a read; each may hold some hundred replies."""
_START = b"0"
_ENTRY_ID = re.compile(rb"\d+-\d+")


class Positions:
    """Makes the commands that read replies, and hands what they bring to the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._tags = {names.replies(tag, ledger.name): tag for tag in ledger.tags}
        self._last_ids = dict.fromkeys(ledger.tags, _START)
        self._servers: dict[str, Address | None] = {}

    def read(self, tags: Sequence[str], block_s: float) -> tuple[bytes, list[Arg]]:
        """The command that reads the streams of `tags`, after the key that says where to.

        It waits up to `block_s` for the first entry; not at all when that is 0.
        """
        wait: tuple[Arg, ...] = ("BLOCK", max(1, int(block_s * 1000))) if block_s > 0 else ()
        keys = [names.replies(tag, self._ledger.name) for tag in tags]
        ids = [self._last_ids[tag] for tag in tags]
        return keys[0], ["XREAD", "COUNT", READ_COUNT, *wait, "STREAMS", *keys, *ids]

    def take(self, rows: Any) -> int:
        """Hand the entries of a read to the ledger; return how many there were.

        Raises `InvalidResponse`, and hands over nothing, for what no XREAD returns: an entry that
        was garbled on its way must not pass for one without replies, which is deleted.
        """
        try:
            entries = [
                (self._tags[stream], *_entry(entry_id, fields))
                for stream, batch in rows or ()
                for entry_id, fields in batch
            ]
        except (TypeError, ValueError, KeyError) as error:
            raise InvalidResponse(f"not what XREAD returns: {error}") from error
        for tag, entry_id, lines in entries:
            self._ledger.receive(tag, entry_id, lines)
            self._last_ids[tag] = entry_id
        return len(entries)

    def served_by(self, tags: Sequence[str], server: Address | None) -> None:
        """Begin anew when another server has answered than before, with or without a failure.

        What was deleted on the old one may be there again, and must be deleted again.
        """
        if self._servers.setdefault(tags[0], server) != server:
            self._servers[tags[0]] = server
            self.rewind(tags)

    def rewind(self, tags: Sequence[str]) -> None:
        """Begin anew after a failure: after a failover, entries may have smaller ids than before.

        What was received before and is still there is known to the ledger.
        """
        for tag in tags:
            self._last_ids[tag] = _START


def _entry(entry_id: Any, fields: Any) -> tuple[bytes, bytes]:
    """Id and reply lines of an entry. Raises `TypeError`."""
    lines: Any = reply_lines(cast("list[bytes]", fields)) if isinstance(fields, list) else None
    if not _ENTRY_ID.fullmatch(entry_id) or type(lines) is not bytes:
        raise TypeError("an entry is an id and a list of fields")
    return entry_id, lines
