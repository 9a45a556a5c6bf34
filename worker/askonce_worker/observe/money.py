"""What model calls cost, and what answers that were there already have avoided.

Money is counted in billionths of the unit in which prices are given: whole numbers add up without
error, also where one call costs less than a millionth.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

NANO = 1_000_000_000
HOUR_S = 3600.0


class Price(NamedTuple):
    """What a model costs: a million tokens of input and of output, and each call as such."""

    input: float = 0.0
    output: float = 0.0
    per_call: float = 0.0

    def nano(self, calls: float, input_tokens: int, output_tokens: int) -> int:
        """What calls that used so many tokens together cost, in billionths."""
        tokens = input_tokens * self.input + output_tokens * self.output
        return round(tokens * 1000 + calls * self.per_call * NANO)


FREE = Price()


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What answering cost, and what it would have cost.

    `spent` went to models, `avoided` is what the calls behind reused answers had cost. `per_call`
    is C: spent by answers of models, so that retries count with what they led to. The others are
    for 1,000 answers: `calls` is C × (1 − hit rate), `store` the share of what the store costs,
    `effective` their sum, `uncached` what they would have cost without any reuse. None: nothing
    was answered; for `store`, what it costs is not known.
    """

    spent: float
    avoided: float
    per_call: float | None
    calls_per_1000: float | None
    store_per_1000: float | None
    effective_per_1000: float | None
    uncached_per_1000: float | None


def cost_of(
    *,
    spent_nano: int,
    avoided_nano: int,
    misses: int,
    answered: int,
    store_per_answer: float | None = None,
) -> Cost:
    """`answered` counts hits and misses; `store_per_answer`: see `store_share`."""
    spent, avoided = spent_nano / NANO, avoided_nano / NANO
    calls = 1000 * spent / answered if answered else None
    store = 1000 * store_per_answer if answered and store_per_answer is not None else None
    return Cost(
        spent=spent,
        avoided=avoided,
        per_call=spent / misses if misses else None,
        calls_per_1000=calls,
        store_per_1000=store,
        effective_per_1000=calls + (store or 0.0) if calls is not None else None,
        uncached_per_1000=1000 * (spent + avoided) / answered if answered else None,
    )


def store_share(store_per_hour: float, span_s: float, answered: int) -> float | None:
    """What the store costs an answer: each bears the same part. None without any."""
    return store_per_hour * span_s / HOUR_S / answered if answered else None
