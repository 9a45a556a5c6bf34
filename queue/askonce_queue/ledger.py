"""A client's books, without any I/O: what to enqueue where, who waits for which reply, and which
reply entries have been handed over completely and may be deleted.

`Client` (asyncio) and `sync.Client` are two shells around it.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal, NamedTuple

from askonce_queue import queue_scripts
from askonce_queue.envelope import NAMED
from askonce_queue.errors import (
    ClientNameInUse,
    IdConflict,
    InvalidJob,
    QueueFull,
    StoreUnavailable,
)
from askonce_queue.job import MAX_JOB_BYTES, Job, encode_payload
from askonce_queue.pressure import MAX_MEMORY_SHARE
from askonce_queue.queue_scripts import LANES, Lane
from askonce_queue.reply import Reply, decode_replies
from askonce_queue.scripts import CHUNK, Arg, Call
from askonce_queue.shards import shard_of_job, shard_tags

CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,99}")
NAME_TTL_MS = 15_000
"""How long a client holds its name without renewing it."""

_FULL = {
    "f": "the backlog is at its bound (max_backlog)",
    "u": "too many replies are owed (max_unread): read replies first",
    "m": "jobs, replies and other data that cannot be evicted fill the store's memory "
    "(max_memory_share): read replies, or raise maxmemory",
}


class Limits(NamedTuple):
    """The bounds that the enqueue script enforces. `max_backlog`: unsettled jobs in one stream;
    `max_unread`: replies owed to one client (outstanding + unread), or entries unread in a named
    stream; `max_job_bytes`: JSON of one job; `max_memory_share`: the part of the store's maxmemory
    that may be taken by what cannot be evicted.
    """

    max_backlog: int = 1_000_000
    max_unread: int = 100_000
    max_job_bytes: int = MAX_JOB_BYTES
    max_memory_share: float = MAX_MEMORY_SHARE


class Enqueue(NamedTuple):
    """One call of the enqueue script, its shard, and the ids of its jobs, in order."""

    call: Call
    tag: str
    job_ids: list[str]


class Delivered(NamedTuple):
    """A reply on its way to a caller, and the entry it came in: `Ledger.handed` wants it back."""

    reply: Reply
    source: tuple[str, bytes]


Mailbox = Callable[[Delivered], None]
"""Where the reply to an awaited job goes; called from the reader."""


class Ledger:
    """The books of one client incarnation.

    Raises `InvalidJob` when `name` or `pool` cannot stand in a key.
    """

    def __init__(self, name: str | None, *, pool: str, shards: int, limits: Limits) -> None:
        self.token = secrets.token_hex(8)
        self.name = name if name is not None else f"client-{self.token}"
        if not CLIENT_NAME.fullmatch(self.name):
            raise InvalidJob(f"client names match {CLIENT_NAME.pattern}, this one is {name!r}")
        self.tags = shard_tags(shards)
        self.duplicates = 0
        """Replies that were dropped, because their job was handed its one reply before."""
        self.unreadable = 0
        """Lines in the reply streams that are not replies."""
        self._pool = pool
        self._limits = limits
        self._counter = itertools.count(1)
        self._next_shard = itertools.cycle(range(shards))
        self._awaited: dict[str, Mailbox] = {}
        self._early: dict[str, Delivered] = {}
        self._own_ids = f"-{self.token}-"
        self._done: dict[str, None] = {}
        self._on_early: Callable[[], None] = lambda: None
        self._here: set[tuple[str, bytes]] = set()
        self._left: dict[tuple[str, bytes], int] = {}
        self._sizes: dict[tuple[str, bytes], int] = {}
        self._handed: defaultdict[str, list[tuple[bytes, int]]] = defaultdict(list)

    def on_early(self, tell: Callable[[], None]) -> None:
        """Call `tell` when there are replies that nobody has asked for yet."""
        self._on_early = tell

    @property
    def outstanding(self) -> int:
        """Jobs whose reply is awaited."""
        return len(self._awaited)

    # Enqueue

    def assign_ids(self, jobs: Sequence[Job], avoid: Collection[str] = ()) -> list[str]:
        """The jobs' ids; those without one get a new one, of one shard, to keep batches large.

        `avoid`: the tags of shards that cannot be reached; they are used if there are no others.
        """
        shard = next(self._next_shard)
        for _ in self.tags:
            if self.tags[shard] not in avoid:
                break
            shard = next(self._next_shard)
        prefix = f"s{shard}-{self.token}-"
        counter = self._counter
        return [prefix + str(next(counter)) if job.id is None else job.id for job in jobs]

    def prepare(
        self, ids: Sequence[str], jobs: Sequence[Job], *, lane: str, reply_to: str | None
    ) -> list[Enqueue]:
        """Check jobs and build the calls that enqueue them.

        Raises `InvalidJob` before anything is enqueued.
        """
        if lane not in LANES:
            raise InvalidJob(f"lanes are {' and '.join(LANES)}, not {lane!r}")
        if reply_to is not None and not CLIENT_NAME.fullmatch(reply_to):
            raise InvalidJob(f"reply streams match {CLIENT_NAME.pattern}, not {reply_to!r}")
        address = f"{NAMED}{reply_to}" if reply_to is not None else ""
        labelled = any(job.tenant or job.tags or job.sources for job in jobs)
        timed = labelled or any(job.deadline_s is not None for job in jobs)
        shards, most = len(self.tags), self._limits.max_job_bytes
        parts: defaultdict[int, tuple[list[str], list[Arg]]] = defaultdict(lambda: ([], []))
        for job_id, job in zip(ids, jobs, strict=True):
            part_ids, args = parts[shard_of_job(job_id, shards)]
            part_ids.append(job_id)
            args.append(job_id)
            args.append(encode_payload(job, most))
            if labelled:
                args += (job.tenant, "\n".join(job.all_tags))
            if timed:
                seconds = job.deadline_s
                args.append("" if seconds is None else max(1, round(seconds * 1000)))
        return self._calls(parts, lane, address, 5 if labelled else 3 if timed else 2)

    def _calls(
        self,
        parts: dict[int, tuple[list[str], list[Arg]]],
        lane: str,
        address: str,
        stride: Literal[2, 3, 5],
    ) -> list[Enqueue]:
        calls: list[Enqueue] = []
        for shard, (ids, args) in parts.items():
            for start in range(0, len(ids), CHUNK):
                call = queue_scripts.enqueue(
                    Lane(self.tags[shard], self._pool, lane),
                    client=self.name,
                    token=self.token,
                    reply_to=address,
                    max_backlog=self._limits.max_backlog,
                    max_unread=self._limits.max_unread,
                    max_memory_share=self._limits.max_memory_share,
                    stride=stride,
                    jobs=args[start * stride : (start + CHUNK) * stride],
                )
                calls.append(Enqueue(call, self.tags[shard], ids[start : start + CHUNK]))
        return calls

    @staticmethod
    def read_verdicts(
        answered: Sequence[tuple[Enqueue, bytes]],
    ) -> QueueFull | IdConflict | None:
        """What the enqueue script said of each job.

        Returns the error that names the jobs that were not accepted, if there are any. Raises
        `ClientNameInUse` when the name has gone to another client.
        """
        full: list[str] = []
        conflicts: list[str] = []
        reason = ""
        for enqueue, letters in answered:
            if letters == b"!":
                raise ClientNameInUse(
                    "this client's name was taken by another client, or its lease ran out; "
                    "choose another name, or open the client again"
                )
            if letters.strip(b"as"):
                for job_id, letter in zip(enqueue.job_ids, letters.decode(), strict=True):
                    if letter in _FULL:
                        full.append(job_id)
                        reason = _FULL[letter]
                    elif letter == "c":
                        conflicts.append(job_id)
        if conflicts:
            return IdConflict(conflicts, full)
        return QueueFull(full, reason) if full else None

    @staticmethod
    def not_accepted(error: QueueFull | IdConflict, ids: Sequence[str]) -> set[str]:
        """The ids of a call of which no job was accepted: an id may stand in it twice."""
        given = Counter(ids)
        return {i for i, count in Counter(error.job_ids).items() if count == given[i]}

    # Replies

    def expect(self, job_ids: Sequence[str], mailbox: Mailbox) -> set[str]:
        """Send the replies of jobs to `mailbox`; those that are here already (resumed), at once.

        Returns the ids that were not awaited before. Raises `IdConflict`, and changes nothing, for
        jobs that somebody else waits for: each is handed one reply.
        """
        awaited = self._awaited
        taken = [job_id for job_id in job_ids if awaited.get(job_id, mailbox) != mailbox]
        if taken:
            raise IdConflict(taken)
        new = {job_id for job_id in job_ids if job_id not in awaited}
        for job_id in new:
            awaited[job_id] = mailbox
            if self._early and job_id in self._early:
                del awaited[job_id]
                self._note_done(job_id)
                mailbox(self._early.pop(job_id))
        return new

    def forget(self, job_id: str) -> None:
        """Nobody waits for this job any more: it was not accepted, or its caller has left."""
        if self._awaited.pop(job_id, None) is not None:
            self._note_done(job_id)

    def _note_done(self, job_id: str) -> None:
        """Remember that the caller's id has had its reply, so that a second one is known as such.

        A job is replied once, but an enqueue that was re-sent after its job had settled is a job
        again. Our own ids say so themselves.
        """
        if self._own_ids not in job_id:
            self._done[job_id] = None
            if len(self._done) > self._limits.max_unread:
                del self._done[next(iter(self._done))]

    def receive(self, tag: str, entry_id: bytes, lines: bytes) -> None:
        """Read one entry of the reply stream of a shard and send its replies where they belong.

        A reply that nobody awaits is of a job that an earlier client of this name enqueued, and
        waits to be asked for; or it is the second to a job of ours, and dropped. Lines that are
        not replies are counted and dropped. An entry that is here already changes nothing.
        """
        source = (tag, entry_id)
        if source in self._here:
            return
        self._here.add(source)
        replies, unreadable = decode_replies(lines)
        self.unreadable += unreadable
        size = len(replies) + unreadable
        if not replies:
            self._handed[tag].append((entry_id, size))
            return
        self._left[source], self._sizes[source] = len(replies), size
        awaited = self._awaited
        for reply in replies:
            mailbox = awaited.pop(reply.id, None)
            if mailbox is not None:
                if self._own_ids not in reply.id:
                    self._note_done(reply.id)
                mailbox(Delivered(reply, source))
            elif self._is_double(reply.id):
                self.duplicates += 1
                self.handed(source)
            else:
                self._early[reply.id] = Delivered(reply, source)
        if self._early:
            self._on_early()

    def _is_double(self, job_id: str) -> bool:
        return job_id in self._done or job_id in self._early or self._own_ids in job_id

    def take_early(self) -> list[Delivered]:
        """Replies to an earlier client of this name that nobody has asked for, once."""
        early, self._early = self._early, {}
        for job_id in early:
            self._note_done(job_id)
        return list(early.values())

    def handed(self, source: tuple[str, bytes]) -> None:
        """A caller has one reply of an entry; the last one makes the entry deletable."""
        left = self._left[source] - 1
        if left:
            self._left[source] = left
            return
        del self._left[source]
        tag, entry_id = source
        self._handed[tag].append((entry_id, self._sizes.pop(source)))

    def take_handed(self) -> list[tuple[list[tuple[bytes, int]], str, Call]]:
        """The calls that delete what was handed over. Repeating one is harmless."""
        handed, self._handed = self._handed, defaultdict(list)
        return [
            (
                entries[start : start + CHUNK],
                tag,
                queue_scripts.hand_over(tag, self.name, entries[start : start + CHUNK]),
            )
            for tag, entries in handed.items()
            for start in range(0, len(entries), CHUNK)
        ]

    def deleted(self, tag: str, entries: list[tuple[bytes, int]]) -> None:
        """What was handed over is deleted."""
        self._here.difference_update([(tag, entry_id) for entry_id, _ in entries])

    def put_back_handed(self, tag: str, entries: list[tuple[bytes, int]]) -> None:
        """A deletion failed: it goes with the next."""
        self._handed[tag] += entries


def reply_lines(fields: Sequence[bytes]) -> bytes:
    """The replies in the fields of an entry of a reply stream; empty when it is none of ours."""
    return dict(zip(fields[::2], fields[1::2], strict=False)).get(b"r", b"")


def nameless(calls: Sequence[Enqueue], results: Sequence[Any]) -> set[str]:
    """The tags of the shards that do not know the client's name."""
    return {enqueue.tag for enqueue, result in zip(calls, results, strict=True) if result == b"!"}


def read_results(calls: Sequence[Enqueue], results: Sequence[Any]) -> list[tuple[Enqueue, bytes]]:
    """Pair calls with their letters. Raises `StoreUnavailable` when one has none."""
    for result in results:
        if isinstance(result, Exception):
            raise StoreUnavailable(
                f"the store did not confirm jobs: {result}. What it accepted is unknown: enqueue "
                "the same ids again"
            ) from result
    return list(zip(calls, results, strict=True))
