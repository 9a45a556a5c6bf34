"""Rules: which inputs are kept from the cache."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askonce_worker.hits.inputs import input_text
from askonce_worker.hits.redact import redact
from askonce_worker.hits.rules import (
    MOST_PATTERN_CHARS,
    Rule,
    keeper_out,
    matcher,
    suggestion,
)
from askonce_worker.models.protocol import Question


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("reset my password", "Reset MY password", True),
        ("reset my password", "please reset my password", False),
        ("*reset*", "please reset it", True),
        ("reset*", "please reset it", False),
        ("*a*a*", "xa", False),
        ("ab*ba", "aba", False),
        ("ab*ba", "abba", True),
        ("*", "", True),
        ("a?c", "abc", False),
        ("a?c", "a?c", True),
        ("[a-z]", "b", False),
        ("*Straße*", "DIE STRASSE HIER", True),
        ("a\nb", "a\nb", True),
    ],
)
def test_patterns(pattern: str, text: str, matches: bool) -> None:
    assert matcher(pattern)(text.casefold()) is matches


@given(st.text(alphabet="ab*", max_size=12), st.text(alphabet="ab", max_size=20))
def test_it_is_a_glob(pattern: str, text: str) -> None:
    expected = re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), text, re.DOTALL)
    assert matcher(pattern)(text) is (expected is not None)


def test_it_is_linear() -> None:
    matches = matcher("*a" * (MOST_PATTERN_CHARS // 2) + "b")
    began = time.process_time()
    assert not matches("a" * 1_000_000)
    assert time.process_time() - began < 5


def test_rules_of_a_task() -> None:
    assert keeper_out([]) is None
    kept_out = keeper_out([Rule("t", "*balance*"), Rule("t", "hello")])
    assert kept_out is not None
    assert [kept_out(text) for text in ("My BALANCE?", "hello", "hello you")] == [
        True,
        True,
        False,
    ]
    everything = keeper_out([Rule("t", "hello"), Rule("t", "**")])
    assert everything is not None
    assert everything("anything")


def test_rules_read_chat_messages() -> None:
    kept_out = keeper_out([Rule("t", "*balance*")])
    assert kept_out is not None
    parts = [{"type": "image_url", "image_url": "balance"}, {"type": "text", "text": "my Balance"}]
    for content, expected in (
        ("my balance", True),
        (parts, True),
        (parts[:1], False),
        (None, False),
    ):
        messages: list[dict[str, Any]] = [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": content},
        ]
        assert kept_out(input_text(Question(messages=messages))) is expected


def test_the_same_rule_has_the_same_id() -> None:
    assert Rule("t", "A*", at_ms=1).id == Rule("t", "a*", at_ms=2).id
    assert Rule("t", "a").id != Rule("u", "a").id


@pytest.mark.parametrize("pattern", ["", " ", "x" * (MOST_PATTERN_CHARS + 1)])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(ValueError, match="patterns have 1 to 500 characters"):
        Rule("t", pattern)


@pytest.mark.parametrize(
    "text",
    [
        "I lost my card, call +1 (555) 123-4567 please",
        "mail john@example.com [urgent] today",
        "[email] was what I wrote",
        "plain words",
        "long " * 700,
        "x" * 3000,
        "4111 1111 1111 1111 and a@b.c",
    ],
)
def test_what_is_suggested_matches_the_input(text: str) -> None:
    pattern = suggestion(redact(text, 2000))
    assert len(pattern) <= MOST_PATTERN_CHARS
    assert matcher(pattern)(text.strip().casefold())


def test_nothing_is_suggested_of_nothing() -> None:
    assert suggestion("") == ""
