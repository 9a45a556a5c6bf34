"""Reading a bounded stream of small entries, page by page, from the newest."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from askonce_queue.store import Store

PAGE = 200


async def entries_of(
    store: Store, key: bytes, since: bytes = b"-"
) -> AsyncGenerator[tuple[int, dict[str, str]]]:
    """The entries of a stream, the newest first: when it was added, Unix ms, and its fields.

    Raises redis-py's errors.
    """
    before = b"+"
    while True:
        entries: Any = await store.send(key, "XREVRANGE", key, before, since, "COUNT", PAGE)
        for entry_id, fields in entries:
            texts = [part.decode(errors="replace") for part in fields]
            yield int(entry_id.split(b"-")[0]), dict(zip(texts[::2], texts[1::2], strict=False))
        if len(entries) < PAGE:
            return
        before = b"(" + entries[-1][0]
