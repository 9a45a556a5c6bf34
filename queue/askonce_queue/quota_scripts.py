"""Typed stub of the script that shares a model's limits among workers: `lua/take_quota.lua`.

Keys, arguments and results are described in the header of the Lua file.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

from askonce_queue import names
from askonce_queue.scripts import Arg, Call, Script

KEPT_MS = 3_600_000
"""How long a quota that nobody asks for is kept: long after all its buckets are full again."""

_TAKE_QUOTA = Script("take_quota", allow_oom=True)


class Rates(NamedTuple):
    """What all workers together may do; 0: no such limit."""

    slots: int = 0
    """Calls at the same time."""
    most_calls: float = 0.0
    """Calls at once, after a pause."""
    calls_per_s: float = 0.0
    most_tokens: float = 0.0
    """Tokens at once, after a pause, beyond those of one call."""
    tokens_per_s: float = 0.0
    first_tokens: int = 1000
    """What a call is charged as long as none has reported its tokens."""


class Request(NamedTuple):
    """What a worker keeps, wants, and gives back.

    `number`, from 1, is new for each that is not re-sent; 0 is that of a worker's last.
    """

    number: int
    slots_kept: int = 0
    slots_wanted: int = 0
    """Those that are kept among them."""
    calls_wanted: int = 0
    calls_back: int = 0
    tokens_back: int = 0
    """What each of them was charged."""
    granted_us: int = 0
    """When they were granted."""
    reported: int = 0
    """Calls that have reported their tokens since the last request."""
    tokens: int = 0
    """What they reported."""
    charged: int = 0
    """What they had been charged."""


class Grant(NamedTuple):
    """What a worker has got."""

    slots: int
    """All that it has now."""
    share: int
    """What of them is fair: it gives back what is more, as its calls end."""
    contended: bool
    """Whether more are wanted than there are."""
    calls: int
    granted_us: int
    age_us: int
    """How long ago they were granted; not 0 for a request that was re-sent."""
    tokens_each: int
    """What each of them was charged."""
    wait_ms: int
    """How long until there is a call for somebody."""
    holders: int
    """How many workers share the limits just now."""

    @classmethod
    def of(cls, reply: Any) -> Self:
        """From the reply of the script."""
        slots, share, contended, *rest = map(int, reply)
        return cls(slots, share, bool(contended), *rest)


def take_quota(
    tag: str, model: str, holder: str, request: Request, rates: Rates, *, ttl_ms: int, valid_us: int
) -> Call:
    """`ttl_ms`: how long slots are leased; `valid_us`: within what time calls are to begin."""
    key = names.quota_prefix(tag) + model.encode()
    args: list[Arg] = [
        *(model, holder, request.number, ttl_ms, request.slots_kept, request.slots_wanted),
        *(rates.slots, request.calls_wanted, request.calls_back, request.tokens_back),
        *(request.granted_us, valid_us, rates.most_calls, rates.calls_per_s),
        *(rates.most_tokens, rates.tokens_per_s, rates.first_tokens),
        *(request.reported, request.tokens, request.charged, KEPT_MS),
    ]
    return Call(_TAKE_QUOTA, [key, names.quotas(tag)], args)
