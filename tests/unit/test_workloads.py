"""Workloads: exact, seeded, the same when they are read as when they were written."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askonce_loadtest.workloads.ask import Arrivals, Ask, steady
from askonce_loadtest.workloads.bursts import Bursts, bursts
from askonce_loadtest.workloads.lines import FileError
from askonce_loadtest.workloads.one_hit import one_hit
from askonce_loadtest.workloads.paraphrase import MAX_PHRASINGS, paraphrases, phrased
from askonce_loadtest.workloads.request import (
    Request,
    opened_requests,
    requests_of,
    write_requests,
)
from askonce_loadtest.workloads.texts import FileTexts, synthetic
from askonce_loadtest.workloads.trace import trace
from askonce_loadtest.workloads.zipf import Drift, zipf, zipf_ranks


def ranks(distinct: int = 50, seed: int = 1) -> Iterator[int]:
    next_rank = zipf_ranks(distinct, 1.05, Random(seed))
    while True:
        yield next_rank()


@pytest.mark.parametrize("exponent", [0.0, 0.68, 1.05, 2.0])
def test_ranks_follow_zipf_s_law(exponent: float) -> None:
    draws, distinct = 100_000, 20
    next_rank = zipf_ranks(distinct, exponent, Random(1))
    counts = Counter(next_rank() for _ in range(draws))
    total = sum(rank**-exponent for rank in range(1, distinct + 1))
    for rank in range(distinct):
        expected = draws * (rank + 1) ** -exponent / total
        # Five standard deviations of a binomial count.
        assert abs(counts[rank] - expected) <= 5 * expected**0.5
    assert counts.total() == draws


@given(
    distinct=st.integers(1, 1_000), every=st.floats(0.1, 100), step=st.integers(0, 50),
    t=st.floats(0, 1e6),
)  # fmt: skip
def test_drift_reorders_the_questions_and_loses_none(
    distinct: int, every: float, step: int, t: float
) -> None:
    drift = Drift(every, step)
    keys = [drift.key(rank, t, distinct) for rank in range(distinct)]
    assert sorted(keys) == list(range(distinct))
    assert [drift.key(rank, 0.0, distinct) for rank in range(distinct)] == list(range(distinct))


def test_drift_brings_the_least_asked_to_the_top() -> None:
    drift = Drift(every_s=10, step=2)
    assert [drift.key(rank, 10.0, 6) for rank in range(6)] == [4, 5, 0, 1, 2, 3]
    assert drift.key(0, 9.99, 6) == 0
    next_time = iter([0.0, 9.0, 10.0, 25.0]).__next__
    stream = zipf(next_time, lambda: 0, 6, drift)
    assert [next(stream).key for _ in range(4)] == [0, 0, 4, 2]


@pytest.mark.parametrize("arrivals", ["poisson", "even"])
def test_arrivals_have_their_rate(arrivals: Arrivals) -> None:
    next_time = steady(200.0, arrivals, Random(1))
    times = [next_time() for _ in range(20_000)]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(100, rel=0.05)
    gaps = [after - before for before, after in pairwise(times)]
    variance = sum((gap - 1 / 200) ** 2 for gap in gaps) / len(gaps)
    # The gaps of a Poisson process vary as much as they are long on average.
    assert variance * 200**2 == pytest.approx(1 if arrivals == "poisson" else 0, abs=0.1)


def test_bursts_multiply_the_rate_and_ask_a_question_of_their_own() -> None:
    plan = Bursts(every_s=10, length_s=2, factor=5, hot=0.5)
    stream = bursts(steady(100.0, "even", Random(1)), ranks().__next__, 50, plan, Random(2))
    asks = list(itertools.takewhile(lambda ask: ask.t < 100, stream))
    in_burst = [ask for ask in asks if ask.t % 10 >= 8]
    assert len(in_burst) == pytest.approx(10 * 2 * 500, rel=0.01)
    assert len(asks) - len(in_burst) == pytest.approx(10 * 8 * 100, rel=0.01)
    hot = [ask for ask in asks if ask.key >= 50]
    assert all(ask.key == 50 + int(ask.t / 10) and ask.t % 10 >= 8 for ask in hot)
    assert len(hot) == pytest.approx(len(in_burst) / 2, rel=0.05)
    assert [ask.t for ask in asks] == sorted(ask.t for ask in asks)


def test_one_hit_wonders_are_asked_once() -> None:
    stream = one_hit(steady(1.0, "even", Random(1)), ranks().__next__, 50, 0.3, Random(2))
    counts = Counter(ask.key for ask in islice(stream, 10_000))
    wonders = [key for key in counts if key >= 50]
    assert all(counts[key] == 1 for key in wonders)
    assert len(wonders) == pytest.approx(3_000, rel=0.1)
    nothing_else = one_hit(steady(1.0, "even", Random(1)), ranks().__next__, 50, 1.0, Random(2))
    assert [ask.key for ask in islice(nothing_else, 3)] == [50, 51, 52]


def test_paraphrases_are_other_texts_of_the_same_question() -> None:
    stream = paraphrases(steady(1.0, "even", Random(1)), ranks().__next__, 20, 0.4, Random(2))
    requests = list(
        islice(requests_of(stream, synthetic(8, 1), task="x", keyed=True, rng=Random(1)), 5_000)
    )
    wordings: dict[int | None, set[str]] = {}
    for request in requests:
        wordings.setdefault(request.key, set()).add(request.text)
    assert max(map(len, wordings.values())) == 21
    assert len({request.text for request in requests}) == sum(map(len, wordings.values()))
    assert len({phrased("what is my Balance", n) for n in range(MAX_PHRASINGS + 1)}) == (
        MAX_PHRASINGS + 1
    )


@given(keys=st.lists(st.integers(0, 10**7), unique=True, max_size=50), words=st.integers(1, 40))
def test_made_up_texts_differ_and_repeat(keys: list[int], words: int) -> None:
    texts = synthetic(words, 7)
    assert len({texts(key) for key in keys}) == len(keys)
    assert [texts(key) for key in keys] == [synthetic(words, 7)(key) for key in keys]


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.txt"])
def test_texts_of_a_file_are_given_to_keys_one_to_one(tmp_path: Path, name: str) -> None:
    known = [f"text {n}" for n in range(10)]
    path = tmp_path / name
    if name.endswith(".txt"):
        path.write_text("\n".join([*known, known[0], ""]))
    else:
        requests = (Request(0, text, "x") for text in [*known, known[0]])
        write_requests(path, requests, 100, lambda _: None)
    texts = FileTexts(path, 1)
    assert sorted(texts(key) for key in range(10)) == known
    assert [texts(key) for key in range(10)] != known
    assert len({texts(key) for key in range(25)}) == 25
    assert texts.variants == 15


def lines_of(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def test_a_trace_keeps_its_order_its_repeats_and_its_times(tmp_path: Path) -> None:
    path = lines_of(
        tmp_path / "trace.jsonl",
        {"t": 100, "key": "GET /a"},
        {"t": 101, "key": 7, "in": 3},
        {"t": 110, "key": "GET /a"},
    )
    asks = list(trace(path, time_factor=10, next_time=None, next_rank=None))
    assert asks == [Ask(0.0, 0), Ask(0.1, 1), Ask(1.0, 0)]
    times = iter([1.0, 2.0, 3.0])
    other = trace(path, time_factor=1, next_time=times.__next__, next_rank=lambda: 5)
    assert list(other) == [Ask(1.0, 5), Ask(2.0, 5), Ask(3.0, 5)]
    own = lines_of(tmp_path / "own.jsonl", {"t": 0, "text": "hello"})
    stream = trace(own, time_factor=1, next_time=None, next_rank=None)
    (request,) = requests_of(stream, synthetic(5, 1), task="x", rng=Random(1))
    assert request.text == "hello"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"key": 1}], "line 1: no t: give --rate"),
        ([{"t": 1}], "line 1: no key: give --distinct"),
        ([{"t": 2, "key": 1}, {"t": 1, "key": 1}], "line 2: t goes back"),
        ([{"t": 0, "key": 1}, {"t": "x", "key": 1}], "line 2: Expected `float | null`"),
    ],
)
def test_a_trace_that_cannot_be_used_says_where_and_what_to_do(
    tmp_path: Path, lines: list[object], message: str
) -> None:
    path = lines_of(tmp_path / "trace.jsonl", *lines)
    with pytest.raises(FileError, match=message):
        list(trace(path, time_factor=1, next_time=None, next_rank=None))


def some_requests(seed: int) -> Iterator[Request]:
    rng = Random(seed)
    asks = zipf(steady(100.0, "poisson", rng), zipf_ranks(20, 1.0, rng), 20, Drift())
    return requests_of(asks, synthetic(5, seed), task="x", bulk=0.3, rng=Random(seed))


@pytest.mark.parametrize("name", ["w.jsonl", "w.jsonl.gz"])
def test_a_seed_makes_the_same_file_and_it_reads_as_it_was(tmp_path: Path, name: str) -> None:
    for folder, seed in (("one", 1), ("same", 1), ("other", 2)):
        (tmp_path / folder).mkdir()
        assert write_requests(tmp_path / folder / name, some_requests(seed), 2_500, print) == 2_500
    one, same, other = ((tmp_path / folder / name) for folder in ("one", "same", "other"))
    assert one.read_bytes() == same.read_bytes() != other.read_bytes()
    with opened_requests(one) as found:
        assert list(found) == list(islice(some_requests(1), 2_500))
    assert {path.name for path in one.parent.iterdir()} == {name}
    if name.endswith(".gz"):
        assert one.read_bytes()[4:8] == bytes(4)  # no time of writing


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    path.write_text("old")

    def failing() -> Iterator[Request]:
        yield Request(0, "x", "x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_requests(path, failing(), 10, lambda _: None)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_gzip_is_an_error_for_people(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl.gz"
    write_requests(path, some_requests(1), 5_000, lambda _: None)
    content = bytearray(path.read_bytes())
    for damaged in (content[: len(content) // 2], content[:200] + bytes(500), b"plain"):
        path.write_bytes(damaged)
        with pytest.raises(FileError, match=r"w\.jsonl\.gz"), opened_requests(path) as found:
            list(found)
