"""What hits were worth: who was served, and the tokens of the calls that they did not need.

All of it is packed in one integer, so that a hit costs one addition: 40 bits of hits, 56 of input
tokens, and output tokens above. A tally is emptied every second, long before a part overflows.
"""

from __future__ import annotations

from collections.abc import Iterable

from askonce_worker.observe.money import Price

_INPUT_AT = 40
_OUTPUT_AT = 96
_HITS = (1 << _INPUT_AT) - 1
_INPUT = (1 << (_OUTPUT_AT - _INPUT_AT)) - 1
MOST_TOKENS = 1 << 24
"""Tokens of one call that are counted: an API that reports more is not believed."""
ONE_HIT = 1
"""The worth of a hit whose call has reported no tokens."""

MOST_TENANTS = 100
"""Tenants that a worker counts by name at one time; the others are counted together."""
IDLE_S = 3600.0
"""A tenant that was not seen for so long gives way to others."""


def worth_of(input_tokens: int, output_tokens: int) -> int:
    """The worth of one hit on an answer whose call used so many tokens."""
    tokens_in = min(input_tokens, MOST_TOKENS)
    return ONE_HIT + (tokens_in << _INPUT_AT) + (min(output_tokens, MOST_TOKENS) << _OUTPUT_AT)


def unpacked(worth: int) -> tuple[int, int, int]:
    """Hits, input tokens and output tokens."""
    return worth & _HITS, worth >> _INPUT_AT & _INPUT, worth >> _OUTPUT_AT


class Tally:
    """The hits of one task since it was last emptied: tenant → worth.

    Those from memory are only noted here; others are also counted by where they came from.
    """

    __slots__ = ("memory", "others", "price")

    def __init__(self, price: Price) -> None:
        self.price = price
        self.memory: dict[str, int] = {}
        self.others: dict[str, int] = {}


class KnownTenants:
    """Which tenants are counted by name: those who came first, until they are idle for long."""

    def __init__(self, most: int, others: str) -> None:
        self._most = most
        self._others = others
        self._seen_at: dict[str, float] = {}

    def name(self, tenant: str, now: float) -> str:
        """The name under which a tenant is counted at monotonic time `now`."""
        if tenant not in self._seen_at and len(self._seen_at) >= self._most:
            self._forget([known for known, seen in self._seen_at.items() if now - seen > IDLE_S])
            if len(self._seen_at) >= self._most:
                return self._others
        self._seen_at[tenant] = now
        return tenant

    def _forget(self, idle: Iterable[str]) -> None:
        for tenant in idle:
            del self._seen_at[tenant]
