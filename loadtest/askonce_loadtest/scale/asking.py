"""The role of the producer: jobs in a fixed mix of tiers, as fast as the workers answer them."""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from askonce_loadtest.bench.child import Figures, Order, Steps
from askonce_loadtest.bench.workload import check_reply, job
from askonce_loadtest.scale.point import Point, text_of
from askonce_queue.client import Client
from askonce_worker.config import load_settings

WARM_ROUNDS = 4
"""How often each worker is asked each hot question, on average, before anything is measured."""


@asynccontextmanager
async def producer(order: Order) -> AsyncGenerator[Steps]:
    """Steps: `warm_up` brings the hot answers into all workers' memory; `ask` is one run."""
    point = msgspec.json.decode(order.detail, type=Point)
    store = load_settings(Path(order.config)).redis or order.url
    rng = random.Random(order.plan.seed)
    mixed = _mixed(point, rng)
    async with Client(store, shards=point.shards) as client:

        async def ask(texts: Iterator[str]) -> Figures:
            sources: Counter[str] = Counter()
            cpu_s, began = time.process_time(), time.perf_counter()
            async for reply in client.ask_many(map(job, texts)):
                check_reply(reply)
                sources[reply.source or "none"] += 1
            wall_s = time.perf_counter() - began
            found = {name: float(sources[name]) for name in ("memory", "store", "model")}
            return {"wall_s": wall_s, "cpu_s": time.process_time() - cpu_s, **found}

        async def warm_up() -> Figures:
            hot = list(range(point.hot)) * (WARM_ROUNDS * point.workers)
            rng.shuffle(hot)
            await ask(text_of(number, point.text_bytes) for number in hot)
            return await ask(itertools.islice(mixed, point.jobs // 4))

        async def ask_mixed() -> Figures:
            return await ask(itertools.islice(mixed, point.jobs))

        yield {"warm_up": warm_up, "ask": ask_mixed}


def _mixed(point: Point, rng: random.Random) -> Iterator[str]:
    """Texts without end, in exactly the point's shares (by error diffusion).

    The store's share goes round and round through the cold keys, which are many more than the
    memory tier, with its ghosts, remembers: when one comes again it has been forgotten.
    """
    cold = itertools.cycle(range(point.hot, point.keys))
    new = itertools.count(point.keys + rng.randrange(10**9) * 10**6)
    of_model = of_store = 0.0
    while True:
        of_model += point.model_share
        of_store += point.store_share
        if of_model >= 1:
            of_model -= 1
            number = next(new)
        elif of_store >= 1:
            of_store -= 1
            number = next(cold)
        else:
            number = rng.randrange(point.hot)
        yield text_of(number, point.text_bytes)
