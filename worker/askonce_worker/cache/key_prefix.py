"""Cache keys by their first digits, as logs and people write them."""

from __future__ import annotations

import re

import anyio

from askonce_queue import names
from askonce_queue.names import DIGEST_BYTES
from askonce_queue.shards import shard_of_digest
from askonce_queue.store import Store
from askonce_worker.cache.survey import MOST_S, PAGE

LEAST_DIGITS = 8
"""They say which shard has it. Among a million answers, one in 4,300 shares them with another."""
MOST_MATCHES = 10


class Ambiguous(Exception):
    """Several stored answers have keys that begin so."""

    def __init__(self, keys: list[str]) -> None:
        super().__init__(", ".join(key[:16] for key in keys))
        self.keys = keys


def is_key(text: str) -> bool:
    """Whether `text` is the beginning of a key, in hex, or all of it."""
    return re.fullmatch(f"[0-9a-fA-F]{{{LEAST_DIGITS},{2 * DIGEST_BYTES}}}", text) is not None


async def find_key(store: Store, prefix: str) -> bytes | None:
    """The key of the one stored answer whose key begins with `prefix` (see `is_key`), if any.

    Walks the keys of a server, a page at a time. Raises `Ambiguous`, `TimeoutError` after 60 s, and
    redis-py's errors.
    """
    prefix = prefix.lower()
    if len(prefix) == 2 * DIGEST_BYTES:
        return bytes.fromhex(prefix)
    head = bytes.fromhex(prefix[: len(prefix) // 2 * 2])
    answers = names.answer_prefix(store.tags[shard_of_digest(head, len(store.tags))])
    pattern = answers + re.sub(rb"([*?\[\]\\])", rb"\\\1", head) + b"*"
    found: set[str] = set()
    cursor, until = b"0", anyio.current_time() + MOST_S
    while True:
        page = await store.send(answers, "SCAN", cursor, "MATCH", pattern, "COUNT", PAGE)
        keys = [key[len(answers) :].hex() for key in page[1]]
        found.update(key for key in keys if key.startswith(prefix))
        cursor = page[0]
        if cursor == b"0" or len(found) > MOST_MATCHES:
            break
        if anyio.current_time() >= until:
            raise TimeoutError(f"the keys could not be walked in {MOST_S:g} s")
    if len(found) > 1:
        raise Ambiguous(sorted(found))
    return bytes.fromhex(found.pop()) if found else None
