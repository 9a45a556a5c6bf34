"""`scale` on tiny amounts: the mix is kept, a real cluster is used, files and exit codes are right.

Costs are never judged here: a shared machine decides them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import uvloop

from askonce_loadtest.scale.axes import make_axes
from askonce_loadtest.scale.document import COLUMNS, axis_document
from askonce_loadtest.scale.measuring import measure_axis
from askonce_loadtest.scale.point import Point, text_of

TINY = Point(keys=1_000, jobs=400, runs=1)


@pytest.mark.parametrize(("name", "values"), [("keys", [1_000, 2_000]), ("shards", [1, 3])])
def test_an_axis_is_measured_with_the_mix_it_promises(name: str, values: list[int]) -> None:
    axis = make_axes(TINY, most_keys=10_000)[name]
    points = [(at, msgspec.structs.replace(TINY, **{name: at})) for at in values]
    axis = axis._replace(points=points)
    figures = uvloop.run(measure_axis(axis, lambda _: None))
    assert [point["at"] for point in figures] == values
    for point in figures:
        assert point["model_share"] == pytest.approx(0.01)
        assert point["memory_share"] == pytest.approx(0.70, abs=0.06)
        assert point["memory_share"] + point["store_share"] == pytest.approx(0.99)
        assert point["cost_us_per_job"] == pytest.approx(
            point["worker_cpu_us_per_job"] + point["store_cpu_us_per_job"]
        )
        assert point["fill_keys_per_s"] > 0
    document = json.loads(msgspec.json.encode(axis_document(axis, figures, {"processor": "x"})))
    assert (document["kind"], document["axis"]) == ("scale", name)
    assert all(column in document["points"][0] for column in COLUMNS)


def test_texts_are_distinct_and_as_long_as_asked() -> None:
    for size in (24, 75, 4_000):
        texts = [text_of(number, size) for number in (0, 1, 10**9 * 10**6 + 7)]
        assert len(set(texts)) == 3
        assert {len(text.encode()) for text in texts} == {size}


def command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "askonce_loadtest", "scale", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "TMPDIR": str(folder)},
    )


def test_the_memory_axis_needs_no_store_and_writes_its_file(tmp_path: Path) -> None:
    trace = tmp_path / "mine.jsonl"
    trace.write_text("".join(f'{{"key": {n % 90}}}\n' for n in range(500)), encoding="utf-8")
    out = tmp_path / "results"
    done = command(
        "--quick", "--only", "memory", "--trace", str(trace), "--out", str(out), folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "Belady" in done.stdout
    document = json.loads((out / "scale-memory.json").read_text(encoding="utf-8"))
    assert document["kind"] == "hit-ratio"
    assert {one["trace"] for one in document["comparisons"]} >= {"mine", "zipf"}
    for one in document["comparisons"]:
        assert max(one["ratios"].values()) == one["ratios"]["Belady"]


def test_an_axis_that_there_is_not_is_named(tmp_path: Path) -> None:
    done = command("--only", "keys,moons", folder=tmp_path)
    assert done.returncode == 2
    assert "moons" in done.stderr
    assert "hits" in done.stderr
