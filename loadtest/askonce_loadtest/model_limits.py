"""Limits a minute that the stand-in model server enforces, and the headers that tell of them.

A token bucket each for requests and tokens (Anthropic's reference, "Rate limits", names the
algorithm): full at the start, refilled evenly, holding at most what a minute allows. A request
takes one request and the tokens of its input when it comes, and those of its answer when it leaves,
which may leave a debt. What finds a bucket empty gets a 429 with Retry-After, and takes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from askonce_loadtest.model_errors import Style

MINUTE_S = 60.0


class Bucket:
    """What a minute allows; `clock` counts seconds."""

    def __init__(self, per_minute: float, clock: Callable[[], float]) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._left = per_minute
        self._at = clock()

    @property
    def left(self) -> float:
        """How much may be taken now; negative: a debt."""
        now = self._clock()
        grown = self._left + (now - self._at) * self.per_minute / MINUTE_S
        self._left, self._at = min(self.per_minute, grown), now
        return self._left

    def wait_s(self, amount: float) -> float:
        """How long until `amount` may be taken; 0: now. More than fits: when it is full."""
        missing = min(amount, self.per_minute) - self.left
        return max(0.0, missing * MINUTE_S / self.per_minute)

    def take(self, amount: float) -> None:
        """Take it, also what is not there."""
        self._left = self.left - amount

    @property
    def full_in_s(self) -> float:
        """How long until it is full."""
        return (self.per_minute - self.left) * MINUTE_S / self.per_minute


class Limits:
    """The limits of a server; None: there is none."""

    def __init__(
        self, requests: float | None, tokens: float | None, clock: Callable[[], float]
    ) -> None:
        self.requests = Bucket(requests, clock) if requests else None
        self.tokens = Bucket(tokens, clock) if tokens else None

    def admit(self, input_tokens: int) -> float:
        """Take what a request takes; the seconds to wait if it is not admitted, else 0."""
        wait_s = max(
            self.requests.wait_s(1) if self.requests else 0.0,
            self.tokens.wait_s(input_tokens) if self.tokens else 0.0,
        )
        if wait_s > 0:
            return wait_s
        if self.requests:
            self.requests.take(1)
        self.spend(input_tokens)
        return 0.0

    def spend(self, tokens: int) -> None:
        """Take tokens of a request that was admitted."""
        if self.tokens:
            self.tokens.take(tokens)

    def headers(self, style: Style, now: datetime | None = None) -> dict[str, str]:
        """What is left, as an API tells it. TEI tells nothing."""
        told: dict[str, str] = {}
        now = now or datetime.now(UTC)
        for kind, bucket in (("requests", self.requests), ("tokens", self.tokens)):
            if bucket is None or style == "tei":
                continue
            left = str(max(0, math.floor(bucket.left)))
            most = str(math.floor(bucket.per_minute))
            if style == "anthropic":
                full_at = now + timedelta(seconds=bucket.full_in_s)
                told[f"anthropic-ratelimit-{kind}-limit"] = most
                told[f"anthropic-ratelimit-{kind}-remaining"] = left
                told[f"anthropic-ratelimit-{kind}-reset"] = f"{full_at:%Y-%m-%dT%H:%M:%SZ}"
            else:
                told[f"x-ratelimit-limit-{kind}"] = most
                told[f"x-ratelimit-remaining-{kind}"] = left
                told[f"x-ratelimit-reset-{kind}"] = f"{bucket.full_in_s:.3f}s"
        return told
