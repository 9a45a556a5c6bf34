"""Caches on traces: each counts right on small cases, and traces are what they say."""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askonce_loadtest.scale.document import memory_document
from askonce_loadtest.scale.hit_ratio import comparing
from askonce_loadtest.scale.hit_ratio.comparing import Comparison, compare
from askonce_loadtest.scale.hit_ratio.policies import BEST, OURS, belady, lru, s3_fifo
from askonce_loadtest.scale.hit_ratio.traces import Trace, read_trace, synthetic_traces
from askonce_queue.errors import ConfigError


def best_by_trying(requests: Sequence[int], room: int) -> int:
    """The most hits that any choice of what to keep gives."""

    @functools.cache
    def most(at: int, kept: frozenset[int]) -> int:
        if at == len(requests):
            return 0
        key = requests[at]
        if key in kept:
            return 1 + most(at + 1, kept)
        choices = [kept]
        if len(kept) < room:
            choices.append(kept | {key})
        choices += [kept - {old} | {key} for old in kept]
        return max(most(at + 1, choice) for choice in choices)

    nothing: frozenset[int] = frozenset()
    return most(0, nothing)


@given(st.lists(st.integers(0, 4), max_size=12), st.integers(1, 3))
def test_belady_is_the_best_possible(requests: list[int], room: int) -> None:
    assert belady(requests, room) == best_by_trying(tuple(requests), room)


@given(st.lists(st.integers(0, 30), max_size=300), st.integers(8, 20))
def test_no_cache_beats_belady(requests: list[int], room: int) -> None:
    best = belady(requests, room)
    assert s3_fifo(requests, room) <= best
    assert lru(requests, room) <= best


def test_lru_forgets_the_least_recently_used() -> None:
    assert lru([1, 2, 1, 3, 2], 2) == 1  # 3 drops 2, so only the second 1 hits
    assert lru([1, 2, 1, 3, 1], 2) == 2


def test_room_for_all_misses_only_first_asks() -> None:
    requests = [1, 2, 3] * 10 + [4] * 5
    assert s3_fifo(requests, 100) == lru(requests, 100) == belady(requests, 100) == 31


def test_synthetic_traces_are_repeatable_and_differ() -> None:
    once, again = synthetic_traces(5_000, 1), synthetic_traces(5_000, 1)
    assert once == again
    assert [len(trace.requests) for trace in once] == [5_000] * 3
    assert len({tuple(trace.requests) for trace in once}) == 3
    still, drifting, one_hit = once
    top = max(set(still.requests), key=still.requests.count)
    assert drifting.requests.count(top) < still.requests.count(top) / 2
    assert one_hit.distinct > still.distinct * 2


def test_trace_files_have_keys_or_texts(tmp_path: Path) -> None:
    plain = tmp_path / "a.jsonl"
    plain.write_text('{"t": 1, "key": 7}\n{"key": 9}\n{"key": 7}\n', encoding="utf-8")
    zipped = tmp_path / "b.jsonl.gz"
    with gzip.open(zipped, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in ("x", "y", "x"))
    assert read_trace(plain) == Trace("a", [0, 1, 0])
    assert read_trace(zipped) == Trace("b", [0, 1, 0])
    assert read_trace(plain, most=2).requests == [0, 1]


@pytest.mark.parametrize("line", ["nonsense", "{}", '{"key": [1]}'])
def test_bad_lines_are_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f'{{"key": 1}}\n{line}\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="line 2"):
        read_trace(path)


def test_an_empty_or_broken_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.touch()
    with pytest.raises(ConfigError, match="found none"):
        read_trace(path)
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(b"no gzip")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(broken)


def test_without_packages_there_is_a_reason_and_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"theine": "not installed"}
    monkeypatch.setattr(
        comparing, "available_policies", lambda: ({OURS: s3_fifo, BEST: belady}, missing)
    )
    found = compare([Trace("t", [1, 2, 1, 2] * 50)], lambda _: None)
    document = memory_document(found, missing, {})
    assert (document.met, document.worst_behind_points) == (None, None)
    assert document.missing == missing


def test_the_goal_is_judged_where_we_are_worst() -> None:
    one = Comparison("t", 10, 5, 5, {OURS: 0.5, "theine": 0.505}, 0.5)
    far = Comparison("t", 10, 5, 5, {OURS: 0.5, "theine": 0.52}, 2.0)
    assert memory_document([one], {}, {}).met is True
    assert memory_document([one, far], {}, {}).met is False
