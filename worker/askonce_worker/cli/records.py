"""One input line → one record: a job to ask, or the error that stands in its place."""

from __future__ import annotations

import csv
import difflib
import hashlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple, cast

import msgspec

from askonce_queue.errors import InvalidJob
from askonce_queue.job import MAX_JOB_BYTES, CacheControl, Job, encode_payload
from askonce_queue.reply import ErrorCode, ErrorInfo
from askonce_worker.cli.loop import Failed

Format = Literal["jsonl", "csv"]

MAX_LINE_BYTES = 8 * MAX_JOB_BYTES
"""A longer line is not read into memory. JSON may write one byte of text as six."""
MAX_SHOWN_CHARS = 200


class Line(NamedTuple):
    """One line of input, without its end; `data` is None for one beyond `MAX_LINE_BYTES`."""

    number: int
    data: bytes | None


class Record(NamedTuple):
    """What one line (JSONL) or row (CSV) asks. Exactly one of `job` and `error` is given.

    `id` is the producer's own, for the output; else the number of the line, from 1.
    """

    id: str | int
    line: int
    job: Job | None = None
    error: ErrorInfo | None = None


class _Named(msgspec.Struct):
    """What can be known of a line whose other fields are wrong."""

    id: str | int | None = None


class _Wishes(msgspec.Struct, forbid_unknown_fields=True):
    """What a line asks of askonce, apart from its other fields, which are the user's own."""

    tenant: str = ""
    tags: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    cache: CacheControl | None = None
    deadline_s: float | None = None


class _JsonLine(_Named):
    """What of a line counts; other fields are nobody's business."""

    text: str | None = None
    messages: list[dict[str, Any]] | None = None
    askonce: _Wishes | None = None


_NO_WISHES = _Wishes()
_decode_line = msgspec.json.Decoder(_JsonLine).decode
_decode_id = msgspec.json.Decoder(_Named).decode


def read_jsonl(
    lines: Iterable[Line], task: str, deadline_s: float | None = None
) -> Iterator[Record]:
    """Read one JSON object a line: `text` or `messages`, optionally `id` and `askonce`.

    `askonce` is an object with any of `tenant`, `tags`, `sources`, `cache` (see `CacheControl`) and
    `deadline_s`, which is `deadline_s` where a line has none.
    """
    for number, data in lines:
        if data is None:
            yield _too_long(number)
            continue
        try:
            line = _decode_line(data)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            what = str(error) if data.strip() else "the line is empty"
            yield _bad(_id_of(data), number, "undecodable", what)
            continue
        wishes = line.askonce or _NO_WISHES
        job = Job(
            task=task,
            text=line.text,
            messages=line.messages,
            tenant=wishes.tenant,
            tags=wishes.tags,
            sources=wishes.sources,
            cache=wishes.cache,
            deadline_s=deadline_s if wishes.deadline_s is None else wishes.deadline_s,
        )
        yield _record(line.id, number, job)


def read_csv(
    lines: Iterable[Line], task: str, column: str | None, deadline_s: float | None = None
) -> Iterator[Record]:
    """Read CSV with a header: the input is in `column` ("text" if None), the id in "id", if any.

    Raises `Failed` when there is no such column.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    unread: list[int] = []
    # Strict: a quote that is never closed is an error, not the text of all lines after it.
    rows = csv.reader(_text_of(lines, unread), strict=True)
    try:
        header = next(rows, cast("list[str]", []))
    except csv.Error as error:
        raise Failed(f"the CSV's header cannot be read: {error}") from error
    at = _column(header, column)
    id_at = header.index("id") if "id" in header and header.index("id") != at else len(header)
    while True:
        number = rows.line_num + 1  # a row may span lines: it is named by its first
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield _bad(None, number, "undecodable", f"not CSV: {error}")
            continue
        record_id = row[id_at] or None if id_at < len(row) else None
        if unread:
            unread.clear()
            yield _too_long(number)
        elif at >= len(row):
            yield _bad(record_id, number, "undecodable", _short(row, header))
        else:
            job = Job(task=task, text=row[at], deadline_s=deadline_s)
            yield _record(record_id, number, job)


def _record(record_id: str | int | None, number: int, job: Job) -> Record:
    """Check a job as a producer's client would, so that one bad line stops no batch."""
    try:
        payload = encode_payload(job, sys.maxsize)
    except InvalidJob as error:
        return _bad(record_id, number, "invalid_input", str(error))
    if len(payload) > MAX_JOB_BYTES:
        size = f"the job has {len(payload)} bytes, more than the limit of {MAX_JOB_BYTES}"
        return _bad(record_id, number, "too_large", size)
    if not (job.text or job.messages):
        return _bad(record_id, number, "invalid_input", "the input is empty")
    # The line's number makes it unique; the digest makes a changed line another job, so that it
    # cannot be given the reply that an interrupted run left unread.
    if job.deadline_s is not None:
        payload += f"\n{job.deadline_s}".encode()
    job.id = f"{number}-{hashlib.blake2b(payload, digest_size=8).hexdigest()}"
    return Record(_shown_id(record_id, number), number, job)


def _bad(record_id: str | int | None, number: int, code: ErrorCode, message: str) -> Record:
    shown = _shown_id(record_id, number)
    return Record(shown, number, error=ErrorInfo(code, f"line {number}: {message}"))


def _too_long(number: int) -> Record:
    return _bad(None, number, "too_large", f"the line has more than {MAX_LINE_BYTES} bytes")


def _shown_id(record_id: str | int | None, number: int) -> str | int:
    """The producer's id if it has one that can be written, else the number of the line."""
    if record_id is None or (isinstance(record_id, str) and not _is_unicode(record_id)):
        return str(number)
    return record_id


def _id_of(data: bytes) -> str | int | None:
    try:
        return _decode_id(data).id
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text_of(lines: Iterable[Line], unread: list[int]) -> Iterator[str]:
    """Lines for the CSV reader; bytes that are no UTF-8 become what no job accepts."""
    for number, data in lines:
        if data is None:
            unread.append(number)
        yield (data or b"").decode(errors="surrogateescape") + "\n"


def _column(header: list[str], column: str | None) -> int:
    if (wanted := column or "text") in header:
        return header.index(wanted)
    if not header:
        raise Failed("the CSV is empty: expected a header with the names of the columns")
    close = difflib.get_close_matches(wanted, header, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    ask = "" if column else "; name the column of the input with --column"
    shown = ", ".join(header)[:MAX_SHOWN_CHARS]
    raise Failed(f"the CSV has no column {wanted!r}{hint}; its columns: {shown}{ask}")


def _short(row: list[str], header: list[str]) -> str:
    if not row:
        return "the line is empty"
    return f"expected {len(header)} columns, got {len(row)}"
