"""The dead letters of a pool: found, retried, dropped.

Anybody may retry or drop a letter at any time, and workers drop the oldest; twice is harmless.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.exceptions import OutOfMemoryError

from askonce_queue import names, queue_scripts
from askonce_queue.envelope import NAMED
from askonce_queue.queue_scripts import LANES, Lane
from askonce_queue.scripts import Call
from askonce_queue.store import Store
from askonce_worker.dead_letters.letter import DeadLetter, LetterId, read_letter
from askonce_worker.dead_letters.search import Search, Wanted

BATCH = 100
"""Most letters retried or dropped in one round trip."""
DEFAULT_REPLY_TO = "retried"
"""The named reply stream of retried jobs that did not have one."""

_REFUSALS = {
    b"g": "it is gone: retried or dropped meanwhile",
    b"c": "another job with its id is not answered yet",
    b"f": "the backlog is at its bound (max_backlog)",
    b"u": "the reply stream is at its bound (max_unread): read it first",
}


class Retry(NamedTuple):
    """What became of a letter that was to be retried: `refusal` is '' when its job is queued.

    `gone`: somebody else has retried or dropped it. `stream` is the key where the reply goes.
    """

    letter: DeadLetter
    stream: bytes
    refusal: str
    gone: bool = False


class DeadLetters:
    """The dead letters of one pool."""

    def __init__(self, store: Store, pool: str) -> None:
        self._store = store
        self._pool = pool

    async def total(self) -> int:
        """How many there are, on the shards that answer."""
        keys = [names.dead(tag, self._pool) for tag in self._store.tags]
        counts = await self._store.send_many([(key, ("XLEN", key)) for key in keys])
        return sum(int(count) for count in counts if not isinstance(count, Exception))

    def search(self, wanted: Wanted) -> Search:
        """Look for letters."""
        return Search(self._store, self._pool, wanted)

    async def get(self, ids: Sequence[LetterId]) -> list[DeadLetter | None]:
        """The letters of ids, None for those that are not there. Raises redis-py's errors."""
        asked = [one for one in ids if one.tag in self._store.tags]
        keys = [names.dead(one.tag, self._pool) for one in asked]
        results = await self._store.send_many(
            [
                (key, ("XRANGE", key, one.entry, one.entry))
                for key, one in zip(keys, asked, strict=True)
            ]
        )
        found: dict[LetterId, DeadLetter] = {}
        for one, result in zip(asked, results, strict=True):
            if isinstance(result, Exception):
                raise result
            if result:
                found[one] = read_letter(one.tag, *result[0])
        return [found.get(one) for one in ids]

    async def retry(
        self,
        letters: Sequence[DeadLetter],
        *,
        reply_to: str | None = None,
        lane: str | None = None,
        max_backlog: int,
        max_unread: int,
        dry_run: bool = False,
    ) -> list[Retry]:
        """Put jobs (at most `BATCH`) back into their lanes, or all into `lane`.

        The client has had its one reply, the error; the next one goes to the named reply stream
        `reply_to`, by default the job's own, or `DEFAULT_REPLY_TO`. Never raises for what the store
        does: what is not known to be queued is refused, and its letter stays. A `dry_run` asks
        nothing of the store.
        """
        results: list[Retry] = []
        calls: dict[int, Call] = {}
        for place, letter in enumerate(letters):
            address = NAMED + (reply_to or letter.reply_to or DEFAULT_REPLY_TO)
            target = Lane(letter.id.tag, self._pool, lane or letter.lane)
            refusal = letter.obstacle
            if not refusal and target.lane not in LANES:
                refusal = f"lane {target.lane!r} is not known: name another one"
            if not refusal:
                calls[place] = queue_scripts.retry_dead(
                    target,
                    letter.id.entry,
                    record=letter.envelope.record,
                    address=address,
                    max_backlog=max_backlog,
                    max_unread=max_unread,
                )
            results.append(Retry(letter, names.replies(letter.id.tag, address), refusal))
        if dry_run:
            return results
        verdicts = await self._store.run_many(list(calls.values()))
        for place, verdict in zip(calls, verdicts, strict=True):
            refusal = _refusal(verdict)
            results[place] = results[place]._replace(refusal=refusal, gone=verdict == b"g")
        return results

    async def drop(self, ids: Sequence[LetterId]) -> int:
        """Delete letters (at most `BATCH`); how many there were. Raises redis-py's errors.

        After a lost reply it counts too few.
        """
        entries: defaultdict[bytes, list[bytes]] = defaultdict(list)
        for one in ids:
            entries[names.dead(one.tag, self._pool)].append(one.entry)
        results = await self._store.send_many(
            [(key, ("XDEL", key, *some)) for key, some in entries.items()]
        )
        for result in results:
            if isinstance(result, Exception):
                raise result
        return sum(map(int, results))


def _refusal(verdict: Any) -> str:
    if isinstance(verdict, OutOfMemoryError):
        return "the store is out of memory"
    if isinstance(verdict, Exception):
        return f"the store failed: {verdict}"
    return _REFUSALS.get(verdict, "")
