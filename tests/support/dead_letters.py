"""Dead letters, written as `bury.lua` writes them, at any time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import redis

from askonce_queue import names
from askonce_queue.queue_scripts import Lane

BURIED_MS = 1_700_000_000_000
"""When letters are buried, unless a test says otherwise."""


def envelope(job_id: str = "j1", *, text: str = "hello", **fields: str | bytes) -> dict[str, Any]:
    """The fields of a job; what `fields` gives replaces them."""
    payload = f'{{"task":"echo","text":"{text}"}}'
    return {"v": "1", "c": "client", "i": job_id, "p": payload} | fields


class Grave:
    """The dead letters of a store, seen from behind."""

    def __init__(self, client: redis.Redis, pool: str = "default") -> None:
        self.client = client
        self.pool = pool

    def bury(
        self,
        fields: Mapping[Any, Any] | None = None,
        *,
        at_ms: int = BURIED_MS,
        code: str = "poison",
        message: str = "it died",
        lane: str = "bulk",
        tag: str = "0",
    ) -> str:
        """Write a letter; its id, as the command shows it."""
        head = {"code": code, "message": message}
        head |= {"stream": names.jobs(tag, self.pool, lane).decode(), "entry": f"{at_ms - 1000}-7"}
        return self.write([*_words(head), *_words(fields or envelope())], at_ms=at_ms, tag=tag)

    def write(self, words: list[Any], *, at_ms: int = BURIED_MS, tag: str = "0") -> str:
        """Write anything where dead letters are."""
        key = names.dead(tag, self.pool)
        return f"{tag}:{self.send('XADD', key, f'{at_ms}-*', *words).decode()}"

    def left(self, tag: str = "0") -> list[str]:
        """The ids of the letters, the oldest first."""
        entries = self.send("XRANGE", names.dead(tag, self.pool), "-", "+")
        return [f"{tag}:{entry_id.decode()}" for entry_id, _ in entries]

    def queued(self, lane: str = "bulk", tag: str = "0") -> list[dict[str, bytes]]:
        """The jobs of a lane, as fields."""
        entries = self.send("XRANGE", Lane(tag, self.pool, lane).stream, "-", "+")
        return [
            {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}
            for _, flat in entries
        ]

    def send(self, *words: Any) -> Any:
        """Send one command."""
        return cast("Any", self.client.execute_command(*words))


def _words(fields: Mapping[Any, Any]) -> list[Any]:
    return [word for pair in fields.items() for word in pair]
