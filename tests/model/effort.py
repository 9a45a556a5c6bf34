"""How hard the state machines try: the settings of all of them, in one place.

In `make test` every run plays the same examples. `HYPOTHESIS_PROFILE=long` plays others each time,
many more and longer ones; a failure prints the steps that lead to it.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
LONG_FACTOR = int(os.environ.get("HYPOTHESIS_FACTOR", "50"))
TIMEOUT = pytest.mark.timeout(0 if LONG else 600)
"""A failure takes its time to be reduced to the fewest steps: Hypothesis gives it 300 s."""


def effort(*, examples: int, steps: int) -> settings:
    """Settings of a machine that plays `examples` games of at most `steps` steps in `make test`."""
    return settings(
        max_examples=examples * (LONG_FACTOR if LONG else 1),
        stateful_step_count=steps * (2 if LONG else 1),
        deadline=None,
        derandomize=not LONG,
        print_blob=LONG,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
