"""The fields of a job's stream entry: what the queue needs, beside the payload.

| field | meaning |
| --- | --- |
| `v` | version of the envelope, `1` |
| `c` | client that enqueued the job; scope of the job id |
| `i` | job id |
| `p` | payload (JSON, see `job.py`) |
| `r` | reply address, when it is a named stream (`@name`); else the client's own stream |
| `n` | tenant, when not empty |
| `g` | tags, joined by line breaks, when there are any |
| `d` | deadline, when there is one: ms from the enqueue |
| `o` | when it was enqueued, Unix ms, of a job that was deferred since |

Lane and shard are those of the stream; the enqueue time is the entry id's, and so the store's; a
deferred job has a new entry, and brings the old one's time along. Deliveries are counted by the
consumer group. The deadline is relative, so that the same job enqueued again is the same job.
"""

from __future__ import annotations

import re

import msgspec

from askonce_queue.job import MAX_DEADLINE_S

VERSION = b"1"
NAMED = "@"
"""First character of the address of a named reply stream."""

_NAMED_STREAM = re.compile(r"@[A-Za-z0-9][A-Za-z0-9_.:-]{0,99}")


class Envelope(msgspec.Struct, kw_only=True):
    """The envelope of one delivered entry, decoded; whatever was missing or wrong is empty."""

    entry_id: bytes
    job_id: str = ""
    client: str = ""
    reply_to: str = ""
    tenant: str = ""
    tags: tuple[str, ...] = ()
    deadline_ms: int = 0
    """From the enqueue; 0: none."""
    origin_ms: int = 0
    """When a deferred job was enqueued, Unix ms; 0: when its entry was made."""
    payload: bytes = b""
    problem: str = ""

    @property
    def address(self) -> str:
        """Where the reply goes: a named stream (`@…`) or the client; '' when nobody can be told."""
        return self.reply_to or self.client

    @property
    def record(self) -> str:
        """The field of the job's id record."""
        return f"{self.client}/{self.job_id}"


def read_envelope(entry_id: bytes, fields: list[bytes] | None) -> Envelope:
    """Decode the fields of an entry. Never raises: `problem` says what is wrong with it."""
    envelope = Envelope(entry_id=entry_id)
    if not fields:
        envelope.problem = "the entry has no fields"
        return envelope
    given = dict(zip(fields[::2], fields[1::2], strict=False))
    try:
        envelope.job_id = given.get(b"i", b"").decode()
        envelope.client = _client(given.get(b"c", b"").decode())
        envelope.reply_to = _named_stream(given.get(b"r", b"").decode())
        envelope.tenant = given.get(b"n", b"").decode()
        tags = given.get(b"g")
        envelope.tags = tuple(tags.decode().split("\n")) if tags else ()
        envelope.deadline_ms = read_deadline(given[b"d"]) if b"d" in given else 0
        envelope.origin_ms = _moment(given[b"o"]) if b"o" in given else 0
    except ValueError as error:
        envelope.problem = f"the envelope is not valid: {error}"
        return envelope
    envelope.payload = given.get(b"p", b"")
    if given.get(b"v") != VERSION:
        envelope.problem = f"envelope version {given.get(b'v')!r:.60} is not known here"
    elif not envelope.job_id or not envelope.client:
        envelope.problem = "the envelope has no job id or no client"
    elif not envelope.payload:
        envelope.problem = "the envelope has no payload"
    return envelope


def read_deadline(text: bytes) -> int:
    """The ms of a deadline. Raises `ValueError` for what no enqueue accepts."""
    deadline_ms = _whole(text)
    if not 0 < deadline_ms <= MAX_DEADLINE_S * 1000:
        raise ValueError(f"{text!r:.60} is not a deadline")
    return deadline_ms


def _whole(text: bytes) -> int:
    """A number as scripts write it; Python would take more for one. Raises `ValueError`."""
    if not text.isdigit():
        raise ValueError(f"{text!r:.60} is not a whole number")
    return int(text)


def _moment(text: bytes) -> int:
    """A time, Unix ms. Raises `ValueError` for one that no entry can have."""
    moment_ms = _whole(text)
    if moment_ms >= 1 << 53:
        raise ValueError(f"{text!r:.60} is not a time")
    return moment_ms


def _client(name: str) -> str:
    """A client's name. Raises `ValueError` for one that would pass for a named stream's."""
    if name.startswith(NAMED):
        raise ValueError(f"{name!r:.60} is not the name of a client")
    return name


def _named_stream(address: str) -> str:
    """A reply address. Raises `ValueError` for a stream that nobody would read and clear."""
    if address and not _NAMED_STREAM.fullmatch(address):
        raise ValueError(f"{address!r:.60} is not the address of a reply stream")
    return address
