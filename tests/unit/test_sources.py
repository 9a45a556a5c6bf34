"""Sources: what answers are built on, and what that is built on."""

from __future__ import annotations

from pathlib import Path

import pytest

from askonce_queue.errors import ConfigError
from askonce_worker.build import build_sources
from askonce_worker.cache.sources import Sources
from askonce_worker.config import load_settings

CHAIN = {"faq": ["policy"], "policy": ["law"], "law": [], "other": []}


def test_an_answer_carries_all_that_its_sources_depend_on() -> None:
    sources = Sources(CHAIN)
    assert set(sources.close(["task:t", "source:faq"])) == {
        "task:t",
        "source:faq",
        "source:policy",
        "source:law",
    }
    assert sources.close(["source:unknown", "mine"]) == ("source:unknown", "mine")


def test_what_depends_on_a_source_goes_with_it() -> None:
    sources = Sources(CHAIN)
    assert set(sources.dependents("law")) == {"source:law", "source:policy", "source:faq"}
    assert sources.dependents("faq") == ("source:faq",)
    assert sources.dependents("unknown") == ("source:unknown",)


def test_a_circle_is_one_thing() -> None:
    sources = Sources({"a": ["b"], "b": ["a"]})
    assert set(sources.close(["source:a"])) == {"source:a", "source:b"}
    assert sorted(sources.dependents("a")) == ["source:a", "source:b"]


CONFIG = """
[models.m]
kind = "python"
call = "m:m"

[sources.law]

[sources."policy.md"]
depends_on = ["law"]

[tasks.t]
model = "m"
cache = {{ sources = [{sources}] }}
"""


def settings_with(folder: Path, text: str) -> Path:
    path = folder / "askonce.toml"
    path.write_text(text)
    return path


def test_sources_of_the_configuration(tmp_path: Path) -> None:
    settings = load_settings(settings_with(tmp_path, CONFIG.format(sources='"policy.md"')))
    assert settings.tasks["t"].cache.sources == ("policy.md",)
    assert set(build_sources(settings).close(["source:policy.md"])) == {
        "source:policy.md",
        "source:law",
    }


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            CONFIG.format(sources='"lax"'),
            "tasks.t.cache.sources: no [sources.lax] in this file (did you mean 'law'?)",
        ),
        (
            CONFIG.format(sources="") + '[sources.x]\ndepends_on = ["y"]',
            "sources.x.depends_on: no [sources.y] in this file",
        ),
        (
            CONFIG.format(sources="") + '[sources.x]\ndepend_on = ["law"]',
            "sources.x: unknown key 'depend_on' (did you mean 'depends_on'?)",
        ),
        (CONFIG.format(sources="") + '[sources."a b"]', "sources: expected names of 1 to 64"),
    ],
)
def test_sources_that_are_not_there(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_settings(settings_with(tmp_path, text))
    assert fault in str(raised.value)
