"""What is said of a workload is what a plain count says."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from askonce_loadtest.__main__ import app
from askonce_loadtest.workloads.describe import MAX_BINS, describe
from askonce_loadtest.workloads.lines import FileError
from askonce_loadtest.workloads.request import Request
from askonce_loadtest.workloads.shown import print_description

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

REQUESTS = st.lists(
    st.builds(
        Request,
        t=st.floats(0, 1e4),
        text=st.sampled_from("abcdefgh"),
        task=st.sampled_from(["x", "y"]),
        lane=st.sampled_from(["interactive", "bulk"]),
    ),
    min_size=1,
    max_size=80,
).map(lambda requests: sorted(requests, key=lambda request: request.t))


@given(requests=REQUESTS, ttl_s=st.floats(0, 1e4))
def test_the_figures_are_those_of_a_plain_count(requests: list[Request], ttl_s: float) -> None:
    found = describe(requests, ttl_s=ttl_s)
    counts = Counter((request.task, request.text) for request in requests)
    total = len(requests)
    assert found.requests == total
    assert found.distinct == len(counts)
    assert found.seconds == requests[-1].t - requests[0].t
    assert found.best_hit_rate == pytest.approx(1 - len(counts) / total)
    assert found.one_hit_share == sum(1 for count in counts.values() if count == 1) / total
    assert found.top_share[1] == max(counts.values()) / total
    assert found.top_share[1_000] == pytest.approx(1)
    assert found.tasks == Counter(request.task for request in requests)
    assert found.lanes == Counter(request.lane for request in requests)
    assert len(found.rates_per_s) <= MAX_BINS
    assert sum(found.rates_per_s) * found.bin_s == pytest.approx(total)
    made: dict[tuple[str, str], float] = {}
    hits = 0
    for request in requests:
        question = (request.task, request.text)
        if question in made and request.t - made[question] <= ttl_s:
            hits += 1
        else:
            made[question] = request.t
    assert found.best_hit_rate_ttl == hits / total
    print_description(Console(file=io.StringIO(), width=80), "w", found)


def test_who_knows_paraphrases_can_hit_more() -> None:
    requests = [Request(0, text, "x", key=text in "cd") for text in "abcd"]
    found = describe(requests)
    assert found.best_hit_rate == 0
    assert found.best_hit_rate_by_meaning == 0.5
    assert describe([*requests, Request(0, "e", "x")]).best_hit_rate_by_meaning is None


def test_nothing_is_not_a_workload() -> None:
    with pytest.raises(FileError, match="no requests"):
        describe([])


def run(*args: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["workload", *args])
    assert done.exit_code == code, done.output
    return done.stdout


@pytest.mark.parametrize(
    "args",
    [
        ("zipf", "--drift-every-s", "0.5", "--exponent", "0.8"),
        ("bursts", "--every-s", "1", "--length-s", "0.2"),
        ("one-hit", "--share", "0.5"),
        ("paraphrase", "--share", "0.5"),
        ("trace", str(DATA / "trace_web_a.jsonl.gz"), "--time-factor", "100"),
        ("trace", str(DATA / "trace_recs_order_a.jsonl.gz"), "--rate", "100"),
        ("trace", str(DATA / "arrivals_llm_code.jsonl.gz"), "--distinct", "100"),
    ],
)
def test_every_kind_is_written_described_and_repeated(tmp_path: Path, args: list[str]) -> None:
    one, same = tmp_path / "one.jsonl", tmp_path / "same.jsonl"
    for path in (one, same):
        texts = ("--texts", str(DATA / "banking77.jsonl.gz"))
        run(*args, "--requests", "3000", "--task", "intent", *texts, "--out", str(path))
    assert one.read_bytes() == same.read_bytes()
    found = json.loads(run("describe", str(one), "--json", "--ttl", "60"))
    assert found["requests"] == 3_000
    assert found["tasks"] == {"intent": 3_000}
    assert 0 < found["best_hit_rate_ttl"] <= found["best_hit_rate"] < 1
    assert "best possible hit rate" in run("describe", str(one))


def test_a_real_trace_keeps_its_repeats(tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl.gz"
    run("trace", str(DATA / "trace_web_a.jsonl.gz"), "--out", str(path))
    found = json.loads(run("describe", str(path), "--json"))
    # As measured by whoever brought the trace.
    assert found["requests"] == 16_988
    assert found["distinct"] == 1_620
    assert found["best_hit_rate"] == pytest.approx(0.905, abs=0.001)


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["workload", "trace", str(tmp_path / "none"), "--out", str(tmp_path / "w.jsonl")]
    )
    assert done.exit_code == 2
    assert "cannot be read" in done.stderr
    assert list(tmp_path.iterdir()) == []
    assert run("bursts", "--length-s", "30", "--out", "-", code=2) == ""
