"""What a worker's log says of its model calls, and what counts as a complaint."""

from __future__ import annotations

from pathlib import Path

from askonce_loadtest.chaos.worker_logs import Call, Complaint, End, Line, read_log

KEY = "ab" * 32
STAMP = '"timestamp":"2026-11-21T12:00:00.250000Z"'
WALL = 1_795_262_400.25
"""That moment, in Unix seconds."""
OFFSET = 1_795_262_000.0

CALL = (
    f'{{"task":"question","key":"{KEY}","reason":"fill","attempt":1,"began":399.5,'
    f'"granted_until":401.5,"event":"model call","level":"debug","logger":"askonce.calls",{STAMP}}}'
)
END = (
    f'{{"task":"question","key":"{KEY}","end":"filled","began":399.5,"event":"flight ended",'
    f'"level":"debug","logger":"askonce.landing",{STAMP}}}'
)
WARNING = f'{{"event":"fetch failed","level":"warning","logger":"askonce.intake",{STAMP}}}'
ERROR = f'{{"event":"Task was destroyed","level":"error","logger":"asyncio",{STAMP}}}'


def read(folder: Path, *lines: str) -> list[Line]:
    path = folder / "log"
    path.write_text("".join(f"{line}\n" for line in lines))
    return list(read_log(path, "worker-0.1", OFFSET))


def test_calls_and_ends_are_read_in_monotonic_time(tmp_path: Path) -> None:
    at = WALL - OFFSET
    assert read(tmp_path, CALL, WARNING, END) == [
        Call(at, "worker-0.1", "question", KEY, "fill", 1, 399.5, 401.5),
        End(at, "worker-0.1", KEY, "filled", 399.5),
    ]


def test_errors_and_tracebacks_are_complaints_and_warnings_are_not(tmp_path: Path) -> None:
    found = read(tmp_path, WARNING, ERROR, "Traceback (most recent call last):")
    assert [type(line) for line in found] == [Complaint, Complaint]
    assert "Task was destroyed" in str(found[0])


def test_a_line_cut_by_a_kill_is_left_out(tmp_path: Path) -> None:
    assert read(tmp_path, CALL[:150]) == []


def test_no_log_says_nothing(tmp_path: Path) -> None:
    assert list(read_log(tmp_path / "none", "worker-0.1", OFFSET)) == []
