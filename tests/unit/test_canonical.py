"""Canonical JSON: equal values have one text, different values never share one."""

from __future__ import annotations

import enum
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askonce_queue.errors import InvalidJob
from askonce_worker.cache.canonical import (
    MAX_DEPTH,
    MAX_INT,
    MIN_INT,
    canonical,
    is_array,
    is_object,
)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(MIN_INT, MAX_INT)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
JSON_VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


def respelled(value: Any) -> Any:
    """Spell the same JSON value otherwise: members reversed, tuples, floats for integers."""
    if is_object(value):
        return {name: respelled(value[name]) for name in reversed(value)}
    if is_array(value):
        return tuple(respelled(item) for item in value)
    if type(value) is int and int(float(value)) == value:
        return float(value) or -0.0
    return value


def model(value: Any) -> Any:
    """Return what makes two JSON values equal, as nested tuples.

    Python's `==` does the rest: it compares integers and floats by their exact value.
    """
    if is_object(value):
        return ("object", frozenset((name, model(item)) for name, item in value.items()))
    if is_array(value):
        return ("array", tuple(model(item) for item in value))
    return (isinstance(value, bool), value)


def nested(depth: int) -> Any:
    value: Any = "core"
    for level in range(depth):
        value = [value] if level % 2 else {"in": value}
    return value


@given(JSON_VALUES)
def test_another_spelling_of_a_value_has_the_same_text(value: Any) -> None:
    assert canonical(respelled(value)) == canonical(value)


@given(JSON_VALUES)
def test_the_text_is_json_of_an_equal_value(value: Any) -> None:
    assert model(json.loads(canonical(value))) == model(value)


@given(JSON_VALUES, JSON_VALUES)
def test_texts_are_equal_exactly_when_values_are(one: Any, other: Any) -> None:
    assert (canonical(one) == canonical(other)) == (model(one) == model(other))


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(MIN_INT, MAX_INT))
def test_a_float_and_an_integer_share_a_text_exactly_when_equal(one: float, other: int) -> None:
    assert (canonical(one) == canonical(other)) == (one == other)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, b"0"),
        (-0.0, b"0"),
        (1.0, b"1"),
        (1e3, b"1000"),
        (True, b"true"),
        (1.5, b"1.5"),
        (2.0**53, b"9007199254740992"),
        (2.0**63, b"9223372036854775808"),
        (-(2.0**63), b"-9223372036854775808"),
        (2.0**64, b"1.8446744073709552e+19"),
        (MAX_INT, b"18446744073709551615"),
        ((1, (2,)), b"[1,[2]]"),
        ({"b": 1, "a": {"d": 1, "c": 2}}, b'{"a":{"c":2,"d":1},"b":1}'),
        ("é\u2028", '"é\u2028"'.encode()),
    ],
)
def test_known_texts(value: Any, text: bytes) -> None:
    assert canonical(value) == text


def test_unicode_is_not_normalised() -> None:
    assert canonical("\u00e9") != canonical("e\u0301")


def test_subclasses_of_json_types_count_as_what_they_hold() -> None:
    class Label(enum.StrEnum):
        SPAM = "spam"

    class Level(enum.IntEnum):
        HIGH = 3

    assert canonical({Label.SPAM: [Label.SPAM, Level.HIGH]}) == b'{"spam":["spam",3]}'


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (math.nan, "nan is not a JSON number"),
        ([math.inf], "inf is not a JSON number"),
        ({"a": -math.inf}, "-inf is not a JSON number"),
        (MAX_INT + 1, "64 bits"),
        ([MIN_INT - 1], "64 bits"),
        ("\ud800", "not valid Unicode"),
        ({"\udfff": 1}, "not valid Unicode"),
        ({1: 2}, "object keys must be text, not int"),
        ({None: 2}, "object keys must be text, not NoneType"),
        (b"text", "bytes is not a JSON type"),
        ({"a": {1, 2}}, "set is not a JSON type"),
        ([object()], "object is not a JSON type"),
        (1j, "complex is not a JSON type"),
    ],
)
def test_what_is_not_json_is_refused(value: Any, reason: str) -> None:
    with pytest.raises(InvalidJob, match=reason):
        canonical(value)


def test_nesting_is_bounded() -> None:
    assert canonical(nested(MAX_DEPTH)).count(b"core") == 1
    for depth in (MAX_DEPTH + 1, 100_000):
        with pytest.raises(InvalidJob, match="nested deeper than 64"):
            canonical(nested(depth))
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(InvalidJob, match="nested deeper than 64"):
        canonical(endless)
