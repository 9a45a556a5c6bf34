"""Globs: what they match, and that no pattern takes long."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from askonce_worker.cache.globs import MOST_STARS, check_glob, glob_matcher, is_glob


def means(glob: str, tag: str) -> bool:
    """What a glob means, by trying everything."""
    if not glob:
        return not tag
    if glob[0] == "*":
        return any(means(glob[1:], tag[start:]) for start in range(len(tag) + 1))
    return bool(tag) and glob[0] in ("?", tag[0]) and means(glob[1:], tag[1:])


@settings(max_examples=2000, deadline=None)
@given(st.text("ab.*?", max_size=8), st.text("ab.", max_size=8))
def test_a_glob_matches_what_it_means(glob: str, tag: str) -> None:
    assert bool(glob_matcher(glob.encode())(tag.encode())) == means(glob, tag)


def test_the_worst_glob_is_quick() -> None:
    """One regular expression with `.*` for each star takes minutes for this."""
    glob, tag = "*a" * (MOST_STARS - 1) + "*b", "a" * 200
    check_glob(glob)
    matches = glob_matcher(glob.encode())
    since = time.process_time()
    for _ in range(100):
        assert not matches(tag.encode())
    assert time.process_time() - since < 1.0


@pytest.mark.parametrize(
    ("glob", "fault"),
    [
        ("", "1 to 200 printable"),
        ("a" * 201, "1 to 200 printable"),
        ("a\nb", "1 to 200 printable"),
        ("*" * (MOST_STARS + 1), "at most 8"),
    ],
)
def test_globs_that_cannot_be_used(glob: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        check_glob(glob)


@pytest.mark.parametrize(("text", "glob"), [("a*", True), ("a?", True), ("a[b]", False)])
def test_what_is_a_glob(text: str, glob: bool) -> None:
    assert is_glob(text) is glob
