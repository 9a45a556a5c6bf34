"""Classify real messages in the order of a real trace, twice: `python examples/demo.py`.

Every figure is computed in the run: the jobs go through `askonce run`, in a process of its own, on
the embedded store, which starts empty in a folder of its own. Takes well under a minute.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# Run as a script, Python looks beside this file, not in the folder of the `examples` package.
from examples import intent, moderation  # noqa: E402
from examples.naive_bayes import DATA, Verdict  # noqa: E402
from examples.request_stream import Stream, build_stream, normalized, write_input  # noqa: E402

RUN_TIMEOUT_S = 120
PASSES = ("first", "second")

Classify = Callable[[str], Verdict]
TASKS: dict[str, Classify] = {"intent": intent.classify, "moderation": moderation.classify}


class Failed(Exception):
    """The demo cannot go on. Carries the message for people and the exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class OutputLine(msgspec.Struct):
    """One line of output of `askonce run`: of an answer, or (without label) of an error."""

    id: str
    label: str | None = None


class Summary(msgspec.Struct):
    """What `askonce run --summary` writes: counts of jobs by outcome, model calls, wall time."""

    jobs: int
    errors: int
    memory: int
    store: int
    coalesced: int
    model: int
    model_calls: int
    wall_s: float
    jobs_per_s: float


@dataclass(frozen=True)
class Report:
    """What one pass of one task did, and how good it was."""

    summary: Summary
    right: int
    as_asked_directly: int


Reports = dict[tuple[str, str], Report]
"""By task and pass, in the order they ran."""


def run_askonce(stream: Stream, work: Path, name: str) -> Report:
    """Run `askonce run` over the stream's input file and check every line of its output.

    Raises `Failed` when the command fails, takes too long or writes something else than agreed.
    """
    task, out, summary = stream.task, work / f"{name}.out.jsonl", work / f"{name}.json"
    command = [sys.executable, "-m", "askonce_worker", "run"]
    command += [str(work / "askonce.toml"), str(work / f"{task}.jsonl")]
    command += ["--task", task, "--out", str(out), "--summary", str(summary)]
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    shown = f"askonce run, task {task}, {name} pass"
    try:
        done = subprocess.run(  # noqa: S603  # our own interpreter and file names
            command,
            env={**os.environ, "PYTHONPATH": python_path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=RUN_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{shown}: no end after {RUN_TIMEOUT_S} s", 1) from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()[-2000:]
        code = done.returncode if done.returncode > 0 else 1
        raise Failed(f"{shown}: exit code {done.returncode}\n{said}", code)
    try:
        lines = msgspec.json.Decoder(OutputLine).decode_lines(out.read_bytes())
        report = msgspec.json.decode(summary.read_bytes(), type=Summary)
    except (OSError, msgspec.DecodeError) as error:
        raise Failed(f"{shown}: unusable output: {error}", 1) from error
    return check_output(stream, lines, report, shown)


def check_output(
    stream: Stream, lines: Sequence[OutputLine], summary: Summary, shown: str
) -> Report:
    """Compare the output with the labels, and with the model asked directly, line by line."""
    if [line.id for line in lines] != [f"{stream.task}-{i}" for i in range(len(stream.requests))]:
        raise Failed(f"{shown}: the output lines are not the input lines in their order", 1)
    classify = TASKS[stream.task]
    direct = {text: classify(text)["label"] for text in stream.distinct}
    pairs = list(zip(lines, stream.requests, strict=True))
    return Report(
        summary=summary,
        right=sum(line.label == example.label for line, example in pairs),
        as_asked_directly=sum(
            line.label == direct[normalized(example.text)] for line, example in pairs
        ),
    )


def time_model(stream: Stream) -> float:
    """Return the seconds one call of the task's model takes, the mean over the distinct texts."""
    classify = TASKS[stream.task]
    texts = stream.distinct
    classify(texts[0])  # trains the model, which is no part of a call
    started = time.perf_counter()
    for text in texts:
        classify(text)
    return (time.perf_counter() - started) / len(texts)


def new_table(title: str, first: str, others: Sequence[str]) -> Table:
    """A plain table that fits 80 columns; `first` is a column of names, `others` of figures."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column(first)
    for column in others:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def sources_table(reports: Reports) -> Table:
    """Where the answers came from, as shares of the jobs, one row a task and pass."""
    columns = ("pass", "jobs", "memory", "store", "coalesced", "model", "calls", "jobs/s")
    table = new_table("Where the answers came from", "task", columns)
    for (task, name), report in reports.items():
        s = report.summary
        shares = [f"{n / s.jobs:.1%}" for n in (s.memory, s.store, s.coalesced, s.model)]
        table.add_row(
            task, name, f"{s.jobs:,}", *shares, f"{s.model_calls:,}", f"{s.jobs_per_s:,.0f}"
        )
    return table


def savings_table(streams: dict[str, Stream], reports: Reports, call_s: dict[str, float]) -> Table:
    """What was saved and how good the answers were, one column a task, over both passes."""
    table = new_table("What that saved, and how good it is (both passes)", "", list(streams))
    rows: dict[str, list[str]] = {}
    for task, stream in streams.items():
        both = [reports[task, name] for name in PASSES]
        jobs = sum(report.summary.jobs for report in both)
        avoided = jobs - sum(report.summary.model_calls for report in both)
        for name, value in (
            ("jobs", f"{jobs:,}"),
            ("distinct texts", f"{len(stream.distinct):,}"),
            ("model calls avoided", f"{avoided:,} ({avoided / jobs:.1%})"),
            ("one model call takes", f"{call_s[task] * 1e6:.0f} µs"),
            ("model time avoided", f"{avoided * call_s[task]:.2f} s"),
            ("accuracy", f"{sum(report.right for report in both) / jobs:.1%}"),
            ("same as asked directly", f"{sum(r.as_asked_directly for r in both):,} of {jobs:,}"),
        ):
            rows.setdefault(name, []).append(value)
    for name, values in rows.items():
        table.add_row(name, *values)
    return table


def explain(console: Console, reports: Reports) -> None:
    """Say in a line each what the reader sees."""
    jobs = sum(report.summary.jobs for report in reports.values())
    avoided = jobs - sum(report.summary.model_calls for report in reports.values())
    for term, meaning in (
        ("memory", "the worker had the answer at hand"),
        ("store", "an earlier run, or another worker, had left it in the store"),
        ("coalesced", "the same question was under way, so it was not asked again"),
        ("model, calls", "the model had to be asked; how often it was"),
        ("second pass", "new processes, on the store that the first pass left behind"),
        ("accuracy", "labels in the output against the labels people gave"),
        ("asked directly", "what the model itself says now; anything else would be a bug"),
        ("model time", f"at 0.5 s a call it would be {avoided * 0.5 / 3600:.1f} hours in all"),
    ):
        console.print(f"  {term:<15} {meaning}", highlight=False)


def demo(console: Console, work: Path, limit: int | None) -> bool:
    """Run both tasks twice in the folder `work` and print what happened.

    Returns whether every job was answered, as the model itself answers. Raises `Failed`.
    """
    shutil.copy(DATA.parent / "askonce.toml", work)
    streams = {task: build_stream(task, limit) for task in TASKS}
    for stream in streams.values():
        write_input(stream, work / f"{stream.task}.jsonl")
    reports: Reports = {}
    for name in PASSES:
        for task, stream in streams.items():
            with console.status(f"{name} pass: {len(stream.requests):,} {task} requests"):
                reports[task, name] = run_askonce(stream, work, f"{task}.{name}")
    call_s = {task: time_model(stream) for task, stream in streams.items()}
    console.print(sources_table(reports))
    console.print(savings_table(streams, reports, call_s))
    explain(console, reports)
    return all(
        report.summary.errors == 0 and report.as_asked_directly == report.summary.jobs
        for report in reports.values()
    )


def main() -> int:
    """Parse the command line, run the demo; return 0 when it worked, else askonce's exit code."""
    parser = argparse.ArgumentParser(description="Classify real messages with askonce.")
    parser.add_argument("--requests", type=int, metavar="N", help="only the first N of the trace")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in this new folder, keep it")
    arguments = parser.parse_args()
    requests: int | None = arguments.requests
    keep: Path | None = arguments.keep
    if requests is not None and requests < 1:
        parser.error("--requests: expected a number of at least 1")
    console = Console()
    try:
        if keep is None:
            with tempfile.TemporaryDirectory(prefix="askonce-demo-") as work:
                passed = demo(console, Path(work), requests)
        else:
            keep.mkdir(parents=True)
            passed = demo(console, keep.resolve(), requests)
    except FileExistsError:
        parser.error(f"--keep: {keep} exists; the demo starts from an empty store")
    except Failed as failure:
        console.print(f"The demo failed: {failure}", style="red", markup=False)
        return failure.exit_code
    if not passed:
        console.print("Some jobs were not answered as the model answers: see above.", style="red")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
