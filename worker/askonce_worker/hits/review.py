"""Judging a hit: what is flagged is taken back, kept from coming again, and counted."""

from __future__ import annotations

from askonce_queue import names
from askonce_queue.store import Store
from askonce_worker.cache.invalidation import invalidate
from askonce_worker.hits.reviews import Review, Verdict, record_review
from askonce_worker.hits.rulebook import RuleBook
from askonce_worker.hits.rules import Rule
from askonce_worker.hits.search import Hit


class NotTakenBack(Exception):
    """A shard has not confirmed that the answer is invalid, so nothing was recorded. Repeat it."""


async def judge(store: Store, hit: Hit, verdict: Verdict, pattern: str | None = None) -> None:
    """Take the answer of a flagged hit back, add a rule if there is a pattern, record the decision.

    In that order: a hit whose decision was not recorded comes up again, and all of it may be
    repeated. Raises `NotTakenBack`, `TooManyRules`, `ValueError` for a bad pattern, and redis-py's
    errors.
    """
    if verdict != "fine":
        rule = None
        if pattern is not None:
            rule = Rule(hit.task, pattern, at_ms=await now_ms(store), key=hit.key)
        done = await invalidate(store, keys=[bytes.fromhex(hit.key)])
        if not done.complete:
            raise NotTakenBack(
                "; ".join(f"shard {tag}: {why}" for tag, why in done.failures.items())
            )
        if rule is not None:
            await RuleBook(store).add(rule)
    await record_review(store, Review(hit.key, hit.task, verdict, hit.answer_id))


async def now_ms(store: Store) -> int:
    """The time of the store, Unix ms. Raises redis-py's errors."""
    seconds, micros = await store.send(names.META, "TIME")
    return int(seconds) * 1000 + int(micros) // 1000
