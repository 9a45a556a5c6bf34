"""One point of an axis, and how much of everything it takes."""

from __future__ import annotations

from typing import Annotated

import msgspec

from askonce_loadtest.bench.plan import Count
from askonce_worker.cache.entry import MEMORY_OVERHEAD_BYTES
from askonce_worker.cache.memory import ENTRY_OVERHEAD_BYTES

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]

MOST_HOT = 20_000
HOT_SHARE = 5
"""One key in this many is hot: its answer is in the worker's memory."""
ROOM = 1.2
"""The memory tier has room for so many times the hot answers, so that cold ones pass through."""
ANSWER_BYTES = 100
"""Of an answer as JSON, about."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """How many of everything; the defaults are the base that every axis varies one thing of."""

    keys: Count = 10_000
    """Distinct questions with an answer in the store."""
    workers: Count = 1
    shards: Count = 1
    text_bytes: Annotated[int, msgspec.Meta(ge=24, le=60_000)] = 75
    store_share: Share = 0.29
    """Of the jobs: answered by the store."""
    model_share: Share = 0.01
    """Of the jobs: never asked before. All others are answered by the worker's memory."""
    jobs: Count = 60_000
    """Of one run."""
    runs: Count = 3
    """Figures are their medians."""

    @property
    def hot(self) -> int:
        """Questions whose answers are in the worker's memory: the first of the keys."""
        return max(1, min(self.keys // HOT_SHARE, MOST_HOT))

    @property
    def memory_bytes(self) -> int:
        """The size of a worker's memory tier."""
        entry = ENTRY_OVERHEAD_BYTES + MEMORY_OVERHEAD_BYTES + ANSWER_BYTES
        return int(self.hot * ROOM * entry)


def text_of(number: int, size_bytes: int) -> str:
    """The text of question `number`, ASCII; distinct numbers have distinct texts."""
    text = f"{number}: when will my card arrive, the last one was lost in the post "
    return (text * (size_bytes // len(text) + 1))[:size_bytes]
