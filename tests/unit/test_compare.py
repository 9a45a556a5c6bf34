"""The comparison's arithmetic and words, from canned measurements: nothing is run here."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import anyio
import pytest
from rich.console import Console
from typer.testing import CliRunner

from askonce_loadtest.__main__ import app
from askonce_loadtest.bench.child import Figures
from askonce_loadtest.compare.catalogue import BY_NAME, PEERS, Peer
from askonce_loadtest.compare.command import compare
from askonce_loadtest.compare.figures import FIGURES, Row, ratios, to_best_queue
from askonce_loadtest.compare.plan import Plan
from askonce_loadtest.compare.plots import PLOTS, draw_plots
from askonce_loadtest.compare.report import as_json, print_tables
from askonce_loadtest.compare.running import Outcome
from askonce_loadtest.compare.venvs import Skipped, default_folder, environment, folder_of


def run(**figures: float) -> Figures:
    """A run with every figure 10, but for those given."""
    return {figure.name: 10.0 for figure in FIGURES} | figures


def outcome() -> Outcome:
    """Two queues, a cache, one peer that was skipped and one that failed at its second repeat."""
    rows = [
        Row(
            name="askonce",
            kind="queue",
            settings="defaults",
            versions={"askonce": "9.9"},
            runs=[
                run(jobs_per_s=900, cold_calls_above_one=0),
                run(jobs_per_s=1_000, cold_calls_above_one=0),
                run(jobs_per_s=1_100, cold_calls_above_one=0),
            ],
        ),
        Row(
            name="saq",
            kind="queue",
            settings="concurrency 100",
            versions={"saq": "1.2.3", "redis": "8.1"},
            runs=[
                run(jobs_per_s=30, worker_cpu_us_per_job=50, cold_calls_above_one=0),
                run(jobs_per_s=20, worker_cpu_us_per_job=40, cold_calls_above_one=7),
                run(jobs_per_s=10, worker_cpu_us_per_job=30, cold_calls_above_one=1),
            ],
        ),
        Row(
            name="arq",
            kind="queue",
            settings="",
            runs=[run(jobs_per_s=40)],
            status="failed",
            reason="warm_up took over 60 s, and was ended",
        ),
        Row(name="celery", kind="queue", settings="", status="skipped", reason="no [wheel]"),
        Row(name="askonce library", kind="cache", settings="", runs=[run(jobs_per_s=500)]),
        Row(name="cashews", kind="cache", settings="", runs=[run(jobs_per_s=250)]),
    ]
    return Outcome({"processor": "canned"}, rows, [9.0, 18.0, 10.0])


def printed(what: Outcome) -> str:
    shown = io.StringIO()
    print_tables(Console(file=shown, width=260), Plan(), what)
    return shown.getvalue()


def test_repeats_become_their_median_but_the_worst_count_of_calls() -> None:
    saq = outcome().rows[1].figures
    assert saq["jobs_per_s"] == 20
    assert saq["worker_cpu_us_per_job"] == 40
    assert saq["cold_calls_above_one"] == 7
    assert outcome().rows[1].spread("jobs_per_s") == (10, 30)


def test_ratios_say_how_many_times_better_askonce_is_of_the_same_kind() -> None:
    better = ratios(outcome().rows)
    assert better.keys() == {"saq", "arq", "cashews"}
    assert better["saq"]["jobs_per_s"] == 50
    assert better["saq"]["worker_cpu_us_per_job"] == 4  # 40 µs against 10
    assert better["cashews"]["jobs_per_s"] == 2
    assert "cold_calls_above_one" not in better["saq"]  # ours is 0


def test_the_best_other_queue_decides_the_goal_and_a_cache_does_not() -> None:
    measured = outcome()
    assert to_best_queue(measured.rows) == 25  # arq's 40
    assert to_best_queue(measured.rows[:2]) == 50
    assert math.isnan(to_best_queue(measured.rows[4:]))
    assert math.isnan(to_best_queue(measured.rows[:1]))


def test_figures_that_a_peer_has_none_of_are_left_out() -> None:
    cache = Row(name="cashews", kind="cache", settings="", runs=[{"jobs_per_s": 1.0}])
    assert cache.figures == {"jobs_per_s": 1.0}
    assert Row(name="x", kind="queue", settings="").figures == {}


def test_the_table_has_versions_ratios_spreads_noise_and_reasons() -> None:
    text = printed(outcome())
    assert "askonce 9.9" in text
    assert "saq 1.2.3" in text
    assert "10 … 30" in text
    assert "50.0" in text
    assert "arq failed: warm_up took over 60 s, and was ended" in text
    assert "celery skipped: no [wheel]" in text
    assert "askonce does 25.0 times the jobs/s of the best other queue (goal: ≥ 25)" in text
    assert "9.0 … 18.0 ms, median 10.0" in text
    assert "saq: concurrency 100, redis 8.1" in text


def test_a_table_of_skipped_peers_only_is_a_table() -> None:
    rows = [Row(name="saq", kind="queue", settings="", status="skipped", reason="offline")]
    text = printed(Outcome({}, rows, []))
    assert "saq *" in text
    assert "saq skipped: offline" in text
    assert "goal" not in text


def test_the_json_has_everything() -> None:
    report = json.loads(as_json(Plan(), outcome()))
    assert report["kind"] == "compare"
    assert report["jobs_per_s_to_best_queue"] == 25
    assert report["plan"]["jobs"] == Plan().jobs
    assert report["noise_ms"] == [9, 18, 10]
    peers = {peer["name"]: peer for peer in report["peers"]}
    assert peers["saq"]["figures"]["jobs_per_s"] == 20
    assert peers["saq"]["askonce_times_better"]["jobs_per_s"] == 50
    assert len(peers["saq"]["runs"]) == 3
    assert peers["celery"]["status"] == "skipped"
    assert peers["celery"]["reason"] == "no [wheel]"
    assert report["meanings"].keys() == {figure.name for figure in FIGURES}
    alone = json.loads(as_json(Plan(), Outcome({}, outcome().rows[:1], [])))
    assert alone["jobs_per_s_to_best_queue"] is None


def test_every_plot_is_drawn_as_png_and_svg(tmp_path: Path) -> None:
    drawn = draw_plots(tmp_path, outcome().rows)
    assert {path.name for path in drawn} == {
        f"{plot.file}.{kind}" for plot in PLOTS for kind in ("png", "svg")
    }
    for path in drawn:
        start = path.read_bytes()[:8]
        assert (
            start == b"\x89PNG\r\n\x1a\n" if path.suffix == ".png" else start.startswith(b"<?xml")
        )
    assert draw_plots(tmp_path, outcome().rows[3:4]) == []


def test_every_peer_is_pinned_described_and_has_its_script() -> None:
    scripts = Path(compare.__code__.co_filename).parent / "peers"
    for peer in PEERS:
        assert (scripts / peer.script).is_file()
        assert all("==" in requirement for requirement in peer.requirements)
        assert bool(peer.worker) == (peer.kind == "queue")
        assert peer.settings
    assert len(BY_NAME) == len(PEERS)


def test_an_unknown_peer_is_a_usage_error_that_names_the_known_ones() -> None:
    done = CliRunner().invoke(app, ["compare", "--only", "saq,nats"], env={"COLUMNS": "400"})
    assert done.exit_code == 2
    assert "unknown nats; there are askonce, saq" in done.output


def test_environments_are_kept_apart_by_what_is_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "askonce" / "compare"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_folder() == Path.home() / ".cache" / "askonce" / "compare"
    one, two = peer_of("a==1"), peer_of("a==2")
    assert folder_of(one, tmp_path) == folder_of(one, tmp_path)
    assert folder_of(one, tmp_path) != folder_of(two, tmp_path)
    assert folder_of(one, tmp_path).name.startswith("peer-")


def peer_of(*requirements: str) -> Peer:
    return Peer(
        name="peer",
        kind="cache",
        script="none.py",
        requirements=requirements,
        settings="-",
        shows=("peer",),
    )


async def test_what_cannot_be_installed_is_skipped_with_the_reason(tmp_path: Path) -> None:
    peer = peer_of(str(tmp_path / "no-such-package.whl"))
    with pytest.raises(Skipped, match=r"cannot be installed: .*no-such-package"):
        await environment(peer, tmp_path / "venvs")
    blocked = anyio.Path(tmp_path, "a-file")
    await blocked.touch()
    with pytest.raises(Skipped, match="choose another folder: --venvs"):
        await environment(peer, Path(blocked))


async def test_askonce_itself_needs_no_environment(tmp_path: Path) -> None:
    venv = await environment(BY_NAME["askonce"], tmp_path / "askonce")
    assert "askonce" in venv.versions
    assert not (tmp_path / "askonce").exists()
