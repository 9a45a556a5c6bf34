"""Redaction: what identifies people or lets others in is replaced before a text is kept.

E-mail addresses, phone and card numbers, IBANs, IP and hardware addresses, ids and keys. It errs on
the side of too much: any long number goes, whatever it is. What has no shape stays: names, streets.

Every pattern is linear: it begins at a boundary, and its parts cannot match the same text in two
ways, or are short. They all read the original text, so no replacement hides another.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

MARGIN = 500
"""How much is read beyond what is kept, so that nothing is cut in the middle and so not seen."""
CUT = "…"
"""What a text that was cut ends in."""

_INVISIBLE = "\u00ad\u200b-\u200f\u2060\ufeff"
_GAP = r"[ \t.\-/()\u00a0\u2000-\u200a\u2010-\u2015\u202f\u2212·]"
"""What may stand between the digits of one number."""
_UNSEEN = re.compile(f"[{_INVISIBLE}]")
"""Characters without width: what is written with them reads as if it were written without."""
_AT = r"(?:[@\uff20]|%40|\s?[\[({]\s?at\s?[\])}]\s?)"
_DOT = r"(?:[.\uff0e\u3002]|\s?[\[({]\s?dot\s?[\])}]\s?)"


class Span(NamedTuple):
    """A part of a text that is to be replaced by `[what]`."""

    start: int
    end: int
    what: str


def redact(text: str, most_chars: int) -> str:
    """The first `most_chars` characters of a text, redacted; `CUT` at the end if there were more.

    Linear in `most_chars`, however long the text is.
    """
    read = _UNSEEN.sub("", text[: most_chars + MARGIN])
    whole = len(text) <= most_chars + MARGIN
    end = min(most_chars, len(read) if whole else len(read) - MARGIN)
    parts: list[str] = []
    at = 0
    for span in _merged(read):
        if span.start >= end:
            break
        parts += (read[at : span.start], f"[{span.what}]")
        at = span.end
    if at < end:
        parts.append(read[at:end])
    if not whole or len(read) > max(at, end):
        parts.append(CUT)
    return "".join(parts)


def _merged(text: str) -> list[Span]:
    """What is to be replaced, in order and apart; where kinds overlap, the longest names them."""
    merged: list[Span] = []
    for span in sorted(_found(text)):
        last = merged[-1] if merged else None
        if last is None or span.start >= last.end:
            merged.append(span)
        else:
            longer = span.end - span.start > last.end - last.start
            what = span.what if longer else last.what
            merged[-1] = Span(last.start, max(last.end, span.end), what)
    return merged


def _found(text: str) -> Iterator[Span]:
    for what, pattern in _PLAIN.items():
        for match in pattern.finditer(text):
            yield Span(*match.span(), what)
    for pattern, judge in _JUDGED:
        for match in pattern.finditer(text):
            found = judge(match[0])
            if found is not None:
                what, length = found
                yield Span(match.start(), match.start() + length, what)


Judgement = tuple[str, int] | None
"""What a candidate is, and how much of it; None: something else."""


def _number(candidate: str) -> Judgement:
    digits = "".join(str(int(char)) for char in candidate if char.isdecimal())
    length = len(candidate)
    if 13 <= len(digits) <= 19 and _luhn(digits):  # noqa: PLR2004 -- ISO/IEC 7812
        return "card", length
    if _DATE.fullmatch(candidate):
        return "date", length
    if 7 <= len(digits) <= 15:  # noqa: PLR2004 -- E.164
        return "phone", length
    return "number", length


def _luhn(digits: str) -> bool:
    """Whether the check digit is right. Source: ISO/IEC 7812-1, annex B."""
    total = 0
    for place, char in enumerate(reversed(digits)):
        digit = int(char) * (1 + place % 2)
        total += digit - 9 * (digit > 9)  # noqa: PLR2004 -- the sum of its two digits
    return total % 10 == 0


def _iban(candidate: str) -> Judgement:
    """The longest beginning with the right check digits: words after it look like a part of it.

    The check is ISO 7064 MOD 97-10, over the characters with the first four moved to the end.
    """
    ends = [at + 1 for at, char in enumerate(candidate) if char.isalnum()]
    numbers = [int(candidate[end - 1], 36) for end in ends]
    head = 0
    for number in numbers[:4]:
        head = _append(head, number)
    found, rest = 0, 0
    for count, number in enumerate(numbers[4:34], 5):
        rest = _append(rest, number) % 97
        if count >= 15 and (rest * 1_000_000 + head) % 97 == 1:  # noqa: PLR2004 -- ISO 13616
            found = ends[count - 1]
    return ("iban", found) if found else None


def _append(number: int, more: int) -> int:
    """A number with the one or two digits of another after its own."""
    return number * (100 if more > 9 else 10) + more  # noqa: PLR2004 -- letters have two


def _ip6(candidate: str) -> Judgement:
    address = candidate.rstrip(".")
    if len(address) < 3 or address.count(":") < 2:  # noqa: PLR2004 -- "::" is punctuation
        return None
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return None
    return "ip", len(address)


_PLAIN = {
    "email": re.compile(
        rf"(?:(?<![\w.+'-])[\w.+'-]++|\"[^\"\n]{{1,64}}\"){_AT}[\w-]++(?:{_DOT}[\w-]++)*",
        re.IGNORECASE,
    ),
    "login": re.compile(r"(?<=://)[^\s/@:]{1,64}:[^\s/@]{1,128}@"),
    "key": re.compile(
        r"(?<![\w-])(?=[\w-]{0,128}\d)(?:"
        r"(?:sk|pk|rk|ghp|gho|ghs|glpat|xox[abprs]|pat|key|token)[-_][\w-]{12,}+"
        r"|github_pat_\w{12,}+|AKIA[0-9A-Z]{12,}+|AIza[\w-]{20,}+"
        r"|eyJ[\w-]{8,}+(?:\.[\w-]*+){0,2}"
        r")|(?<!\w)(?:bearer|basic)[ \t]{1,4}[\w.~+/=-]{12,}+"
        r"|(?<!\w)(?:password|passwd|passwort|pwd|secret|api[_-]?key|token|pin)"
        r"(?:[ \t]{0,4}[:=][ \t]{0,4}\S{1,256}|[ \t]is[ \t]{1,4}(?=\S{0,64}\d)\S{1,256})",
        re.IGNORECASE,
    ),
    "ip": re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?:/\d{1,2})?(?!\d)"),
    "id": re.compile(
        r"(?<![0-9a-f])[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"
        r"|(?<![0-9a-f])(?:[0-9a-f]{2}([:-]))(?:[0-9a-f]{2}\1){4}[0-9a-f]{2}(?![0-9a-f])"
        r"|(?<![^\W_])(?=[0-9a-f]*\d)[0-9a-f]{16,}+(?![^\W_])"
        r"|(?<![^\W_])[a-z]{1,3}-?\d{6,}+",
        re.IGNORECASE,
    ),
}
_DATE = re.compile(
    r"(?:\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{4})(?:[ \t]{1,4}\d{1,2})?"
)
_JUDGED: tuple[tuple[re.Pattern[str], Callable[[str], Judgement]], ...] = (
    (re.compile(rf"(?<!\d)\+?\(?\d(?:{_GAP}{{0,4}}\d){{6,}}"), _number),
    (
        re.compile(r"(?<![^\W_])[a-z]{2}\d{2}(?:[ -]?[a-z0-9]){11,40}", re.IGNORECASE | re.ASCII),
        _iban,
    ),
    (re.compile(r"(?<![\w:.])(?=[0-9a-f:.]*:)[0-9a-f:.]{2,45}", re.IGNORECASE | re.ASCII), _ip6),
)
