"""One dead letter: the job as it came, why it was buried, and what can be read of it."""

from __future__ import annotations

import re
from typing import NamedTuple, Self

import msgspec

from askonce_queue.envelope import NAMED, Envelope, read_envelope
from askonce_queue.queue_scripts import DEFERRED

_HEAD = [b"code", b"message", b"stream", b"entry"]
"""The fields before the job's own, see `bury.lua`."""
_LETTER_ID = re.compile(r"(\d{1,20}):(\d{1,20})-(\d{1,20})", re.ASCII)
_ID_LIMIT = 1 << 64


class LetterId(NamedTuple):
    """The shard of a letter and its place there; as text one token, `SHARD:MS-SEQUENCE`."""

    tag: str
    ms: int
    sequence: int

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read what `str` wrote; None for what is no id of a letter."""
        found = _LETTER_ID.fullmatch(text)
        if found is None or max(int(found[2]), int(found[3])) >= _ID_LIMIT:
            return None
        return cls(found[1], int(found[2]), int(found[3]))

    @property
    def entry(self) -> bytes:
        """The id of its entry in the stream of dead letters."""
        return f"{self.ms}-{self.sequence}".encode()

    def __str__(self) -> str:
        return f"{self.tag}:{self.ms}-{self.sequence}"


class _PayloadTask(msgspec.Struct, gc=False):
    task: str = ""


_task_decoder = msgspec.json.Decoder(_PayloadTask)


class DeadLetter(NamedTuple):
    """One job that was buried, and why. Its `fields` are as they came: nothing in them is certain.

    `id.ms` is when it was buried, Unix milliseconds by the store's clock; `entry` is the id it had
    in its lane, deferred or not.
    """

    id: LetterId
    code: str
    message: str
    lane: str
    entry: str
    fields: list[bytes]
    envelope: Envelope

    @property
    def payload(self) -> bytes:
        """The payload, also where the rest of the envelope cannot be read."""
        return dict(zip(self.fields[::2], self.fields[1::2], strict=False)).get(b"p", b"")

    @property
    def task(self) -> str:
        """The task that the job asked for; '' when that cannot be read."""
        try:
            return _task_decoder.decode(self.payload).task
        except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
            return ""

    @property
    def reply_to(self) -> str:
        """The named reply stream of the job, without the `@`; '' when it had none."""
        return self.envelope.reply_to.removeprefix(NAMED)

    @property
    def obstacle(self) -> str:
        """Why it cannot be retried; '' when it can."""
        if not self.entry:
            return "it is not a dead letter of a worker"
        return self.envelope.problem


def read_letter(tag: str, entry_id: bytes, fields: list[bytes]) -> DeadLetter:
    """Read one entry of a stream of dead letters. Never raises for what stands in it."""
    ms, _, sequence = entry_id.partition(b"-")
    code, message, stream, entry, rest = b"", b"", b"", b"", fields
    if fields[:8:2] == _HEAD:
        code, message, stream, entry = fields[1:8:2]
        rest = fields[8:]
    return DeadLetter(
        LetterId(tag, int(ms), int(sequence)),
        _text(code),
        _text(message),
        _text(stream.rpartition(b":")[2]).removesuffix(DEFERRED),
        _text(entry),
        rest,
        read_envelope(entry, rest),
    )


def _text(data: bytes) -> str:
    return data.decode(errors="backslashreplace")
