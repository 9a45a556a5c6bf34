"""The role of the filler: puts answers into the store in bulk, as workers do, but asking no model.

Through the look-up script, which grants the leases, and the fill script, which asks for them: what
is there afterwards is what workers leave.
"""

from __future__ import annotations

import secrets
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec

from askonce_loadtest.bench.child import Figures, Order, Steps
from askonce_loadtest.bench.workload import LABELS, TASK
from askonce_loadtest.scale.point import Point, text_of
from askonce_queue import answer_scripts
from askonce_queue.answer_scripts import Fill
from askonce_queue.reply import Answer, Usage
from askonce_queue.scripts import CHUNK
from askonce_queue.shards import shard_of_digest
from askonce_queue.store import Store
from askonce_worker.build import build_tasks, open_models
from askonce_worker.cache.entry import encode_body
from askonce_worker.config import load_settings
from askonce_worker.tasks import Task

AT_ONCE = 3
"""Batches under way: while the store works on one, the next are prepared."""
TTL_MS = 86_400_000
LEASE_MS = 60_000


class FillError(Exception):
    """The store did not take all answers."""


class Lot(msgspec.Struct, frozen=True):
    """Which keys to fill: from `first` up to, not including, `end`."""

    point: Point
    first: int
    end: int


@asynccontextmanager
async def filler(order: Order) -> AsyncGenerator[Steps]:
    """The one step, `fill`, fills the lot of the order. Raises `FillError`."""
    lot = msgspec.json.decode(order.detail, type=Lot)
    settings = load_settings(Path(order.config))
    store = Store(settings.redis or order.url, shards=lot.point.shards)
    try:
        async with open_models(settings) as backends:
            task = build_tasks(settings, backends)[TASK]

            async def fill() -> Figures:
                began = time.perf_counter()
                batches = iter(range(lot.first, lot.end, CHUNK * lot.point.shards))
                async with anyio.create_task_group() as tasks:
                    for _ in range(AT_ONCE):
                        tasks.start_soon(_fill_batches, store, task, lot, batches)
                return {"wall_s": time.perf_counter() - began}

            yield {"fill": fill}
    finally:
        await store.aclose()


async def _fill_batches(store: Store, task: Task, lot: Lot, batches: Iterator[int]) -> None:
    size = CHUNK * lot.point.shards
    for start in batches:
        numbers = range(start, min(start + size, lot.end))
        await _fill_batch(store, task, numbers, lot.point.text_bytes)


async def _fill_batch(store: Store, task: Task, numbers: Sequence[int], text_bytes: int) -> None:
    shards: defaultdict[int, list[tuple[bytes, bytes]]] = defaultdict(list)
    for number in numbers:
        key = task.key_maker.text_key(text_of(number, text_bytes))
        shards[shard_of_digest(key, len(store.tags))].append((key, _BODIES[key[0] % len(_BODIES)]))
    parts: list[Part] = [
        (store.tags[shard], found[start : start + CHUNK])
        for shard, found in shards.items()
        for start in range(0, len(found), CHUNK)
    ]
    token = secrets.token_bytes(16)
    tags = "\n".join(task.tags)
    await _look_up(store, parts, token, tags)
    fills = [
        answer_scripts.fill(
            tag, [Fill(key, token, TTL_MS, TTL_MS, tags, body) for key, body in part]
        )
        for tag, part in parts
    ]
    for result in await store.run_many(fills):
        if isinstance(result, Exception):
            raise FillError(f"the store keeps no answers: {result}") from result
        letters = result[1].decode()
        if letters.strip("f"):
            raise FillError(f"the store did not keep all answers: {letters}")
    # The first read of an answer is noted in it, which costs more than the others: here it is done.
    await _look_up(store, parts, token, tags)


Part = tuple[str, Sequence[tuple[bytes, bytes]]]
"""A shard's tag, and keys with the bodies of their answers."""


async def _look_up(store: Store, parts: Sequence[Part], token: bytes, tags: str) -> None:
    """Look the keys up, or take the leases to fill them. Raises `FillError`."""
    calls = [
        answer_scripts.look_up(
            tag,
            token=token,
            lease_ms=LEASE_MS,
            max_new_leases=CHUNK,
            digests=[key for key, _ in part],
            asker_tags=[tags] * len(part),
        )
        for tag, part in parts
    ]
    for result in await store.run_many(calls):
        if isinstance(result, Exception):
            raise FillError(f"the store cannot be asked: {result}") from result


_BODIES = [
    encode_body(Answer(label=label, model="stand-in-1", usage=Usage(60, 8))) for label in LABELS
]
