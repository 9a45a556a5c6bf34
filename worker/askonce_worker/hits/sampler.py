"""Which hits are logged: of few distinct questions, all workers choosing the same, by the hour.

A question is chosen in an hour if its cache key, which is a hash already, lies in that hour's part
of all keys. So the fifty questions that everybody asks are logged no oftener than the others, and
over some hours every question has its turn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

PERIOD_S = 3600
MOST_SEEN = 10_000
"""Questions logged in one period by one worker; past it, it logs no more until the next one."""


class Window(NamedTuple):
    """A part of all keys: from `low` to `high`, and, where it goes round, up to `rest`."""

    low: bytes
    high: bytes
    rest: bytes

    def has(self, key: bytes) -> bool:
        """Whether a key is in it."""
        return self.low <= key < self.high or key < self.rest

    def first_bytes(self) -> frozenset[int]:
        """What keys in it may begin with, for a look that costs nearly nothing."""
        if self.low >= self.high:
            return frozenset()
        first = self.low[0] if self.low else 0
        rest = range(self.rest[0] + 1) if self.rest else range(0)
        return frozenset((*range(first, self.high[0] + 1), *rest))


_ALL = Window(b"", b"\xff" * 33, b"")
_NONE = Window(b"\xff" * 33, b"", b"")
_SIZE = 1 << 64


def window(share: float, period: int) -> Window:
    """The part of all keys that is chosen in a period: `share` of them."""
    if share >= 1:
        return _ALL
    width = int(share * _SIZE)
    if width <= 0:
        return _NONE
    start = int.from_bytes(hashlib.sha256(b"%d" % period).digest()[:8], "big")
    end = start + width
    if end < _SIZE:
        return Window(start.to_bytes(8, "big"), end.to_bytes(8, "big"), b"")
    return Window(start.to_bytes(8, "big"), b"\xff" * 33, (end - _SIZE).to_bytes(8, "big"))


class Sampler:
    """Chooses for the tasks of one worker. `shares`: task → share of distinct questions."""

    def __init__(self, shares: Mapping[str, float], wall_ms: float) -> None:
        self._shares = dict(shares)
        self.windows: dict[str, Window] = {}
        """Task → the part of its keys that is chosen now. Read for every hit, so without a call."""
        self.seen: set[bytes] = set()
        """Keys that were logged in this period."""
        self._period = -1
        self.turn(wall_ms)

    def turn(self, wall_ms: float) -> bool:
        """Begin a new period, if it is time; whether it was."""
        period = int(wall_ms) // (PERIOD_S * 1000)
        if period == self._period:
            return False
        self._period = period
        self.seen.clear()
        self.windows = {task: window(share, period) for task, share in self._shares.items()}
        return True

    def take(self, key: bytes) -> bool:
        """Take a chosen key for this period; False when it was taken, or there are too many."""
        if key in self.seen or len(self.seen) >= MOST_SEEN:
            return False
        self.seen.add(key)
        return True
