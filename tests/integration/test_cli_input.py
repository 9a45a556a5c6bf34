"""Input lines: what becomes of odd ones, and how a file or pipe is read."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from askonce_queue.job import MAX_JOB_BYTES, CacheControl
from askonce_worker.cli.loop import Failed
from askonce_worker.cli.records import MAX_LINE_BYTES, Line, Record, read_csv, read_jsonl
from askonce_worker.cli.source import MAX_BATCH_BYTES, READ_AHEAD, Source
from tests.support.waiting import eventually


def csv_records(*rows: bytes | None, column: str | None = None) -> list[Record]:
    lines = (Line(i + 1, row) for i, row in enumerate(rows))
    return list(read_csv(lines, "t", column))


def json_records(lines: Iterator[Line]) -> Iterator[Record]:
    return read_jsonl(lines, "t")


def error_of(record: Record) -> tuple[str | int, str]:
    assert record.error is not None
    return record.id, record.error.code


def text_of(record: Record) -> str | None:
    assert record.job is not None
    return record.job.text


def test_rows_that_are_too_long_or_torn() -> None:
    records = csv_records(b"text", b"a", None, b"b", b'"torn', None, b'to here"', b"c")
    assert [record.id for record in records] == ["2", "3", "4", "5", "8"]
    assert error_of(records[1]) == ("3", "too_large")
    assert error_of(records[3]) == ("5", "too_large")
    assert text_of(records[4]) == "c"


def test_a_quote_that_never_ends_swallows_a_bounded_part() -> None:
    long = b"x" * (MAX_LINE_BYTES // 2)
    records = csv_records(b"text", b'"open', long, long, long, b"last")
    assert error_of(records[0])[1] == "undecodable"
    assert len(records) >= 2


def test_columns_by_name() -> None:
    rows = (b"a,id,b", b"1,x,2", b"3,,4", b"5,\xff,6")
    assert [(r.id, text_of(r)) for r in csv_records(*rows, column="b")] == [
        ("x", "2"),
        ("3", "4"),
        ("4", "6"),
    ]
    assert [text_of(r) for r in csv_records(b"id", b"x", column="id")] == ["x"]
    assert error_of(csv_records(b"text", b"\xff\xfe")[0]) == ("2", "invalid_input")
    with pytest.raises(Failed, match="did you mean 'text'"):
        csv_records(b"text,id", column="texts")


def test_job_ids_depend_on_line_and_content_only() -> None:
    def ids(*texts: str, task: str = "t") -> list[str | None]:
        lines = [Line(i + 1, f'{{"id": "u", "text": "{t}"}}'.encode()) for i, t in enumerate(texts)]
        return [record.job.id for record in read_jsonl(lines, task) if record.job is not None]

    assert ids("a", "a") == ids("a", "a")
    assert len(set(ids("a", "a"))) == 2
    assert ids("a", "b")[1] != ids("a", "a")[1]
    assert ids("a", task="other") != ids("a")


def test_ids_of_the_producer() -> None:
    given = ['"x"', "17", "-1", "null", "99999999999999999999", "1.5", '""', "true"]
    lines = [Line(i + 1, f'{{"id": {g}, "text": "a"}}'.encode()) for i, g in enumerate(given)]
    records = list(read_jsonl(lines, "t"))
    assert [record.id for record in records[:4]] == ["x", 17, -1, "4"]
    assert [record.error is None for record in records[:4]] == [True] * 4
    assert error_of(records[5]) == ("6", "undecodable")
    assert error_of(records[7]) == ("8", "undecodable")


async def test_a_file_is_read_in_bounded_batches(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    long = '{"text": "' + "x" * (MAX_JOB_BYTES // 2) + '"}\n'
    path.write_text('{"text": "a"}\n' * 1200 + long * 20 + '{"text": "end"}')
    source = Source(path, json_records)
    assert source.size == path.stat().st_size
    batches = [batch async for batch in source]
    assert sum(len(batch.records) for batch in batches) == 1221
    assert max(len(batch.records) for batch in batches) <= 500
    starts = [0, *(batch.offset for batch in batches)]
    assert starts[-1] == source.size
    assert max(b - a for a, b in itertools.pairwise(starts)) <= 2 * MAX_BATCH_BYTES


async def test_reading_ahead_is_bounded_and_ends_with_its_reader(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "a"}\n' * 50_000)
    read = 0

    def counted(lines: Iterator[Line]) -> Iterator[Record]:
        nonlocal read
        for record in read_jsonl(lines, "t"):
            read += 1
            yield record

    reading = Source(path, counted).__aiter__()
    first = await anext(reading)
    assert len(first.records) == 500
    most = 500 * (READ_AHEAD + 2)
    with pytest.raises(AssertionError):  # it does not run away
        await eventually(lambda: read > most, timeout_s=0.3)
    await reading.aclose()  # the thread ends: else the test fails


async def test_a_pipe_hands_on_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writing = asyncio.to_thread(path.open, "wb", 0)
    source, pipe = await asyncio.gather(
        asyncio.to_thread(lambda: Source(path, json_records)), writing
    )
    assert source.size is None
    batches = aiter(source)
    pipe.write(b'{"text": "a"}\n{"text": "b"}\n{"text"')
    assert [text_of(r) for r in (await anext(batches)).records] == ["a", "b"]
    pipe.write(b': "c"}')
    pipe.close()
    assert [text_of(r) for r in (await anext(batches)).records] == ["c"]
    with pytest.raises(StopAsyncIteration):
        await anext(batches)


def test_a_quote_that_is_never_closed_is_an_error() -> None:
    records = csv_records(b"text", b"a", b'"open', *[b"b"] * 50)
    assert [record.error is None for record in records] == [True, False]
    assert error_of(records[1])[1] == "undecodable"


def test_a_line_may_say_how_it_may_be_found_and_kept() -> None:
    line = b"""{"text": "hi", "tags": [{"their": "own"}], "askonce": {"tenant": "t", "tags": ["a"],
        "sources": ["policy"], "cache": {"no_cache": true, "ttl_s": 5}}}"""
    (record,) = read_jsonl([Line(1, line)], "intent")
    assert record.job is not None
    assert (record.job.tenant, record.job.all_tags) == ("t", ("a", "source:policy"))
    assert record.job.cache == CacheControl(no_cache=True, ttl_s=5)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ('{"max_age": 5}', "unknown field `max_age`"),
        ('{"cache": {"max_age_s": -5}}', "cache.max_age_s is from 0"),
        ('{"cache": {"max_age": 5}}', "unknown field `max_age`"),
    ],
)
def test_wishes_that_cannot_be_understood(wishes: str, message: str) -> None:
    (record,) = read_jsonl([Line(1, b'{"text": "hi", "askonce": %s}' % wishes.encode())], "t")
    assert record.error is not None
    assert message in record.error.message
