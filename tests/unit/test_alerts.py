"""The alerting rules and the probes agree with what a worker really serves."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import promql_parser
import pytest

from askonce_worker.config import load_settings

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
KUBERNETES = ROOT / "deploy" / "kubernetes"


def read(path: Path) -> Any:
    return msgspec.yaml.decode(path.read_bytes())


RULES: list[dict[str, Any]] = read(PROMETHEUS / "alerts.yaml")["groups"][0]["rules"]


def documented() -> dict[str, tuple[str, set[str]]]:
    """Metric → type and labels, by docs/METRICS.md, which tests/unit/test_metrics.py keeps true."""
    text = (ROOT / "docs" / "METRICS.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(askonce_\w+)`(?: †)? \| (\w+) \|([^|]*)\|", text, re.MULTILINE)
    return {name: (kind, set(labels.strip().split(", "))) for name, kind, labels in rows}


def family(sample: str) -> str:
    """The metric of a sample's name."""
    return re.sub(r"_bucket$", "", sample)


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_a_rule_is_promql_over_metrics_that_exist(rule: dict[str, Any]) -> None:
    assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"Askonce[A-Z]\w+", rule["alert"])
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "description"}
    if "for" in rule:
        promql_parser.parse_duration(rule["for"])
    promql_parser.parse(rule["expr"])
    metrics = documented()
    names = re.findall(r"askonce_\w+", rule["expr"])
    assert names
    for name in names:
        kind, _ = metrics[family(name)]
        counted = re.search(rf"(rate|increase)\({name}(\{{[^}}]*\}})?\[\d+[mh]\]\)", rule["expr"])
        assert bool(counted) == (kind in ("counter", "histogram")), name
    for name in re.findall(r"askonce_\w+", str(rule["annotations"])):
        assert name in metrics


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_labels_of_a_rule_are_those_of_its_metrics(rule: dict[str, Any]) -> None:
    metrics = documented()
    names = re.findall(r"askonce_\w+", rule["expr"])
    known = {"instance", "le"}.union(*(metrics[family(name)][1] for name in names))
    grouped = re.findall(r"by \(([^)]*)\)", rule["expr"])
    by = {label for labels in grouped for label in labels.split(", ")}
    assert by <= known
    shown = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
    assert shown <= (by or {"instance"})


def test_a_query_that_is_none_is_found() -> None:
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        promql_parser.parse("sum by (model (rate(askonce_model_errors_total[5m]))")


def test_every_rule_is_tried_both_ways() -> None:
    cases = read(PROMETHEUS / "alerts_test.yaml")["tests"]
    tried = [check for case in cases for check in case["alert_rule_test"]]
    for rule in RULES:
        expected = {"exp_alerts" in check for check in tried if check["alertname"] == rule["alert"]}
        assert expected == {True, False}, rule["alert"]


def test_rules_fire_when_they_should() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        return  # they were parsed above; trying them takes Prometheus itself
    for command in (("check", "rules", "alerts.yaml"), ("test", "rules", "alerts_test.yaml")):
        done = subprocess.run(
            [promtool, *command], cwd=PROMETHEUS, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


# Probes


def test_probes_ask_the_port_that_the_configuration_names(tmp_path: Path) -> None:
    template = read(KUBERNETES / "deployment.yaml")["spec"]["template"]
    (container,) = template["spec"]["containers"]
    text = (KUBERNETES / "askonce.toml").read_text(encoding="utf-8")
    config = tmp_path / "askonce.toml"
    config.write_text(re.sub(r"^api_key_file = .*$", "", text, flags=re.MULTILINE))
    address = load_settings(config).worker.listen_address
    assert address is not None
    assert address.host == "0.0.0.0"  # noqa: S104 -- of the pod, whose port is named
    (port,) = container["ports"]
    assert port["containerPort"] == address.port
    probes = {name: container[name]["httpGet"] for name in container if name.endswith("Probe")}
    assert probes == {
        "startupProbe": {"path": "/livez", "port": port["name"]},
        "livenessProbe": {"path": "/livez", "port": port["name"]},
        "readinessProbe": {"path": "/readyz", "port": port["name"]},
    }
    assert template["metadata"]["annotations"] == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(address.port),
    }
    # A probe asks one process; several in a container would hide behind the first.
    assert container["args"][2:4] == ["--processes", "1"]
