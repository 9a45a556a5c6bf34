"""What in a system prompt would ruin the hit rate: text that differs from day to day, or by user.

The prompt is part of every cache key, so each new wording starts with an empty cache. Whoever
writes the configuration anew with a date or an id in it asks every question again.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_SHOWN_CHARS = 40

_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
    r"|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)"
)


class Finding(NamedTuple):
    """Something volatile in a prompt: what it is, and the words."""

    what: str
    text: str


_VOLATILE = {
    "the current date or time": (
        r"\b(?:today|now)(?:'s date)?\s+is\b"
        r"|\b(?:current|today's)\s+(?:date|time|day)\b"
        r"|\bas of (?:today|now)\b"
    ),
    "a template that was not filled in": (
        r"\{\{.*?\}\}|\{%.*?%\}|\$\{[^}]*\}|%\(\w+\)[sd]|<<\w+>>|\{[A-Za-z_][\w.]*\}"
    ),
    "a date": (
        r"\b\d{4}[-/.](?:0?[1-9]|1[0-2])[-/.](?:0?[1-9]|[12]\d|3[01])(?!\d)"
        r"|\b(?:0?[1-9]|[12]\d|3[01])[-/.](?:0?[1-9]|[12]\d|3[01])[-/.](?:19|20)\d\d\b"
        rf"|\b{_MONTH}\.?\s+\d{{1,2}}(?:st|nd|rd|th)?,?\s+(?:19|20)\d\d\b"
        rf"|\b\d{{1,2}}(?:st|nd|rd|th)?\.?\s+{_MONTH}\.?,?\s+(?:19|20)\d\d\b"
    ),
    "a time": (
        r"\b(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d)?(?:\.\d+)?(?:\s*(?:am|pm|utc|gmt|z))?\b"
        r"|\b(?:1[0-2]|0?[1-9])\s*(?:a\.m\.|p\.m\.|am|pm)(?!\w)"
    ),
    "an id": (
        r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"
        r"|\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{16,}\b"
        r"|\b(?=\w*\d\w*\d\w*\d)(?=\w*[a-z])\w{20,}\b"
    ),
    "a long number": r"(?<![\d.])\d{9,}(?![\d.]*\d)",
}
_COMPILED = {what: re.compile(text, re.IGNORECASE) for what, text in _VOLATILE.items()}


def volatile_parts(prompt: str) -> list[Finding]:
    """What in `prompt` looks as if it changed with time or user; at most one of each kind.

    What one kind has found, later kinds do not find again: a UUID is no long number.
    """
    findings: list[Finding] = []
    rest = prompt
    for what, pattern in _COMPILED.items():
        match = pattern.search(rest)
        if match is not None:
            text = " ".join(match[0].split())
            shown = text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}…"
            findings.append(Finding(what, shown))
            rest = pattern.sub(" ", rest)
    return findings
