"""Caches that are compared: each tells how many of a trace's requests hit, with room for so many.

A miss is kept, as a worker keeps what it had to look up. All entries have the same size.
"""

from __future__ import annotations

import heapq
import importlib
import importlib.metadata
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from askonce_worker.cache.memory import ENTRY_OVERHEAD_BYTES, MemoryTier

Policy = Callable[[Sequence[int], int], int]
"""(requests, entries there is room for) → hits."""

OURS = "askonce"
BEST = "Belady"
"""The best possible."""
PACKAGES = ("theine", "moka-py")
"""What our goal is measured against."""


def s3_fifo(requests: Sequence[int], room: int) -> int:
    """The worker's memory tier as it is."""
    tier: MemoryTier[int] = MemoryTier(room * ENTRY_OVERHEAD_BYTES)
    hits = 0
    for number in requests:
        key = number.to_bytes(8, "big")
        if tier.get(key, 0.0) is not None:
            hits += 1
        else:
            tier.put(key, number, 0, 1.0)
    return hits


def lru(requests: Sequence[int], room: int) -> int:
    """Least recently used."""
    kept: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for key in requests:
        if key in kept:
            hits += 1
            kept.move_to_end(key)
        else:
            if len(kept) >= room:
                kept.popitem(last=False)
            kept[key] = None
    return hits


def belady(requests: Sequence[int], room: int) -> int:
    """The best that any cache can do, knowing the future: drop what is asked last of all.

    Belady, "A study of replacement algorithms for a virtual-storage computer", 1966. What would be
    dropped at once is not admitted, as a cache of answers need not.
    """
    never = len(requests)
    following = [never] * len(requests)
    seen: dict[int, int] = {}
    for at in range(len(requests) - 1, -1, -1):
        following[at] = seen.get(requests[at], never)
        seen[requests[at]] = at
    kept: dict[int, int] = {}
    farthest: list[tuple[int, int]] = []
    hits = 0
    for key, asked_next in zip(requests, following, strict=True):
        if key in kept:
            hits += 1
        kept[key] = asked_next
        heapq.heappush(farthest, (-asked_next, key))
        while len(kept) > room:
            when, candidate = heapq.heappop(farthest)
            if kept.get(candidate) == -when:
                del kept[candidate]
    return hits


def available_policies() -> tuple[Mapping[str, Policy], Mapping[str, str]]:
    """Every cache that is here by its name, with its version; and why the others are not."""
    found: dict[str, Policy] = {OURS: s3_fifo, "LRU": lru, BEST: belady}
    missing: dict[str, str] = {}
    for name, make in (("theine", _theine), ("moka-py", _moka)):
        try:
            found[name] = make()
        except ImportError as error:
            missing[name] = f"{error}: pip install 'askonce[loadtest]'"
    return found, missing


def versions() -> dict[str, str]:
    """The versions of the packages that are here."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _theine() -> Policy:
    """W-TinyLFU with an adaptive window, as in Caffeine."""
    theine: Any = importlib.import_module("theine")

    def run(requests: Sequence[int], room: int) -> int:
        cache = theine.Cache(room, nolock=True)
        hits = 0
        for key in requests:
            if cache.get(key)[1]:
                hits += 1
            else:
                cache.set(key, key)
        cache.close()
        return hits

    return run


def _moka() -> Policy:
    """TinyLFU, in Rust."""
    moka: Any = importlib.import_module("moka_py")

    def run(requests: Sequence[int], room: int) -> int:
        cache = moka.Moka(room)
        hits = 0
        for key in requests:
            if cache.get(key) is not None:
                hits += 1
            else:
                cache.set(key, key)
                cache.run_pending_tasks()  # or it holds more than there is room for
        return hits

    return run
