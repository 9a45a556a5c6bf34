"""`plan`: figures that follow from each other, the bottleneck by name, and its command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from typer.testing import CliRunner

from askonce_loadtest.__main__ import app
from askonce_loadtest.planning.constants import Constants, packaged_constants, read_constants
from askonce_loadtest.planning.sizing import size
from askonce_loadtest.planning.target import Target
from askonce_queue.errors import ConfigError

ROUND = Constants(
    worker_cpu_us_per_job=4,
    store_cpu_us_per_job=6,
    producer_cpu_us_per_job=3,
    worker_cpu_us_per_store_hit=10,
    store_cpu_us_per_store_hit=12,
    worker_cpu_us_per_model_call=400,
    store_cpu_us_per_model_call=60,
    worker_cpu_us_per_kib=1,
    store_cpu_us_per_kib=2,
    store_net_bytes_per_job=800,
    text_bytes=90,
    store_bytes_per_answer=200,
    machine={"processor": "imagined"},
)
SHARES = Target(rate=100_000, distinct=1_000_000, hit_rate=0.99, memory_hit_rate=0.7, headroom=0.5)


def test_every_figure_by_hand() -> None:
    """70 % from memory, 29 % from the store, 1 % from the model."""
    plan = size(replace(SHARES, model_latency_s=0.4, price_per_call=0.001), ROUND)
    assert plan.value("hit rate") == pytest.approx(0.99)
    assert plan.value("model calls") == pytest.approx(1_000)
    assert plan.value("model calls in flight") == pytest.approx(400)
    worker = (70_000 * 4 + 29_000 * 10 + 1_000 * 400) / 1e6
    store = (70_000 * 6 + 29_000 * 12 + 1_000 * 60) / 1e6
    assert plan.value("worker CPU") == pytest.approx(worker)  # 0.97
    assert plan.value("store CPU") == pytest.approx(store)  # 0.828
    assert plan.value("workers") == math.ceil(400 / 128)  # slots, not CPU
    assert plan.value("primaries") == 2
    assert plan.value("shards") == 8
    assert plan.value("store processes") == 4
    assert plan.value("producers") == 1
    assert plan.value("connections to a primary") == (4 + 1) * (16 + 4 + 1)
    assert plan.value("store network") == pytest.approx(100_000 * 800 * 8 / 1e9)
    assert plan.value("model money") == pytest.approx(1_000 * 0.001 * 730 * 3600)
    assert plan.value("without a cache") == pytest.approx(100_000 * 0.001 * 730 * 3600)
    assert plan.bottleneck == "model slots"


@pytest.mark.parametrize(
    ("change", "bottleneck"),
    [
        ({"model_latency_s": 0.001, "hit_rate": 0.9, "memory_hit_rate": 0.9}, "worker CPU"),
        ({"model_latency_s": 0.001, "hit_rate": 1.0, "memory_hit_rate": 0.9}, "store CPU"),
        ({"model_latency_s": 30.0}, "model slots"),
        ({"primary_memory_bytes": 2.0**20}, "store memory"),
        ({"network_gbit": 0.01}, "store network"),
        ({"model_calls_per_minute": 100.0}, "the model's rate limit"),
    ],
)
def test_the_bottleneck_has_a_name(change: dict[str, float], bottleneck: str) -> None:
    plan = size(replace(SHARES, **change), ROUND)
    assert plan.bottleneck == bottleneck
    assert plan.advice


def test_text_costs_by_its_length() -> None:
    short, long = (size(replace(SHARES, text_bytes=n), ROUND) for n in (90.0, 90.0 + 10_240))
    added_us = (long.value("worker CPU") - short.value("worker CPU")) / SHARES.rate * 1e6
    assert added_us == pytest.approx(10 * ROUND.worker_cpu_us_per_kib)
    assert long.value("store network") > 10 * short.value("store network")


@given(
    rate=st.floats(1, 1e7),
    distinct=st.integers(1, 10**9),
    latency=st.floats(0.001, 60),
    ttl=st.floats(1, 1e7),
)
def test_twice_the_requests_never_need_less(
    rate: float, distinct: int, latency: float, ttl: float
) -> None:
    target = Target(rate=rate, distinct=distinct, model_latency_s=latency, ttl_s=ttl)
    once, twice = size(target, ROUND), size(replace(target, rate=rate * 2), ROUND)
    for name in ("store CPU", "primaries", "model calls", "producers", "store memory"):
        assert twice.value(name) >= once.value(name) * 0.999
    assert all(line.value >= -1e-9 and math.isfinite(line.value) for line in once.lines)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": "120"})
    return result.exit_code, result.output


def test_the_table_names_the_bottleneck_and_the_machine() -> None:
    code, output = run("--rate", "1000000", "--distinct", "50000000", "--ttl", "24h")
    assert code == 0
    assert "1,000,000 requests/s" in output
    assert "bottleneck: " in output
    assert str(packaged_constants().machine["processor"]) in output
    assert "λ" in output


def test_json_has_every_line_with_its_formula() -> None:
    code, output = run(
        "--rate", "1000", "--distinct", "10000", "--model-latency", "250ms", "--json"
    )
    found = json.loads(output)
    assert code == 0
    assert found["kind"] == "plan"
    assert found["target"]["model_latency_s"] == 0.25
    assert all(line["formula"] for line in found["lines"])


@pytest.mark.parametrize(
    ("option", "value"),
    [("--ttl", "soon"), ("--ttl", "0"), ("--text-size", "-1"), ("--worker-memory", "64 parsecs")],
)
def test_bad_input_is_named(option: str, value: str) -> None:
    code, output = run("--rate", "1000", "--distinct", "10000", option, value)
    assert code == 2
    assert option in output


def test_constants_come_from_a_bench(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match="bench --json"):
        read_constants(path)
    assert packaged_constants().worker_cpu_us_per_job > 0
