"""docs/CACHE_CONTROL.md is held to the code: every key with its default, every directive."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec

from askonce_queue.job import CacheControl
from askonce_worker.config import load_settings
from askonce_worker.config_schema import CacheConfig
from askonce_worker.config_units import Seconds, Stale, parse_stale

TEXT = (Path(__file__).parents[2] / "docs" / "CACHE_CONTROL.md").read_text(encoding="utf-8")
MODEL = '[models.moderator]\nkind = "python"\ncall = "a:b"\n'


def rows(heading: str) -> dict[str, list[str]]:
    section = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {row[0].strip("`"): row[1:] for row in cells}


def test_every_key_is_there_with_its_default() -> None:
    table = rows("A task's policy")
    fields = {one.encode_name: one.default for one in msgspec.structs.fields(CacheConfig)}
    assert list(table) == list(fields)
    for name, default in fields.items():
        shown = table[name][0].strip("`")
        if isinstance(default, bool):
            assert shown == str(default).lower()
        elif isinstance(default, Seconds | Stale):
            assert float(parse_stale(0 if shown == "0" else shown)) == float(default)
        elif isinstance(default, float):
            assert float(shown) == default
        else:
            assert shown == "\u2013"


def test_every_directive_is_there() -> None:
    fields = [field.encode_name for field in msgspec.structs.fields(CacheControl)]
    assert sorted(rows("A job's wishes")) == sorted(fields)


def test_the_examples_can_be_read(tmp_path: Path) -> None:
    (toml,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    path = tmp_path / "askonce.toml"
    path.write_text(MODEL + toml, encoding="utf-8")
    cache = load_settings(path).tasks["toxicity"].cache
    assert float(cache.ttl_by_label_s["toxic"]) == 7 * 86_400
    assert float(cache.stale_if_error_s) == 6 * 3600
    assert (
        tomllib.loads(toml)["tasks"]["toxicity"]["cache"]["min_confidence"] == cache.min_confidence
    )
