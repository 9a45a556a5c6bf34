r"""A ramp, a spike or a soak for any of the locust files: name it beside them.

    locust -f loadtest/askonce_loadtest/locustfile.py,loadtest/askonce_loadtest/locust_shape.py \
        --headless --shape spike --shape-users 40 --shape-seconds 120 --html spike.html …

ramp: from 1 to `--shape-users`, evenly. spike: a `--shape-factor`-th of them, all of them in the
middle third. soak: all of them, after they have come within a tenth of the time. The shape ends the
run; locust's own `-u`, `-r` and `-t` have no effect beside it.
"""

from __future__ import annotations

import time
from argparse import ArgumentTypeError
from typing import Protocol, cast, get_args

from locust import LoadTestShape

from askonce_loadtest.load_shapes import ShapeKind, users_at
from askonce_loadtest.locust_options import Option, add_options, at_least_one


def _shape(value: str) -> ShapeKind:
    for kind in get_args(ShapeKind):
        if value == kind:
            return cast("ShapeKind", value)
    raise ArgumentTypeError(f"expected one of {', '.join(get_args(ShapeKind))}, not {value!r}")


add_options(
    (
        Option("shape", _shape, "ramp", "ramp, spike or soak"),
        Option("shape-users", at_least_one, 20, "the most users there are"),
        Option("shape-seconds", at_least_one, 60, "how long it takes"),
        Option("shape-factor", at_least_one, 4, "of a spike: how many times the users before it"),
    )
)


class Options(Protocol):
    """The options of this file, as locust hands them out."""

    shape: ShapeKind
    shape_users: int
    shape_seconds: int
    shape_factor: int


class Shape(LoadTestShape):
    """Locust asks it once a second how many users there should be."""

    def tick(self) -> tuple[int, float] | None:
        """Return users, and how many come or go in a second; None ends the run."""
        assert self.runner is not None
        options = cast("Options", self.runner.environment.parsed_options)
        users = users_at(
            options.shape,
            time.perf_counter() - self.start_time,
            users=options.shape_users,
            seconds=options.shape_seconds,
            factor=options.shape_factor,
        )
        return None if users is None else (users, float(options.shape_users))
