"""Writes that must succeed: idempotent calls, repeated until the store has confirmed each."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import anyio
import structlog

from askonce_queue.scripts import Call
from askonce_queue.store import Store

RETRY_S = (0.05, 2.0)

log = structlog.get_logger("askonce.outbox")


async def until_done(
    store: Store, calls: list[Call], before_each: Callable[[], None], rng: random.Random
) -> list[Any]:
    """Run calls until each has succeeded; return their results."""
    results: list[Any] = [None] * len(calls)
    left = list(range(len(calls)))
    delay_s = RETRY_S[0]
    while True:
        before_each()
        answers = await store.run_many([calls[i] for i in left])
        failed: list[int] = []
        for i, answer in zip(left, answers, strict=True):
            if isinstance(answer, Exception):
                failed.append(i)
                log.warning("settle failed, will be repeated", error=str(answer))
            else:
                results[i] = answer
        if not failed:
            return results
        left = failed
        await anyio.sleep(delay_s * rng.uniform(0.5, 1.0))
        delay_s = min(RETRY_S[1], 2 * delay_s)
