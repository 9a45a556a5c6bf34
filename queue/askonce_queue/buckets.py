"""Buckets of time: what is counted is kept for a while by when it happened, in three resolutions.

Rolling windows are sums of buckets. The server's clock decides which bucket is the one of now
(`lua/count.lua`); all resolutions of one moment are written together.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_NAME = re.compile(rb"(\d+):(\d+)")


class BucketSize(NamedTuple):
    """A resolution, and how long after its end a bucket of it is kept."""

    seconds: int
    kept_s: int


SIZES = (BucketSize(10, 600), BucketSize(300, 9_000), BucketSize(3_600, 266_400))
"""10 s for 10 min, 5 min for 2.5 h, 1 h for 74 h: enough for windows of 5 min, 1 h and 24 h, and to
know what became, within a window, of answers that live for a day or two."""
SIZES_TEXT = " ".join(f"{size.seconds * 1000}:{size.kept_s * 1000}" for size in SIZES)
"""As `count.lua` reads it."""
MOST_FIELDS = 4_000
"""Fields of one bucket; what is counted for further tasks or tenants goes to `OTHERS`."""
OTHERS = "(others)"
"""The task, or tenant, that takes the counts of those that do not fit."""


class Bucket(NamedTuple):
    """A piece of time on the server: the `number`-th of its size since 1970."""

    size_s: int
    number: int

    @property
    def start_ms(self) -> int:
        """When it begins, server Unix ms."""
        return self.number * self.size_s * 1000

    @property
    def end_ms(self) -> int:
        """When the next one begins."""
        return self.start_ms + self.size_s * 1000


def read_bucket(name: bytes) -> Bucket | None:
    """A bucket by its name in the store, `size in s:number`; None for what is none."""
    match = _NAME.fullmatch(name)
    return Bucket(int(match[1]), int(match[2])) if match else None


def rounded_ms(at_ms: float, age_s: float) -> int:
    """A time by the finest bucket that is kept when it is `age_s` ago; 0 (now) for none.

    Counts of equal times travel together.
    """
    if not 0 < at_ms < 1e15:  # noqa: PLR2004 -- of a damaged entry: no time of this era
        return 0
    kept = (size.seconds for size in SIZES if age_s < size.kept_s - 60)
    step_ms = next(kept, SIZES[-1].seconds) * 1000
    return max(1, int(at_ms) // step_ms * step_ms)
