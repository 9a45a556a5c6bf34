"""The keys of shadow checks in the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from askonce_worker.build import build_policy
from tests.support.config_file import TASK, ConfigLoader


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigLoader:
    monkeypatch.chdir(tmp_path)
    return ConfigLoader(tmp_path)


def test_a_share_and_a_limit(load: ConfigLoader) -> None:
    cache = "cache = { verify_share = 0.01, max_disagreement = 0.02 }"
    policy = build_policy(load(f"{TASK}{cache}\n").tasks["intent"])
    assert (policy.verify_share, policy.max_disagreement) == (0.01, 0.02)
    plain = build_policy(load(TASK).tasks["intent"])
    assert (plain.verify_share, plain.max_disagreement) == (0.0, None)


@pytest.mark.parametrize(
    ("cache", "expected"),
    [
        ("verify_share = 2", "tasks.intent.cache.verify_share: expected float <= 1.0, got 2"),
        ("verify_share = -1", "tasks.intent.cache.verify_share: expected float >= 0.0, got -1"),
        (
            "verify_share = 1, max_disagreement = 0",
            "tasks.intent.cache.max_disagreement: expected float > 0.0, got 0",
        ),
        (
            "max_disagreement = 0.1",
            "tasks.intent.cache.max_disagreement: expected a verify_share above 0 beside it",
        ),
    ],
)
def test_what_is_wrong_is_said(load: ConfigLoader, cache: str, expected: str) -> None:
    assert load.error(f"{TASK}cache = {{ {cache} }}\n").startswith(expected)
