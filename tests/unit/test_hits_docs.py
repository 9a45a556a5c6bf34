"""docs/HITS.md is held to the code: keys with their defaults, kinds of redaction, commands."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from askonce_worker.config import HitLogConfig, load_settings
from askonce_worker.hits import redact, reviews, rulebook, rules
from askonce_worker.hits.record import MOST_INPUT_CHARS

TEXT = (Path(__file__).parents[2] / "docs" / "HITS.md").read_text(encoding="utf-8")
TASK = '[models.m]\nkind = "python"\ncall = "a:b"\n[tasks.intent]\nmodel = "m"\n'


def test_the_example_has_every_key_with_its_default(tmp_path: Path) -> None:
    (toml,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "said.toml").write_text(TASK + toml, encoding="utf-8")
    (tmp_path / "bare.toml").write_text(TASK, encoding="utf-8")
    said, bare = load_settings(tmp_path / "said.toml"), load_settings(tmp_path / "bare.toml")
    assert said.tasks == bare.tasks
    assert said.worker == bare.worker
    for field in msgspec.structs.fields(HitLogConfig):
        assert f"\n{field.encode_name} = " in toml


def test_every_kind_of_redaction_is_there() -> None:
    shown = set(re.findall(r"`\[(\w+)\]`", TEXT))
    judged = {"card", "date", "phone", "number", "iban", "ip"}
    assert shown == set(redact._PLAIN) | judged == set(rules._REDACTED)  # pyright: ignore[reportPrivateUsage]


def test_numbers() -> None:
    assert f"every {rulebook.READ_EVERY_S:g} s" in TEXT
    assert f"at most {rules.MOST_RULES}." in TEXT
    assert f"last {reviews.RATE_DAYS} days" in TEXT
    assert f"after {MOST_INPUT_CHARS:,} characters" in TEXT
