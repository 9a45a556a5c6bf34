"""Ramp, spike and soak: how many users there are when."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askonce_loadtest.load_shapes import ShapeKind, users_at


def curve(shape: ShapeKind, users: int, seconds: float, factor: float) -> list[int | None]:
    return [
        users_at(shape, part / 60 * seconds, users=users, seconds=seconds, factor=factor)
        for part in range(61)
    ]


@given(
    shape=st.sampled_from(get_args(ShapeKind)),
    users=st.integers(1, 10_000),
    seconds=st.floats(1, 1e6),
    factor=st.floats(1, 100),
)
def test_every_shape_reaches_its_users_stays_within_them_and_ends(
    shape: ShapeKind, users: int, seconds: float, factor: float
) -> None:
    *during, end = curve(shape, users, seconds, factor)
    assert end is None
    assert all(count is not None and 1 <= count <= users for count in during)
    # A ramp is at its top only when it is over.
    assert max(filter(None, during)) >= (0.95 if shape == "ramp" else 1) * users


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("ramp", [1, 10, 20, 30, 40, 50]),
        ("spike", [15, 15, 60, 60, 15, 15]),
        ("soak", [1, 60, 60, 60, 60, 60]),
    ],
)
def test_the_shapes_are_what_they_are_called(shape: ShapeKind, expected: list[int]) -> None:
    assert curve(shape, 60, 60, 4)[0:60:10] == expected


def test_a_spike_is_the_middle_third() -> None:
    spike = curve("spike", 60, 60, 4)
    assert [second for second in range(60) if spike[second] == 60] == list(range(20, 40))
