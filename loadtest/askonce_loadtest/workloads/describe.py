"""What is in a workload: its rate over time, its head, and what a cache can make of it.

One pass; memory grows with the distinct texts (about 100 bytes each), not with the lines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from hashlib import blake2b
from heapq import nlargest

import msgspec

from askonce_loadtest.workloads.lines import FileError
from askonce_loadtest.workloads.request import Request

MAX_DISTINCT = 10_000_000
MAX_BINS = 240
_DIGEST_BYTES = 8
_TOPS = (1, 10, 100, 1_000)


class Description(msgspec.Struct, kw_only=True):
    """Figures of a workload. Shares are from 0 to 1; a question is a task with a text."""

    requests: int
    seconds: float
    """From the first request to the last."""
    rate_per_s: float
    busiest_per_s: float
    """The rate of the busiest bin."""
    bin_s: float
    rates_per_s: list[float]
    """Rate over time, a bin of `bin_s` each."""
    distinct: int
    one_hit_share: float
    """The share of all requests that are of questions asked only once."""
    top_share: dict[int, float]
    """The share of all requests that are of the 1, 10, 100 and 1,000 questions asked most."""
    top_percent_share: float
    """The same of the most asked hundredth of the questions."""
    best_hit_rate: float
    """With an endless cache, empty at first, and no expiry: all but first asks."""
    best_hit_rate_ttl: float | None = None
    """The same where an answer expires `ttl_s` after it was made."""
    ttl_s: float | None = None
    best_hit_rate_by_meaning: float | None = None
    """The same for a cache that knows paraphrases, where lines say which those are (`key`)."""
    tasks: dict[str, int]
    lanes: dict[str, int]
    mean_text_bytes: float


class RateBins:
    """Counts over time in at most `MAX_BINS` bins, which grow with the time that is covered."""

    def __init__(self) -> None:
        self.width_s = 0.1
        self.counts: list[int] = [0]

    def add(self, t: float) -> None:
        """Count a request at `t` seconds; times may only grow."""
        place = int(t / self.width_s)
        while place >= MAX_BINS:
            self.width_s *= 2
            pairs = zip(self.counts[::2], [*self.counts[1::2], 0], strict=False)
            self.counts = [one + other for one, other in pairs]
            place = int(t / self.width_s)
        if place >= len(self.counts):
            self.counts += [0] * (place + 1 - len(self.counts))
        self.counts[place] += 1


def describe(requests: Iterable[Request], *, ttl_s: float | None = None) -> Description:
    """Read a workload to its end. Raises `FileError` when it has no requests, or too many kinds."""
    bins = RateBins()
    asked: Counter[bytes] = Counter()
    made_at: dict[bytes, float] = {}
    tasks: Counter[str] = Counter()
    lanes: Counter[str] = Counter()
    keys: set[tuple[str, int]] = set()
    unkeyed = hits_ttl = text_bytes = 0
    first: float | None = None
    last = 0.0
    for request in requests:
        first, last = (request.t if first is None else first), request.t
        bins.add(request.t - first)
        text = request.text.encode("utf-8", "surrogatepass")
        text_bytes += len(text)
        question = blake2b(request.task.encode() + b"\0" + text, digest_size=_DIGEST_BYTES).digest()
        asked[question] += 1
        tasks[request.task] += 1
        lanes[request.lane] += 1
        if ttl_s is not None:
            if request.t - made_at.get(question, -ttl_s - 1) <= ttl_s:
                hits_ttl += 1
            else:
                made_at[question] = request.t
        if request.key is None:
            unkeyed += 1
        else:
            keys.add((request.task, request.key))
        if len(asked) > MAX_DISTINCT:
            raise FileError(f"more than {MAX_DISTINCT:,} distinct questions: describe a part of it")
    total = asked.total()
    if first is None or not total:
        raise FileError("the workload has no requests")
    seconds = last - first
    tops = nlargest(max(_TOPS[-1], -(-len(asked) // 100)), asked.values())
    rates = [count / bins.width_s for count in bins.counts]
    return Description(
        requests=total,
        seconds=seconds,
        rate_per_s=total / seconds if seconds else float(total),
        # The last bin is not full, and one alone says nothing about the rate.
        busiest_per_s=max(rates[:-1], default=float(total)),
        bin_s=bins.width_s,
        rates_per_s=rates,
        distinct=len(asked),
        one_hit_share=sum(1 for count in asked.values() if count == 1) / total,
        top_share={most: sum(tops[:most]) / total for most in _TOPS},
        top_percent_share=sum(tops[: max(1, len(asked) // 100)]) / total,
        best_hit_rate=(total - len(asked)) / total,
        best_hit_rate_ttl=None if ttl_s is None else hits_ttl / total,
        ttl_s=ttl_s,
        best_hit_rate_by_meaning=None if unkeyed else (total - len(keys)) / total,
        tasks=dict(tasks.most_common()),
        lanes=dict(lanes.most_common()),
        mean_text_bytes=text_bytes / total,
    )
