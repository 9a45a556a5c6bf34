"""What people said of hits, and what it says of all: how often what is reused is wrong.

A review names the hit's cache key and answer; said again of the same, the latest counts. It holds
nothing of the input.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, get_args

import msgspec

from askonce_queue import names
from askonce_queue.shards import shard_of_digest
from askonce_queue.store import Store
from askonce_worker.hits.pages import entries_of
from askonce_worker.observe.wilson import wilson

Verdict = Literal["fine", "not_cacheable", "wrong"]
"""`not_cacheable`: the answer was right once, and should not have been reused."""
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
MOST_REVIEWS = 10_000
"""Reviews kept in one shard; the oldest are dropped."""
RATE_DAYS = 90
"""How old reviews may be that count for the rate."""
DAY_MS = 86_400_000


class Review(NamedTuple):
    """One decision. `at_ms` is the store's time, Unix ms; `answer` as `answer_id` has it."""

    key: str
    task: str
    verdict: Verdict
    answer: str
    at_ms: int = 0


class Rate(msgspec.Struct):
    """Of the hits that were reviewed, how many were flagged; `rate` lies in `low` to `high` (95 %).

    All are shares; None without reviews.
    """

    reviewed: int
    wrong: int
    not_cacheable: int
    rate: float | None
    low: float | None
    high: float | None

    @property
    def flagged(self) -> int:
        """Those that were wrong, or should not have been cached."""
        return self.wrong + self.not_cacheable


class ReviewTotals(msgspec.Struct):
    """The measured wrong-hit rate: of all tasks and of each, from reviews of the last `days`."""

    days: int
    total: Rate
    tasks: dict[str, Rate]


def answer_id(answer: bytes) -> str:
    """A short name of an answer: a question comes up for review again when it has another."""
    return hashlib.sha256(answer).hexdigest()[:16]


async def record_review(store: Store, review: Review) -> None:
    """Keep a decision. Raises redis-py's errors."""
    shard = shard_of_digest(bytes.fromhex(review.key), len(store.tags))
    key = names.reviews(store.tags[shard])
    fields = ("key", review.key, "task", review.task, "verdict", review.verdict)
    await store.send(
        key, *("XADD", key, "MAXLEN", MOST_REVIEWS, "*", *fields, "answer", review.answer)
    )


class Reviews:
    """The latest review of every question and answer; they are added from the newest."""

    def __init__(self) -> None:
        self.failures: dict[str, Exception] = {}
        """Shards that could not be read."""
        self._latest: dict[tuple[str, str, str], Review] = {}

    def __len__(self) -> int:
        return len(self._latest)

    def add(self, review: Review) -> None:
        """Take one more; of one question and answer the latest counts."""
        subject = review.task, review.key, review.answer
        old = self._latest.get(subject)
        if old is None or review.at_ms > old.at_ms:
            self._latest[subject] = review

    def of(self, task: str, key: str, answer: str) -> Review | None:
        """What was said of an answer."""
        return self._latest.get((task, key, answer))

    def totals(self) -> ReviewTotals:
        """The wrong-hit rate, of all and by task."""
        by_task: defaultdict[str, list[Review]] = defaultdict(list)
        for review in self._latest.values():
            by_task[review.task].append(review)
        return ReviewTotals(
            RATE_DAYS,
            _rate(self._latest.values()),
            {task: _rate(reviews) for task, reviews in sorted(by_task.items())},
        )


async def read_reviews(store: Store, *, days: int = RATE_DAYS) -> Reviews:
    """Read the reviews of the last days. A shard that cannot be read is in `failures`."""
    found = Reviews()
    seconds, _ = await store.send(names.META, "TIME")
    since = b"%d" % max(0, int(seconds) * 1000 - days * DAY_MS)
    for tag in store.tags:
        try:
            async for at_ms, fields in entries_of(store, names.reviews(tag), since):
                review = _review(at_ms, fields)
                if review is not None:
                    found.add(review)
        except Exception as error:  # noqa: BLE001 -- whatever a shard does, the others count
            found.failures[tag] = error
    return found


def _review(at_ms: int, fields: Mapping[str, str]) -> Review | None:
    key, task, answer = fields.get("key"), fields.get("task"), fields.get("answer")
    said = fields.get("verdict")
    verdict: Verdict | None = next((one for one in VERDICTS if one == said), None)
    if key is None or task is None or answer is None or verdict is None:
        return None
    return Review(key, task, verdict, answer, at_ms)


def _rate(reviews: Iterable[Review]) -> Rate:
    verdicts = [review.verdict for review in reviews]
    wrong, not_cacheable = verdicts.count("wrong"), verdicts.count("not_cacheable")
    if not verdicts:
        return Rate(0, 0, 0, None, None, None)
    flagged = wrong + not_cacheable
    low, high = wilson(flagged, len(verdicts))
    rate = flagged / len(verdicts)
    return Rate(len(verdicts), wrong, not_cacheable, round(rate, 4), round(low, 4), round(high, 4))
