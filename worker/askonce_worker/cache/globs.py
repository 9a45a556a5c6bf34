"""Globs over tags: `*` is any bytes, `?` one byte. The scripts match in the same way.

A tag is matched as UTF-8, so `?` is one letter of ASCII only. Matching takes no longer than the
bytes of the glob times those of the tag: a piece between two stars is taken at the first place
where it can be, and never tried again. A pattern with `.*` for each star would try all ways to
place them: 8 stars and a tag of 200 bytes would hold up the server, or a worker, for ages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from askonce_queue.job import MAX_TAG_CHARS, valid_name

MOST_STARS = 8

Matches = Callable[[bytes], object]


def glob_matcher(glob: bytes) -> Matches:
    """A function that says whether a tag matches, by what it returns being true."""
    first, *others = [re.escape(piece).replace(rb"\?", b".") for piece in glob.split(b"*")]
    if not others:
        return re.compile(first, re.DOTALL).fullmatch
    *between, last = others
    pattern = first + b"".join(b"(?>.*?" + piece + b")" for piece in between) + b".*" + last
    return re.compile(pattern, re.DOTALL).fullmatch


def check_glob(glob: str) -> None:
    """Raise `ValueError` for a glob that cannot be used."""
    if not valid_name(glob, MAX_TAG_CHARS):
        raise ValueError(
            f"patterns are 1 to {MAX_TAG_CHARS} printable characters, not {glob!r:.60}"
        )
    if glob.count("*") > MOST_STARS:
        raise ValueError(
            f"a pattern has at most {MOST_STARS} '*', not {glob.count('*')}: {glob!r:.60}"
        )


def is_glob(text: str) -> bool:
    """Whether `text` stands for more than itself."""
    return "*" in text or "?" in text


def any_matcher(globs: Iterable[str]) -> Callable[[str], bool]:
    """A function that says whether a tag matches one of `globs`."""
    matchers = [glob_matcher(glob.encode()) for glob in globs]
    return lambda tag: any(matches(tag.encode()) for matches in matchers)
