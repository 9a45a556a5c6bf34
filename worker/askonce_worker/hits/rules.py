"""Rules: inputs that are kept from the cache, because somebody who reviewed hits said so.

A rule is a task and a pattern over the text of the input: `*` is any text, all else stands for
itself, and case does not matter. `*` alone makes the whole task uncacheable. What a rule matches is
neither answered from the cache nor kept: each such job has a model call of its own (`bypass`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import msgspec

MOST_RULES = 100
MOST_PATTERN_CHARS = 500
EVERYTHING = "*"
"""The pattern of a task that is not cacheable at all."""


class Rule(msgspec.Struct, frozen=True):
    """One rule. `at_ms` is when it was added, Unix ms; `key` that of the hit that led to it."""

    task: str
    pattern: str
    at_ms: int = 0
    key: str = ""

    def __post_init__(self) -> None:
        if not self.task:
            raise ValueError("a rule names a task")
        if not self.pattern.strip() or len(self.pattern) > MOST_PATTERN_CHARS:
            raise ValueError(
                f"patterns have 1 to {MOST_PATTERN_CHARS} characters, not {len(self.pattern)}"
            )

    @property
    def id(self) -> str:
        """Its name in the store: the same rule has the same one, so adding it twice adds one."""
        text = f"{self.task}\0{self.pattern.casefold()}"
        return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]


Matcher = Callable[[str], bool]


def matcher(pattern: str) -> Matcher:
    """Whether a casefolded text is what `pattern` describes, from its beginning to its end.

    Linear: between two `*` the first occurrence is as good as any.
    """
    first, *rest = pattern.casefold().split("*")
    if not rest:
        return first.__eq__
    *middle, last = rest
    middle = [part for part in middle if part]

    def matches(text: str) -> bool:
        if not (text.startswith(first) and text.endswith(last)):
            return False
        at, end = len(first), len(text) - len(last)
        for part in middle:
            found = text.find(part, at, end)
            if found < 0:
                return False
            at = found + len(part)
        return at <= end

    return matches


def keeper_out(rules: Iterable[Rule]) -> Callable[[str], bool] | None:
    """What tells of an input of one task (see `input_text`) whether its rules keep it out.

    None without any. It takes about half a microsecond a rule, more for long texts.
    """
    patterns = [rule.pattern for rule in rules]
    if not patterns:
        return None
    if any(not pattern.strip("*") for pattern in patterns):
        return lambda _text: True
    matchers = [matcher(pattern) for pattern in patterns]

    def kept_out(text: str) -> bool:
        folded = text.casefold()
        return any(matches(folded) for matches in matchers)

    return kept_out


def suggestion(redacted: str) -> str:
    """A pattern for inputs like a logged one: what was redacted or cut may be anything."""
    parts: list[str] = []
    rest = redacted.strip()
    cut = rest.endswith("…")
    rest = rest.removesuffix("…")
    while rest:
        before, opening, after = rest.partition("[")
        what, closing, tail = after.partition("]")
        if opening and closing and what in _REDACTED:
            parts += (before, "*")
            rest = tail
        else:
            parts += (before, opening)
            rest = after
    pattern = "".join(parts)
    if len(pattern) > MOST_PATTERN_CHARS - 1:
        pattern, cut = pattern[: MOST_PATTERN_CHARS - 1], True
    return pattern.rstrip("*") + "*" if cut else pattern


_REDACTED: Sequence[str] = (
    *("email", "login", "key", "ip", "id", "card", "date", "phone", "number", "iban"),
)
