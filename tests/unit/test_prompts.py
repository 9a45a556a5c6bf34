"""What `askonce doctor` finds in system prompts, and what it leaves alone."""

from __future__ import annotations

import pytest

from askonce_worker.cli.prompts import volatile_parts


@pytest.mark.parametrize(
    ("prompt", "what", "text"),
    [
        ("Classify. Today is Monday.", "the current date or time", "Today is"),
        ("The current time: see above", "the current date or time", "current time"),
        ("Rules as of today:", "the current date or time", "as of today"),
        ("Rules of 2026-11-21.", "a date", "2026-11-21"),
        ("Rules of 2026/1/5", "a date", "2026/1/5"),
        ("Rules of 21.11.2026", "a date", "21.11.2026"),
        ("Rules of 11/21/2026", "a date", "11/21/2026"),
        ("Rules of November 21st, 2026", "a date", "November 21st, 2026"),
        ("Rules of 21 Nov 2026", "a date", "21 Nov 2026"),
        ("It is 14:05 here", "a time", "14:05"),
        ("At 14:05:59.123Z", "a time", "14:05:59.123Z"),
        ("At 9 am sharp", "a time", "9 am"),
        (
            "For 123e4567-e89b-12d3-a456-426614174000",
            "an id",
            "123e4567-e89b-12d3-a456-426614174000",
        ),
        ("Trace 4bf92f3577b34da6a3ce929d0e0e4736", "an id", "4bf92f3577b34da6a3ce929d0e0e4736"),
        ("Key req_011CSHoEeqs5C35K2UUqR7Fy", "an id", "req_011CSHoEeqs5C35K2UUqR7Fy"),
        ("Customer 4200000001 asks", "a long number", "4200000001"),
        ("Hello {user_id}, classify", "a template that was not filled in", "{user_id}"),
        ("Hello {user.name}", "a template that was not filled in", "{user.name}"),
        ("Hello {{ name }}!", "a template that was not filled in", "{{ name }}"),
        ("Hello ${NAME}", "a template that was not filled in", "${NAME}"),
        ("Hello %(name)s", "a template that was not filled in", "%(name)s"),
        ("{% if x %} yes", "a template that was not filled in", "{% if x %}"),
    ],
)
def test_found(prompt: str, what: str, text: str) -> None:
    assert volatile_parts(prompt) == [(what, text)]


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "Classify the message. Answer with one label.",
        'Answer as JSON: {"label": "spam", "score": 0.93}',
        "Answer { } or {1, 2}; ratio 3:1; see section 4.2.17; call 911 or 112.",
        "Amounts up to 1,000,000.00 and versions like 3.11.7 are fine; 50% of 2024.",
        "Internationalization and otorhinolaryngological are long words.",
        "Use snake_case_names_like_this_very_long_identifier for labels.",
        "You may answer in May. March on. 24/7 support; 1/2 cup; 10-20 words.",
        "The user's current mood, and the time they took, matter.",
        "f(x) = x; a <b> tag; <<< and >>>; $5 or $(5)",
    ],
)
def test_left_alone(prompt: str) -> None:
    assert volatile_parts(prompt) == []


def test_each_kind_is_found_once_and_shortened() -> None:
    prompt = "Today is 2026-11-21 14:05, not 2026-11-22, for {user} 0123456789abcdef" + "0" * 60
    found = volatile_parts(prompt)
    assert [what for what, _ in found] == [
        "the current date or time",
        "a template that was not filled in",
        "a date",
        "a time",
        "an id",
    ]
    assert len(found[-1].text) == 41
