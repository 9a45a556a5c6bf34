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
| `d` | deadline, Unix ms, when there is one |

Lane and shard are those of the stream; the enqueue time is the entry id's; deliveries are counted
by the consumer group.
"""

from __future__ import annotations

import re

import msgspec

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
        envelope.deadline_ms = int(given.get(b"d", b"0"))
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
