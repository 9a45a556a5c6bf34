"""The files of `deploy` are what systemd and Kubernetes accept, and agree with each other."""

from __future__ import annotations

import copy
import importlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from askonce_worker.config import ApiModelConfig, WorkerConfig, load_settings
from askonce_worker.config_tables import CREDENTIALS

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
UNIT = DEPLOY / "systemd" / "askonce-worker.service"
KUBERNETES = DEPLOY / "kubernetes"
KUBERNETES_VERSION = "1.34"
DOCKERFILE = (DEPLOY / "docker" / "Dockerfile").read_text(encoding="utf-8")
DRAIN_S = WorkerConfig().drain_s
USER_ID = 10001

Manifest = dict[str, Any]


def unit_options() -> dict[str, list[str]]:
    """The unit's options: `Section.Option` → its values in order."""
    options: dict[str, list[str]] = {}
    section = ""
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            name, equals, value = line.partition("=")
            assert equals, f"not an option: {line!r}"
            options.setdefault(f"{section}.{name}", []).append(value)
    return options


def manifest(name: str) -> Manifest:
    return cast("Manifest", msgspec.yaml.decode((KUBERNETES / name).read_bytes()))


def validate_strictly(document: Manifest) -> None:
    """Raise unless `document` is what an API server of `KUBERNETES_VERSION` accepts."""
    module = importlib.import_module("kubernetes_validate")  # it has no types
    validate = cast("Callable[..., str]", module.validate)
    assert validate(document, KUBERNETES_VERSION, strict=True) == KUBERNETES_VERSION


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_unit_runs_the_worker_and_lets_it_drain() -> None:
    options = unit_options()
    command = "/opt/askonce/bin/askonce worker /etc/askonce/askonce.toml --processes 2 --log json"
    assert options["Service.ExecStart"] == [command]
    assert options["Service.Type"] == ["notify"]  # notify-reload is unknown to systemd 252
    assert options["Service.KillSignal"] == ["SIGTERM"]
    # Otherwise systemd would stop the embedded store together with the workers that need it.
    assert options["Service.KillMode"] == ["mixed"]
    (stop,) = options["Service.TimeoutStopSec"]
    assert int(stop.removesuffix("s")) > DRAIN_S
    assert options["Service.WatchdogSec"] == ["30s"]


def test_unit_is_hardened() -> None:
    options = unit_options()
    for name, value in (
        ("User", "askonce"),
        ("CapabilityBoundingSet", ""),
        ("MemoryDenyWriteExecute", "yes"),
        ("NoNewPrivileges", "yes"),
        ("PrivateUsers", "yes"),
        ("ProtectSystem", "strict"),
        ("RestrictAddressFamilies", "AF_INET AF_INET6 AF_UNIX"),
    ):
        assert options[f"Service.{name}"] == [value], name
    assert options["Service.LoadCredential"][0].startswith("openai_api_key:/etc/askonce/")
    readme = (UNIT.parent / "README.md").read_text(encoding="utf-8")
    for credential in options["Service.LoadCredential"]:
        name = credential.partition(":")[0]
        for text in (UNIT.read_text(encoding="utf-8"), readme):
            assert f'api_key_file = "{CREDENTIALS}{name}"' in text
    assert "Service.ImportCredential" not in options  # unknown to systemd 252
    # It would hide /proc/stat, without which process metrics are silently missing.
    assert "Service.ProcSubset" not in options


def test_unit_is_what_systemd_knows(tmp_path: Path) -> None:
    assert {name.partition(".")[0] for name in unit_options()} == {"Unit", "Service", "Install"}
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        return  # the options were read above; only systemd itself knows their names
    unit = tmp_path / UNIT.name
    text = UNIT.read_text(encoding="utf-8")
    unit.write_text(text.replace("/opt/askonce/bin/askonce", sys.executable), encoding="utf-8")
    verified = run(analyze, "verify", "--man=no", "--recursive-errors=no", str(unit))
    # The exit code is 0 for unknown options too.
    assert (verified.returncode, verified.stderr) == (0, "")
    # A threshold of 20 is an exposure of 2.0 of 10.
    secured = run(analyze, "security", "--offline=true", "--threshold=20", str(unit))
    assert secured.returncode == 0, secured.stdout


@pytest.mark.parametrize("name", ["namespace.yaml", "serviceaccount.yaml", "deployment.yaml"])
def test_manifest_is_what_kubernetes_accepts(name: str) -> None:
    assert name in manifest("kustomization.yaml")["resources"]
    document = manifest(name)
    validate_strictly(document)
    mistaken = copy.deepcopy(document)
    mistaken["replica"] = 2
    with pytest.raises(Exception, match="replica"):
        validate_strictly(mistaken)


def test_manifests_build_into_what_kubernetes_accepts() -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        return  # each file is validated above
    built = run(kubectl, "kustomize", str(KUBERNETES))
    assert built.returncode == 0, built.stderr
    documents = [
        cast("Manifest", msgspec.yaml.decode(part)) for part in built.stdout.split("\n---\n")
    ]
    for document in documents:
        validate_strictly(document)
    kinds = sorted(document["kind"] for document in documents)
    assert kinds == ["ConfigMap", "Deployment", "Namespace", "ServiceAccount"]


def test_deployment_is_restricted_and_lets_its_worker_drain() -> None:
    pod = manifest("deployment.yaml")["spec"]["template"]["spec"]
    account = manifest("serviceaccount.yaml")
    (container,) = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] > DRAIN_S
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    assert pod["automountServiceAccountToken"] is False
    assert account["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == USER_ID
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert set(container["resources"]) == {"requests", "limits"}


def test_deployment_finds_its_configuration_and_keys(tmp_path: Path) -> None:
    pod = manifest("deployment.yaml")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    (generated,) = manifest("kustomization.yaml")["configMapGenerator"]
    assert volumes["config"]["configMap"]["name"] == generated["name"]
    assert container["args"][:2] == ["worker", f"{mounts['config']}/{generated['files'][0]}"]
    assert "secret" in volumes["keys"]
    # A file that is mounted by itself is never replaced, and its key never rotated.
    assert not any("subPath" in mount for mount in container["volumeMounts"])
    text = (KUBERNETES / "askonce.toml").read_text(encoding="utf-8")
    assert f'password_file = "{mounts["keys"]}/' in text

    key = tmp_path / "openai_api_key"
    key.write_text("a key", encoding="utf-8")
    config = tmp_path / "askonce.toml"
    text = (KUBERNETES / "askonce.toml").read_text(encoding="utf-8")
    config.write_text(text.replace(mounts["keys"], str(tmp_path)), encoding="utf-8")
    settings = load_settings(config)
    model = settings.models["gpt"]
    assert isinstance(model, ApiModelConfig)
    assert model.api_key_file == str(key)
    assert settings.redis is not None
    assert settings.worker.drain_s == DRAIN_S


def test_image_has_no_root_and_no_build_tools() -> None:
    lines = DOCKERFILE.splitlines()
    bases = [line for line in lines if line.startswith("FROM ")]
    assert bases == ["FROM python:3.11-slim AS build", "FROM python:3.11-slim"]
    final = lines[lines.index(bases[1]) :]
    assert f"USER {USER_ID}:{USER_ID}" in final
    assert "STOPSIGNAL SIGTERM" in final
    assert 'ENTRYPOINT ["askonce"]' in final
    assert not any("pip" in line for line in final)
    assert "--constraint constraints.txt /wheels/*.whl" in DOCKERFILE
    for folder in ("queue", "worker", "loadtest"):
        assert f"COPY {folder} {folder}" in lines
