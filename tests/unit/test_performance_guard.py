"""The performance guard: which figures pass, what is tried again, and what it exits with."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest
from typer.testing import CliRunner

from askonce_loadtest.__main__ import app
from askonce_loadtest.bench import guard_command
from askonce_loadtest.bench.guard import ATTEMPTS, BOUNDS, Verdict, judge

GOOD = {"worker_to_floor": 2.0, "client_commands_per_job": 0.01, "script_commands_per_job": 1.1}


def measured(*runs: dict[str, float]) -> tuple[Callable[[], Coroutine[Any, Any, Any]], list[int]]:
    """A measurement that gives one run after the other, the last one again and again."""
    calls: list[int] = []

    async def measure() -> dict[str, float]:
        calls.append(1)
        return runs[min(len(calls), len(runs)) - 1]

    return measure, calls


async def judged(name: str, *runs: dict[str, float]) -> tuple[Sequence[Verdict], int]:
    measure, calls = measured(*runs)
    return await judge(name, measure, lambda _: None), len(calls)


async def test_what_is_good_is_measured_once() -> None:
    verdicts, calls = await judged("warm jobs", GOOD)
    assert calls == 1
    assert all(verdict.kept for verdict in verdicts)


async def test_noise_gets_another_attempt_and_the_best_counts() -> None:
    noisy = GOOD | {"worker_to_floor": 9.0}
    otherwise = GOOD | {"client_commands_per_job": 5.0}
    verdicts, calls = await judged("warm jobs", noisy, otherwise, noisy)
    assert calls == 2  # each bound has held once
    assert all(verdict.kept for verdict in verdicts)


@pytest.mark.parametrize("worse", [9.0, math.nan])
async def test_what_is_always_past_its_bound_fails(worse: float) -> None:
    verdicts, calls = await judged("warm jobs", GOOD | {"worker_to_floor": worse})
    assert calls == ATTEMPTS
    assert [verdict.bound.name for verdict in verdicts if not verdict.kept] == ["worker_to_floor"]


async def test_a_second_model_call_has_no_second_attempt() -> None:
    verdicts, calls = await judged(
        "stampede", {"model_calls_per_key": 1.02}, {"model_calls_per_key": 1.0}
    )
    assert calls == 1
    assert not verdicts[0].kept


def test_every_bound_has_a_reason_and_none_is_a_time() -> None:
    bounds = [bound for group in BOUNDS.values() for bound in group]
    assert all(bound.why and bound.what for bound in bounds)
    assert not any(name.endswith(("_s", "_ms", "_us")) for name in (b.name for b in bounds))
    assert len({bound.name for bound in bounds}) == len(bounds)


@pytest.mark.parametrize(("value", "code"), [(1.0, 0), (1.02, 1)])
def test_the_exit_code(monkeypatch: pytest.MonkeyPatch, value: float, code: int) -> None:
    async def guard(_: object) -> list[Verdict]:
        return [Verdict(BOUNDS["stampede"][0], value, 1)]

    monkeypatch.setattr(guard_command, "run_guard", guard)
    result = CliRunner().invoke(app, ["guard"])
    assert result.exit_code == code
    assert ("past its bound" in result.output) is bool(code)
    assert CliRunner().invoke(app, ["guard", "--json"]).output.startswith("[{")
