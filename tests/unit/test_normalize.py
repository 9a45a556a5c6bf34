"""Normalisation steps: each does one thing, in the written order, and nothing is on by default."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askonce_queue.errors import ConfigError
from askonce_worker.cache.normalize import STEPS, normalizer


def normalized(steps: list[str], text: str) -> str:
    normalize = normalizer(steps)
    assert normalize is not None
    return normalize(text)


def test_no_steps_is_no_function() -> None:
    assert normalizer([]) is None


@pytest.mark.parametrize(
    ("step", "text", "expected"),
    [
        ("nfc", "e\u0301 \ufb01", "\u00e9 \ufb01"),
        ("nfkc", "\uff26\uff52\uff45\uff45 \ufb01ve \u2460", "Free five 1"),
        ("whitespace", "\t a\u00a0\u2003b\r\n\u3000c ", "a b c"),
        ("whitespace", "a\u200bb", "a\u200bb"),
        ("whitespace", " \n ", ""),
        ("casefold", "Straße I", "strasse i"),
    ],
)
def test_one_step(step: str, text: str, expected: str) -> None:
    assert normalized([step], text) == expected


def test_steps_apply_in_the_written_order() -> None:
    # NFKC makes a space and a combining mark of a diaeresis that stands alone.
    assert normalized(["whitespace", "nfkc"], "\u00a8a") == " \u0308a"
    assert normalized(["nfkc", "whitespace"], "\u00a8a") == "\u0308a"


@given(st.text(), st.sampled_from(sorted(STEPS)))
def test_a_step_repeated_changes_nothing(text: str, step: str) -> None:
    assert normalized([step, step], text) == normalized([step], text)


def test_an_unknown_step_is_named_with_the_allowed_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        normalizer(["nfkc", "lower"])
    assert "'lower'" in str(caught.value)
    for step in ("nfc", "nfkc", "whitespace", "casefold"):
        assert step in str(caught.value)
