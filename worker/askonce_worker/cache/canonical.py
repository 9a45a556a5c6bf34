"""One canonical JSON text for equal JSON values: what is hashed into a cache key.

The text is orjson's, with sorted object keys, after numbers were made comparable. It differs from
RFC 8785 in about 1 % of doubles and from `json.dumps`, so nothing else may serialise for a key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

import orjson

from askonce_queue.errors import InvalidJob

MAX_DEPTH = 64
"""Deepest nesting of arrays and objects that is accepted."""
MIN_INT = -(2**63)
MAX_INT = 2**64 - 1
"""The integers that JSON readers of 64 bits share, signed or unsigned."""


def canonical(value: Any) -> bytes:
    """Return the canonical JSON of `value`, as UTF-8.

    Equal JSON values have one text: objects in any order of keys, tuples and lists, `0`, `0.0` and
    `-0.0`, `1e3` and `1000`. Every integral float from -2^63 to 2^64 - 1 is written as that
    integer; larger ones stay floats, because no integer accepted here could equal them. `True` is
    not `1`.

    Raises `InvalidJob` for NaN and infinities, integers beyond 64 bits, lone surrogates, object
    keys that are not strings, nesting deeper than `MAX_DEPTH`, and everything that is not JSON.
    """
    try:
        return orjson.dumps(_comparable(value, MAX_DEPTH), option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError as error:
        # All that `_comparable` lets through and orjson refuses is text that is not valid Unicode.
        raise InvalidJob(f"not valid Unicode, send UTF-8 text: {error}") from error


def _comparable(value: Any, levels: int) -> Any:
    """Return `value` as plain JSON types with one spelling a number; `levels` may nest below."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return _integer(int.__int__(value))
    if isinstance(value, float):
        return _number(float.__float__(value))
    if levels == 0 and isinstance(value, (dict, list, tuple)):
        raise InvalidJob(f"nested deeper than {MAX_DEPTH} arrays and objects: flatten the input")
    if is_array(value):
        return [_comparable(item, levels - 1) for item in value]
    if is_object(value):
        return {_name(name): _comparable(item, levels - 1) for name, item in value.items()}
    raise InvalidJob(
        f"{type(value).__name__} is not a JSON type: "
        "use text, numbers, booleans, null, arrays and objects"
    )


def is_object(value: object) -> TypeGuard[dict[Any, Any]]:
    """Whether `value` is written as a JSON object."""
    return isinstance(value, dict)


def is_array(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether `value` is written as a JSON array."""
    return isinstance(value, (list, tuple))


def _name(name: Any) -> str:
    if isinstance(name, str):
        return str.__str__(name)
    raise InvalidJob(f"object keys must be text, not {type(name).__name__}")


def _integer(number: int) -> int:
    if MIN_INT <= number <= MAX_INT:
        return number
    raise InvalidJob("an integer has more than 64 bits: send it as text")


def _number(number: float) -> float | int:
    if not math.isfinite(number):
        raise InvalidJob(f"{number} is not a JSON number: leave it out or send null")
    # The upper bound is compared as an integer: as a float, 2^64 - 1 would round up to 2^64.
    if number.is_integer() and MIN_INT <= number <= MAX_INT:
        return int(number)
    return number
