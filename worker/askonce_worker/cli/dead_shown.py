"""How dead letters are shown: as JSON, as a line, as a table, as a page of their own.

What stands in a letter was written by anybody. Nothing of it reaches a terminal unescaped.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator, Sequence

import msgspec
from rich import box
from rich.table import Table
from rich.text import Text

from askonce_worker.cli.times import age, iso
from askonce_worker.dead_letters import DeadLetter

COLUMNS = ("id", "age", "code", "task", "client/job", "message")
CUT = ("client/job", "message")
TASK_WIDTH = 20
_ENVELOPE = {b"v", b"c", b"i", b"p", b"r", b"n", b"g", b"d"}


class LetterJson(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A dead letter for programs. A stable interface: extend, don't rename.

    The payload is in one of three: `payload` if it is JSON, `payload_text` if it is text, else
    `payload_hex`. `fields` are those of the job's entry that mean nothing to us. `obstacle` says
    why it cannot be retried.
    """

    id: str
    at: str | None
    age_s: float
    code: str
    message: str
    lane: str
    entry: str
    task: str
    client: str
    job: str
    tenant: str
    tags: tuple[str, ...]
    enqueued_at: str | None = None
    deadline_at: str | None = None
    reply_to: str | None = None
    obstacle: str = ""
    payload: msgspec.Raw | None = None
    payload_text: str | None = None
    payload_hex: str | None = None
    fields: dict[str, str] = {}


def as_json(letter: DeadLetter, now_ms: int) -> str:
    """One JSON object, without line breaks."""
    envelope = letter.envelope
    kind, payload = _payload(letter)
    raw = msgspec.Raw(msgspec.json.format(payload, indent=-1)) if kind == "JSON" else None
    encoded = msgspec.json.encode(
        LetterJson(
            id=str(letter.id),
            at=iso(letter.id.ms),
            age_s=_age_s(letter, now_ms),
            code=letter.code,
            message=letter.message,
            lane=letter.lane,
            entry=letter.entry,
            task=letter.task,
            client=envelope.client,
            job=envelope.job_id,
            tenant=envelope.tenant,
            tags=envelope.tags,
            enqueued_at=iso(_enqueued_ms(letter)),
            deadline_at=iso(_deadline_ms(letter)),
            reply_to=letter.reply_to or None,
            obstacle=letter.obstacle,
            payload=raw,
            payload_text=payload.decode() if kind == "text" else None,
            payload_hex=payload.hex() if kind == "hex" else None,
            fields=_other_fields(letter),
        )
    )
    return _printable_json(encoded.decode())


def as_line(letter: DeadLetter, now_ms: int) -> str:
    """One line, its columns apart by tabs."""
    return "\t".join(_columns(letter, now_ms))


def as_table(letters: Sequence[DeadLetter], now_ms: int) -> Table:
    """A table for a terminal. Where it is too wide, clients and messages are cut, never ids."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in COLUMNS:
        # Cut rather than wrapped, although Rich finds room in columns that may be wrapped.
        table.add_column(
            name, no_wrap=name not in CUT, max_width=TASK_WIDTH if name == "task" else None
        )
    for letter in letters:
        columns = _columns(letter, now_ms)
        table.add_row(*(Text(column, no_wrap=True, overflow="ellipsis") for column in columns))
    return table


def as_page(letter: DeadLetter, now_ms: int) -> Iterator[tuple[str, str]]:
    """Everything about one letter: names and values, the payload last and maybe of many lines."""
    envelope = letter.envelope
    kind, payload = _payload(letter)
    rows = {
        "id": str(letter.id),
        "buried": f"{_local(letter.id.ms)} ({_age(letter, now_ms)} ago)",
        "code": letter.code,
        "message": letter.message,
        "task": letter.task,
        "client": envelope.client,
        "job": envelope.job_id,
        "tenant": envelope.tenant,
        "tags": ", ".join(envelope.tags),
        "reply to": letter.reply_to,
        "lane": letter.lane,
        "enqueued": _local(_enqueued_ms(letter)),
        "deadline": _local(_deadline_ms(letter)),
        **{f"field {name}": value for name, value in _other_fields(letter).items()},
        "retry": f"not possible: {letter.obstacle}" if letter.obstacle else "possible",
        "payload": f"{len(payload):,} bytes, {kind}" if payload else "none",
    }
    for name, value in rows.items():
        if value:
            yield printable(name), printable(value)
    if kind == "JSON":
        text = msgspec.json.format(payload, indent=2).decode()
        yield "", "\n".join(_printable_json(line) for line in text.split("\n"))
    elif payload:
        text = payload.hex(" ", 4) if kind == "hex" else payload.decode()
        yield "", "\n".join(printable(line) for line in text.split("\n"))


def printable(text: str) -> str:
    """`text` with everything escaped that could move a cursor, hide, or break a line."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _printable_json(line: str) -> str:
    """`printable` for a line of JSON, which stays the same: only its texts have such characters."""
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)


def _columns(letter: DeadLetter, now_ms: int) -> list[str]:
    envelope = letter.envelope
    origin = f"{envelope.client}/{envelope.job_id}" if envelope.client or envelope.job_id else ""
    columns = (
        str(letter.id),
        _age(letter, now_ms),
        letter.code,
        letter.task,
        origin,
        letter.message,
    )
    return [printable(column) or "-" for column in columns]


def _payload(letter: DeadLetter) -> tuple[str, bytes]:
    """What the payload is (JSON, text or hex), and the payload."""
    payload = letter.payload
    try:
        msgspec.json.decode(payload)
    except (ValueError, RecursionError):
        pass
    else:
        return "JSON", payload
    try:
        payload.decode()
    except UnicodeDecodeError:
        return "hex", payload
    return "text" if payload else "", payload


def _other_fields(letter: DeadLetter) -> dict[str, str]:
    """The fields of the entry that are not in the envelope; all, when that cannot be read."""
    known = {b"p"} if letter.obstacle else _ENVELOPE
    return {
        name.decode(errors="backslashreplace"): value.decode(errors="backslashreplace")
        for name, value in zip(letter.fields[::2], letter.fields[1::2], strict=False)
        if name not in known
    }


def _enqueued_ms(letter: DeadLetter) -> int | None:
    if letter.envelope.origin_ms:
        return letter.envelope.origin_ms  # the entry is newer: the job was deferred
    try:
        return int(letter.entry.partition("-")[0])
    except ValueError:
        return None


def _deadline_ms(letter: DeadLetter) -> int | None:
    """When the deadline passed, Unix ms; None without one."""
    enqueued, after = _enqueued_ms(letter), letter.envelope.deadline_ms
    return enqueued + after if enqueued is not None and after else None


def _age_s(letter: DeadLetter, now_ms: int) -> float:
    return max(0, now_ms - letter.id.ms) / 1000


def _age(letter: DeadLetter, now_ms: int) -> str:
    return age(_age_s(letter, now_ms))


def _local(ms: int | None) -> str:
    """A time for people, as on their clock."""
    if ms is None:
        return ""
    try:
        moment = dt.datetime.fromtimestamp(ms / 1000).astimezone()
    except (ValueError, OverflowError, OSError):
        return str(ms)
    return moment.isoformat(sep=" ", timespec="seconds")
