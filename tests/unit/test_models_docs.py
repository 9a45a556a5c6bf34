"""docs/MODELS.md is held to the code: every kind is there, and its examples can be loaded."""

from __future__ import annotations

import re
from pathlib import Path

from askonce_worker.build import model_identity
from askonce_worker.config import load_settings
from askonce_worker.config_models import MODEL_KINDS

TEXT = (Path(__file__).parents[2] / "docs" / "MODELS.md").read_text(encoding="utf-8")


def test_every_kind_is_there() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| ", TEXT.partition("```toml")[0], re.MULTILINE)
    assert sorted(rows) == sorted(["kind", *MODEL_KINDS])  # with the head of the table


def test_the_examples_can_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "askonce.toml"
    path.write_text("\n".join(re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)), encoding="utf-8")
    settings = load_settings(path)
    identities = {name: model_identity(settings, name) for name in settings.models}
    assert identities["claude"] == {
        "kind": "anthropic",
        "base_url": "https://api.anthropic.com",
        "model": "claude-haiku",
        "api_version": "2026-10-21",
    }
    assert {one["kind"] for one in identities.values()} == set(MODEL_KINDS) - {
        "openai-responses",
    }
