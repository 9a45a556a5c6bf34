"""What the options of `askonce invalidate` stand for, and what they may not be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from askonce_queue.store import Store
from askonce_worker.cache.invalidation import Target
from askonce_worker.cache.survey import Tally
from askonce_worker.cli.invalidate_shown import counted
from askonce_worker.cli.invalidate_target import Chosen, described, safe, target_of
from askonce_worker.cli.loop import Failed
from askonce_worker.config import Settings, load_settings

CONFIG = """
[models.sizes]
kind = "python"
call = "m:m"

[models.idle]
kind = "python"
call = "m:m"

[sources.law]

[sources.policy]
depends_on = ["law"]

[tasks.size]
model = "sizes"

[tasks.support-size]
model = "sizes"
cache = { sources = ["policy"] }
"""
KEY = "ab" * 32


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    path = tmp_path / "askonce.toml"
    path.write_text(CONFIG)
    return load_settings(path)


async def chosen(settings: Settings, *, force: bool = False, **options: Any) -> Target:
    store = Store("redis://127.0.0.1:1/0")  # never asked
    choice = Chosen(**options)
    choice.check()
    return await target_of(choice, settings, store, force=force)


@pytest.mark.parametrize(
    ("options", "tags", "globs"),
    [
        ({"tasks": ["size"]}, ["task:size"], []),
        ({"tasks": ["s*"]}, ["task:size", "task:support-size"], []),
        ({"tasks": ["size", "s?ze"]}, ["task:size"], []),
        ({"tasks": ["gone*"], "force": True}, [], ["task:gone*"]),
        ({"tasks": ["gone"], "force": True}, ["task:gone"], []),
        ({"models": ["sizes"]}, ["task:size", "task:support-size"], []),
        ({"tags": ["a", "*b"]}, ["a", "*b"], []),
        ({"sources": ["policy"]}, ["source:policy"], []),
        ({"sources": ["law"]}, ["source:law", "source:policy"], []),
        ({"sources": ["doc 7"], "force": True}, ["source:doc 7"], []),
        ({"patterns": ["user:*"]}, [], ["user:*"]),
        ({"tasks": ["size"], "patterns": ["x?"]}, ["task:size"], ["x?"]),
        ({"everything": True}, [], []),
    ],
)
async def test_what_options_stand_for(
    settings: Settings, options: dict[str, Any], tags: Sequence[str], globs: Sequence[str]
) -> None:
    target = await chosen(settings, **options)
    assert (list(target.tags), list(target.globs)) == (tags, globs)
    assert target.everything is options.get("everything", False)


async def test_a_whole_key_is_not_looked_for(settings: Settings) -> None:
    target = await chosen(settings, keys=[KEY.upper()])
    assert target.keys == [bytes.fromhex(KEY)]
    assert target.only_keys
    assert described(Chosen(), target) == ["key abababababababab"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "say what to invalidate"),
        ({"everything": True, "tags": ["a"]}, "say what to invalidate"),
        ({"tasks": ["sice"]}, "no task 'sice' (did you mean 'size'?)"),
        ({"tasks": ["x*"]}, "no task matches 'x*'; known tasks: size, support-size"),
        ({"models": ["sices"]}, "is configured for model 'sices' (did you mean 'sizes'?)"),
        ({"models": ["idle"]}, "no task uses model 'idle'"),
        ({"sources": ["lore"]}, "no [sources.lore]"),
        ({"sources": [""]}, "sources are 1 to 200 printable characters"),
        ({"keys": ["abc"]}, "a key is 64 hexadecimal digits, or the first 8 or more"),
        ({"keys": ["xy" * 32]}, "a key is 64 hexadecimal digits"),
        ({"keys": [KEY + "0"]}, "a key is 64 hexadecimal digits"),
        ({"patterns": ["*" * 9]}, "a pattern has at most 8 '*'"),
        ({"patterns": [""]}, "patterns are 1 to 200 printable characters"),
        ({"tags": ["line\nbreak"]}, "tags are 1 to 200 printable characters"),
        ({"old_versions": True, "everything": True}, "--old-versions goes with --task only"),
        ({"old_versions": True, "keys": [KEY]}, "--old-versions goes with --task only"),
        ({"tags": [f"{number}" for number in range(501)]}, "at most 500 tags, keys"),
    ],
)
async def test_what_cannot_be_invalidated(
    settings: Settings, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(Failed) as raised:
        await chosen(settings, **options)
    assert expected in str(raised.value)


@pytest.mark.parametrize(
    ("tally", "expected"),
    [
        (Tally(1, 10), "it took 1 answer (of 10 stored)"),
        (Tally(1234, 5678), "it took 1,234 answers (of 5,678 stored)"),
        (
            Tally(12, 300, "the limit was reached"),
            (
                "it took at least 12 answers (of 300 stored that were looked at); "
                "how many in all is unknown: the limit was reached"
            ),
        ),
        (Tally(0, 0, "no"), "how many answers it took is unknown: no"),
    ],
)
def test_counts_in_words(tally: Tally, expected: str) -> None:
    assert counted("it took", tally) == expected


def test_nothing_reaches_a_terminal_unescaped() -> None:
    assert safe("a\x1b[2Jb\x9b\u00e4") == "a?[2Jb?\u00e4"
