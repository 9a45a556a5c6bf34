"""Redaction: what has a shape goes, however it is written; what has none stays readable."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askonce_worker.hits.redact import CUT, MARGIN, redact

CASES = {
    # e-mail
    "mail john.doe+x@example.co.uk, ok?": "mail [email], ok?",
    "john@localhost": "[email]",
    "O'Brien: o'brien@example.com.": "O'Brien: [email].",
    '"john doe"@example.com': "[email]",
    "“müller@exämple.de”": "“[email]”",
    "john (at) example [dot] com": "[email]",
    "john%40example.com": "[email]",
    "user\uff20example\uff0ecom": "[email]",
    "jo\u200bhn@exam\u00adple.com": "[email]",
    "meet @ noon": "meet @ noon",
    "@handle": "@handle",
    # phone
    "call +1 (555) 123-4567 now": "call [phone] now",
    "0171/1234567": "[phone]",
    "030 \u2013 1234 567": "[phone]",
    "555\u00a0123\u202f4567": "[phone]",
    "tel:5551234567": "tel:[phone]",
    "\u0660\u0661\u0662\u0663\u0664\u0665\u0666\u0667": "[phone]",
    "room 12, floor 3, 100000 users": "room 12, floor 3, 100000 users",
    "SSN 123-45-6789": "SSN [phone]",
    # card
    "card 4111 1111 1111 1111 exp 12/26": "card [card] exp 12/26",
    "card 4111-1111-1111-1112": "card [number]",
    "378282246310005": "[card]",
    # account
    "iban DE89 3704 0044 0532 0130 00 and then": "iban [iban] and then",
    "gb82west12345698765432": "[iban]",
    "GB82 WEST 1234 5698 7654 33": "GB82 WEST [phone]",
    # addresses of machines
    "from 10.0.0.1:8080": "from [ip]:8080",
    "2001:db8::8a2e:370:7334 and ::1": "[ip] and [ip]",
    "std::vector :: at 12:30:45": "std::vector :: at 12:30:45",
    "00:1a:2b:3c:4d:5e": "[id]",
    # ids and dates
    "550e8400-e29b-41d4-a716-446655440000": "[id]",
    "passport C01X00T47, order A1234567": "passport C01X00T47, order [id]",
    "da39a3ee5e6b4b0d3255bfef95601890afd80709": "[id]",
    "born 1990-01-31 or 31.01.1990": "born [date] or [date]",
    # what lets others in
    "http://bob:secret@host/x": "http://[login]/x",
    "Bearer abcdefghijklmnop": "[key]",
    "sk-abc123def456ghi789": "[key]",
    "ghp_16C7e42F292c6912E7710c838347Ae178B4a": "[key]",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln": "[key]",
    "pin: 1234 api_key=xyz": "[key] [key]",
    "my password is hunter2": "my [key]",
    "my password is not working": "my password is not working",
    "the key-performance-indicators": "the key-performance-indicators",
    # together
    "a@b.c4111111111111111": "[email]",
    "x@y.z, +49 30 1234567; 1.2.3.4": "[email], [phone]; [ip]",
    "": "",
    "I lost my card": "I lost my card",
}


@pytest.mark.parametrize("text", CASES)
def test_hard_cases(text: str) -> None:
    assert redact(text, 2000) == CASES[text]


@pytest.mark.parametrize("text", [text for text, shown in CASES.items() if "[" in shown])
@pytest.mark.parametrize("around", ["{}", "\n{}\n", "({})", "x: {},", "“{}”", "  {}  ", "{}."])
def test_whatever_stands_around_it(text: str, around: str) -> None:
    found = redact(around.format(text), 2000)
    assert not re.search(r"\d{6}|example|hunter2|secret|4111|3704", found), found


LOCAL = st.from_regex(r"[a-z0-9][a-z0-9._+-]{0,20}[a-z0-9]", fullmatch=True)
DOMAIN = st.from_regex(r"[a-z0-9-]{1,12}(\.[a-z]{2,6}){1,3}", fullmatch=True)
TEXT = st.text(max_size=60)


@given(TEXT, LOCAL, DOMAIN, TEXT)
def test_no_address_is_left(before: str, local: str, domain: str, after: str) -> None:
    address = f"{local}@{domain}"
    assert address not in redact(f"{before} {address} {after}", 2000)


@given(TEXT, st.lists(st.integers(0, 9), min_size=7, max_size=30), st.data(), TEXT)
def test_no_long_number_is_left(
    before: str, digits: list[int], data: st.DataObject, after: str
) -> None:
    gaps = data.draw(
        st.lists(st.sampled_from(["", "", " ", "-", ".", "\u00a0", ") "]), min_size=30)
    )
    number = "".join(f"{digit}{gap}" for digit, gap in zip(digits, gaps, strict=False)).rstrip()
    redacted = redact(f"{before} {number} {after}", 2000)
    assert number not in redacted


@given(st.text(), st.integers(0, 200))
def test_it_is_bounded_and_never_fails(text: str, most: int) -> None:
    redacted = redact(text, most)
    # Every replacement stands for at least as many characters, but for a few short ones.
    assert len(redacted) <= 3 * most + len("[number]") + len(CUT)


@given(st.text(alphabet=st.characters(categories=["L", "Zs"]), max_size=300))
def test_words_stay_as_they_are(text: str) -> None:
    if re.search("pass|pwd|secret|key|token|pin|bearer|basic", text, re.IGNORECASE):
        return
    assert redact(text, 1000) == text


@pytest.mark.parametrize("secret", ["4111 1111 1111 1111", "john.doe@example.com", "1" * 600])
@pytest.mark.parametrize("offset", range(-30, 3))
def test_what_is_cut_in_the_middle_is_not_left_in_part(secret: str, offset: int) -> None:
    most = 100
    text = "x" * (most + offset - 1) + " " + secret + " y" * 2 * MARGIN
    redacted = redact(text, most)
    assert redacted.endswith(CUT)
    assert not re.search(r"1|john|example", redacted), redacted


def test_many_invisible_characters_hide_nothing_at_the_cut() -> None:
    text = "\u200b" * (MARGIN + 50) + "4111 1111 1111 1111" + "\u200b" * MARGIN + " more" * 300
    for most in range(50, 120):
        assert "41" not in redact(text, most)


FRAGMENTS = [
    *("a", "1", "1 ", "@", "a@", "a.", "(", "::", "[at]", '"', "a-", "sk-1", "de89 ", "é"),
    *("password:", "password is ", "bearer ", "1.", "://a:", "eyJ", "f:", "x@x[dot]"),
]


@pytest.mark.parametrize("fragment", [a + b for a in FRAGMENTS for b in ("", " ", "1", "@", ":")])
def test_it_is_linear(fragment: str) -> None:
    """Eight times the text takes less than 40 times as long, at the best of some tries."""
    short, long = 2_000, 16_000
    text = fragment * long

    def seconds(most: int) -> float:
        tries: list[float] = []
        for _ in range(3):
            began = time.process_time()
            redact(text, most)
            tries.append(time.process_time() - began)
        return min(tries)

    assert seconds(long) < 40 * max(seconds(short), 0.000_2)
