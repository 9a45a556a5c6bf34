"""How many users there are when, in a ramp, a spike and a soak."""

from __future__ import annotations

import math
from typing import Literal

ShapeKind = Literal["ramp", "spike", "soak"]

RAMP_UP = 0.1
"""The share of a soak in which its users come."""


def users_at(
    shape: ShapeKind, at_s: float, *, users: int, seconds: float, factor: float
) -> int | None:
    """How many users there are `at_s` seconds into a load of `seconds`; None: it is over.

    `ramp`: from one to `users`, evenly. `spike`: `users` / `factor`, in the middle third `users`.
    `soak`: `users`, after they have come within a tenth of the time.
    """
    if at_s >= seconds:
        return None
    done = at_s / seconds
    if shape == "ramp":
        return math.ceil(users * max(done, 1 / users))
    if shape == "soak":
        return math.ceil(users * min(1.0, max(done / RAMP_UP, 1 / users)))
    between = 1 / 3 <= done < 2 / 3
    return users if between else max(1, round(users / factor))
