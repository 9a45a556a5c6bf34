"""Entries that are no jobs, written straight into the job streams; each must become a dead letter.

Every entry has a field `chaos` with its name, by which its dead letter is known.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from askonce_loadtest.chaos.evidence import Violation
from askonce_loadtest.chaos.plan import TASK
from askonce_loadtest.chaos.store import StoreUnderTest
from askonce_queue import names
from askonce_queue.queue_scripts import LANES
from askonce_queue.shards import shard_tags

POOL = "default"
ADDRESS = "@chaos-malformed"
"""The named reply stream of those that have an address."""
NAME = b"chaos"
PER_FAULT = 12

_WHO = {"v": "1", "c": "chaos-malformed", "r": ADDRESS}
_GOOD = f'{{"task":"{TASK}","text":"a question"}}'


def _shapes(job_id: str) -> Sequence[Mapping[str, str | bytes]]:
    """Entries of every wrong shape, all with the same id."""
    who = {**_WHO, "i": job_id}
    return (
        {},
        {**who, "v": "77", "p": _GOOD},
        {**_WHO, "p": _GOOD},
        {**who, "i": b"\xff\xfe", "p": _GOOD},
        {**who},
        {**who, "p": '{"task":'},
        {**who, "p": b"\x00\xff\x80"},
        {**who, "p": "[" * 5_000},
        {**who, "p": f'{{"task":"{TASK}","text":5}}'},
        {**who, "p": f'{{"task":"{TASK}"}}'},
        {**who, "p": f'{{"task":"{TASK}","text":""}}'},
        {**who, "p": f'{{"task":"{TASK}","text":"\\ud800"}}'},
        {**who, "p": '{"task":"nobody knows it","text":"a question"}'},
        {**who, "p": f'{{"task":"{TASK}","text":"{"x" * 70_000}"}}'},
        {**who, "p": _GOOD, "d": "never"},
        {**who, "p": _GOOD, "g": "tag\n" * 40},
    )


class Malformed:
    """Adds malformed entries, and finds them again."""

    def __init__(self, store: StoreUnderTest, seed: int) -> None:
        self._store = store
        self._rng = random.Random(f"malformed:{seed}")
        self._count = itertools.count(1)
        self.added: dict[bytes, bool] = {}
        """Name of each entry → whether it has an id and an address, and so gets a reply."""

    async def add(self) -> str:
        """Write some entries into random streams."""
        for _ in range(PER_FAULT):
            name = f"malformed-{next(self._count)}"
            shape = self._rng.choice(_shapes(name))
            tag = self._rng.choice(shard_tags(self._store.shards))
            stream = names.jobs(tag, POOL, self._rng.choice(LANES))
            fields = [word for pair in shape.items() for word in pair]
            self.added[name.encode()] = shape.get("i") == name
            # Repeated after an error it may stand there twice: that harms nothing, and is found.
            await self._store.ask(stream, "XADD", stream, "*", NAME, name, *fields)
        return f"{PER_FAULT} entries added"

    async def account(self) -> list[Violation]:
        """Those that left no dead letter, or no reply though they could have had one."""
        letters: set[bytes] = set()
        replies = b""
        for tag in shard_tags(self._store.shards):
            dead, stream = names.dead(tag, POOL), names.replies(tag, ADDRESS)
            letters |= set(_names(await self._store.ask(dead, "XRANGE", dead, "-", "+")))
            entries = await self._store.ask(stream, "XRANGE", stream, "-", "+")
            replies += b"".join(dict(_pairs(fields)).get(b"r", b"") for _, fields in entries)
            await self._store.ask(stream, "UNLINK", stream)
        missing = [name for name in self.added if name not in letters]
        silent = [
            name
            for name, has_address in self.added.items()
            if has_address and b'"id":"%s"' % name not in replies
        ]
        return [
            *(Violation("malformed", f"{name.decode()}: no dead letter") for name in missing),
            *(Violation("malformed", f"{name.decode()}: no error reply") for name in silent),
        ]


def _names(entries: Iterable[Any]) -> Iterable[bytes]:
    for _, fields in entries:
        name = dict(_pairs(fields)).get(NAME)
        if name is not None:
            yield name


def _pairs(fields: Sequence[bytes]) -> Iterable[tuple[bytes, bytes]]:
    return zip(fields[::2], fields[1::2], strict=True)
