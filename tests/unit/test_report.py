"""The report: one page without anything from outside, PNGs, and the README's section."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner

from askonce_loadtest.__main__ import app
from askonce_loadtest.bench.figures import FIGURES
from askonce_loadtest.reporting.drawing import png, svg
from askonce_loadtest.reporting.readme import BEGIN, END
from askonce_loadtest.reporting.results import read_results

ROOT = Path(__file__).parents[2]
MACHINE = {"processor": "imagined <b>", "processors": 2, "load_1min_before": 9.0}
BENCH: dict[str, Any] = {
    "kind": "bench",
    **{figure.name: 1.5 for figure in FIGURES},
    "goals": {"worker_to_floor": {"goal": "≤ 2.5", "met": True}},
    "machine": MACHINE,
    "runs": [{figure.name: value for figure in FIGURES} for value in (1.0, 2.0)],
}
POINT = {
    "cost_us_per_job": 30.0,
    "worker_cpu_us_per_job": 14.0,
    "store_cpu_us_per_job": 16.0,
    "jobs_per_s": 50_000.0,
    "store_client_commands_per_job": 0.02,
    "memory_share": 0.7,
    "store_share": 0.29,
    "model_share": 0.01,
}
SCALE = {
    "kind": "scale",
    "axis": "keys",
    "title": "Distinct keys in the store",
    "unit": "keys",
    "points": [{"at": 10**power, **POINT} for power in (3, 4, 5)],
    "spread": 1.6,
    "goal": "≤ 1.5",
    "met": False,
    "machine": MACHINE,
    "plan": {},
}
RATIOS = {"askonce": 0.5, "LRU": 0.4, "Belady": 0.6}
MEMORY = {
    "kind": "hit-ratio",
    "comparisons": [
        {"trace": "zipf", "room": room, "distinct": 500, "ratios": RATIOS, "behind_points": None}
        for room in (64, 100)
    ],
    "worst_behind_points": None,
    "goal": "≤ 1",
    "met": None,
    "missing": {"theine": "not installed"},
    "versions": {},
}
LATENCY = {"count": 3, "mean": 2.0, "p50": 1.0, "p90": 2.0, "p99": 3.0, "p99_9": 4.0, "max": 5.0}
RUN = {
    "answered_per_s": 99.0,
    "latency_ms": LATENCY,
    "latency_us": {"max_us": 5000, "sum_us": 9000, "counts": [[1000, 2], [5000, 1]]},
    "hit_rate": 0.9,
}
WORKLOAD: dict[str, Any] = {"workload": {"file": "w"}, "workers": 1, "model_latency_ms": 50.0}
SEARCH: dict[str, Any] = WORKLOAD | {
    "search": {
        "objective": {"p99_ms": 25.0},
        "rate_per_s": 2000.0,
        "tries": [
            {"rate_per_s": 1000.0, "trial": RUN, "misses": []},
            {"rate_per_s": 4000.0, "trial": RUN, "misses": ["p99"]},
        ],
    }
}
COMPARE: dict[str, Any] = {
    "rows": [
        {"name": "askonce", "kind": "queue", "runs": [{"jobs_per_s": 90_000.0}]},
        {"name": "arq", "kind": "queue", "runs": [{"jobs_per_s": 1_700.0}]},
        {"name": "celery", "kind": "queue", "runs": [], "status": "skipped", "reason": "no wheel"},
    ]
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    documents: dict[str, Any] = {
        "bench": BENCH,
        "scale-keys": SCALE,
        "scale-memory": MEMORY,
        "run": WORKLOAD | {"run": RUN},
        "search": SEARCH,
        "compare": COMPARE,
        "other": {"what": "is this"},
    }
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    plan = CliRunner().invoke(app, ["plan", "--rate", "1000", "--distinct", "5000", "--json"])
    (folder / "plan.json").write_text(plan.output, encoding="utf-8")
    return folder


class Outside(HTMLParser):
    """Collects whatever a browser would fetch, run or go to elsewhere, and tags left open."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name.rpartition(":")[2] in {"src", "href", "srcset", "data", "action", "poster"}:
                target = value or ""
                if not target.startswith("#"):
                    self.found.append(f"{tag} {name}={target}")
            if name.startswith("on"):
                self.found.append(f"{tag} {name}")


def report(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["report", *arguments])
    return result.exit_code, result.output


def test_the_page_has_everything_and_needs_nothing(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    code, output = report(str(results), "--out", str(out))
    assert code == 0, output
    assert "other.json" in output  # what is not ours is said to be left out
    text = out.read_text(encoding="utf-8")
    page = Outside()
    page.feed(text)
    assert page.found == []
    assert not page.tags & {"script", "link", "iframe", "img", "object", "embed", "base"}
    assert "@import" not in text
    assert all(match.startswith("#") for match in re.findall(r"url\(['\"]?([^)]*)\)", text))
    assert len(page.ids) == len(set(page.ids))
    # Every reference within the page leads somewhere: axes' marks and clips are not lost.
    assert set(re.findall(r'href="#([^"]+)"', text)) <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(page.ids)
    for word in ("Bench", "Distinct keys", "Hit ratio", "Latency", "celery", "no wheel", "Plan"):
        assert word in text
    assert "imagined &lt;b&gt;" in text
    assert "busy with other things" in text
    assert "prefers-color-scheme: dark" in text


def test_every_plot_is_drawn(results: Path) -> None:
    plots = [plot for section in read_results(results).sections for plot in section.plots]
    assert len(plots) >= 6
    assert len({plot.name for plot in plots}) == len(plots)
    for plot in plots:
        drawn = ET.fromstring(svg(plot))  # noqa: S314  we have made it ourselves
        assert drawn.get("viewBox")
        assert drawn.get("aria-label") == plot.title
        assert png(plot).startswith(b"\x89PNG")
    assert svg(plots[0]) == svg(plots[0])


def test_the_readme_gets_its_section_and_its_plots(results: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    code, output = report(str(results), "--readme", str(readme))
    assert code == 0, output
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "python -m askonce_loadtest report results --readme README.md" in text
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert pictures
    assert all((tmp_path / picture).is_file() for picture in pictures)
    again = report(str(results), "--readme", str(readme))
    assert again[0] == 0
    assert readme.read_text(encoding="utf-8") == text


def test_what_cannot_be_reported_is_said(results: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    code, output = report(str(empty), "--out", str(tmp_path / "x.html"))
    assert (code, "found none" in output) == (1, True)
    unmarked = tmp_path / "README.md"
    unmarked.write_text("nothing", encoding="utf-8")
    code, output = report(str(results), "--readme", str(unmarked))
    assert (code, "expected the lines" in output) == (1, True)
    (results / "bench.json").write_text('{"kind": "bench"}', encoding="utf-8")
    code, output = report(str(results), "--out", str(tmp_path / "x.html"))
    assert (code, "bench.json" in output) == (1, True)
    assert report(str(results))[0] == 2


def test_the_readme_of_the_project_is_what_its_json_says(tmp_path: Path) -> None:
    """Renew with `python -m askonce_loadtest report docs/performance --readme README.md`."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    copy = tmp_path / "README.md"
    copy.write_text(readme, encoding="utf-8")
    folder = tmp_path / "docs/performance"
    folder.mkdir(parents=True)
    for path in (ROOT / "docs/performance").glob("*.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    assert report(str(folder), "--readme", str(copy))[0] == 0
    assert copy.read_text(encoding="utf-8") == readme
    for picture in re.findall(r"\((docs/performance/[^)]+\.png)\)", readme):
        assert (ROOT / picture).is_file()


def test_the_constants_of_plan_are_those_of_the_committed_bench() -> None:
    """Renew with `cp docs/performance/bench.json …/planning/constants.json`."""
    constants = ROOT / "loadtest/askonce_loadtest/planning/constants.json"
    assert constants.read_bytes() == (ROOT / "docs/performance/bench.json").read_bytes()
