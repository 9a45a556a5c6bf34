"""Looking for logged hits: every question once, with the answer that was reused last."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from askonce_queue import names
from askonce_queue.store import Store
from askonce_worker.hits.pages import entries_of
from askonce_worker.hits.record import LoggedAnswer
from askonce_worker.hits.reviews import Review, Reviews, answer_id, read_reviews

_KEY = re.compile(r"[0-9a-f]{64}")
_decode = msgspec.json.Decoder(LoggedAnswer).decode


class Hit(NamedTuple):
    """A logged hit. `at_ms` is when it was logged, Unix ms; `input` is redacted, "" for none.

    `times` is how often the question was logged, once an hour and worker at most.
    """

    key: str
    task: str
    source: str
    age_s: float
    answer: LoggedAnswer
    answer_json: bytes
    input: str
    tenant: str
    at_ms: int
    review: Review | None
    times: int = 1

    @property
    def answer_id(self) -> str:
        """The name of its answer in reviews."""
        return answer_id(self.answer_json)


class Wanted(NamedTuple):
    """Which hits: all that are given must hold. `since_ms` is Unix ms, inclusive."""

    task: str | None = None
    since_ms: int | None = None
    unreviewed: bool = False


class Found(NamedTuple):
    """Hits, the newest first, and the shards that could not be read."""

    hits: list[Hit]
    reviews: Reviews
    failures: dict[str, Exception]


async def find_hits(store: Store, wanted: Wanted) -> Found:
    """Find hits, of every question the newest. At most `max_hits` a shard are there."""
    reviews = await read_reviews(store, days=3660)
    since = b"-" if wanted.since_ms is None else b"%d" % wanted.since_ms
    newest: dict[tuple[str, str], Hit] = {}
    failures = dict(reviews.failures)
    for tag in store.tags:
        try:
            async for at_ms, fields in entries_of(store, names.hits(tag), since):
                hit = _read(at_ms, fields, reviews)
                if hit is None or wanted.task not in (None, hit.task):
                    continue
                question = hit.task, hit.key  # tasks that ask the same have the same keys
                old = newest.get(question)
                newest[question] = hit if old is None else old._replace(times=old.times + 1)
        except Exception as error:  # noqa: BLE001 -- whatever a shard does, the others are shown
            failures[tag] = error
    hits = [hit for hit in newest.values() if not (wanted.unreviewed and hit.review)]
    return Found(sorted(hits, key=lambda hit: -hit.at_ms), reviews, failures)


def _read(at_ms: int, fields: Mapping[str, str], reviews: Reviews) -> Hit | None:
    """One entry; None for what no worker has written."""
    key, task, data = fields.get("key", ""), fields.get("task"), fields.get("answer", "").encode()
    try:
        answer = _decode(data)
        age_s = int(fields.get("age_ms", "0")) / 1000
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    if task is None or not _KEY.fullmatch(key):
        return None
    return Hit(
        key=key,
        task=task,
        source=fields.get("source", ""),
        age_s=age_s,
        answer=answer,
        answer_json=data,
        input=fields.get("input", ""),
        tenant=fields.get("tenant", ""),
        at_ms=at_ms,
        review=reviews.of(task, key, answer_id(data)),
    )
