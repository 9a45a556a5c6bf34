"""Hits while the model is dead: warm jobs/s with misses among them, over warm jobs/s without.

The model answers every call with 500, its breaker has opened and the waiting room is full, so that
every miss is looked up, finds no room and is deferred. Rounds with and without misses alternate, so
that what else the machine does meets both. Memory may serve for longer without a look at the stamps
than by default: on a busy machine hits would be looked up too, and this is not about those.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import aiohttp
import anyio

from askonce_loadtest.bench.child import Figures, Order, Steps
from askonce_loadtest.bench.children import child
from askonce_loadtest.bench.serving import worker
from askonce_loadtest.bench.workload import check_reply, distinct_texts, job, zipf_texts
from askonce_queue.client import Client
from askonce_queue.queue_scripts import Lane
from askonce_queue.scripts import AsyncStore

MISS_SHARE = 0.05
ROUNDS = 4
"""Of each kind; all of them together ask the plan's jobs, twice."""
MOST_WAITING = 500
"""Deliveries that the worker holds before it defers misses."""
WINDOW = 5_000
"""Hits on their way at once."""
CONFIG = f"""
[worker]
max_waiting = {MOST_WAITING}
stamp_bound_s = 10
drain_s = 0.1
"""
_POLL_S = 0.05


async def measure_dead_model(order: Order, store: AsyncStore, model_root_url: str) -> Figures:
    """Return how fast hits are answered beside misses that nobody can answer."""
    path = anyio.Path(order.config).with_name("dead.toml")
    await path.write_text(await anyio.Path(order.config).read_text() + CONFIG, encoding="utf-8")
    order = Order(order.plan, order.url, str(path))
    hits_s: list[float] = []
    mixed_s: list[float] = []
    try:
        async with child(worker, order), child(producer, order) as producing:
            await producing.do("warm_up")
            await _behave(model_root_url, b'{"status_500": 1.0}')
            await producing.do("fill_room")
            deferred = Lane("0", "default", "interactive").deferred
            while not await store.xlen(deferred.stream):  # noqa: ASYNC110 -- of another process
                await anyio.sleep(_POLL_S)
            for _ in range(ROUNDS):
                hits_s.append((await producing.do("ask_hits"))["per_hit_s"])
                mixed_s.append((await producing.do("ask_mixed"))["per_hit_s"])
    finally:
        await _behave(model_root_url, b'{"latency_ms": %d}' % order.plan.model_latency_ms)
    return {
        "dead_model_ratio": sum(hits_s) / sum(mixed_s),
        "dead_model_hits_per_s": len(mixed_s) / sum(mixed_s),
    }


@asynccontextmanager
async def producer(order: Order) -> AsyncGenerator[Steps]:
    """The role of the producer: asks what is known, alone or among what nobody can answer."""
    plan = order.plan
    rng = random.Random(plan.seed)
    per_round = plan.jobs // ROUNDS
    misses = iter(distinct_texts(plan.jobs + 2 * MOST_WAITING, "miss"))
    async with Client(order.url) as client:

        async def warm_up() -> Figures:
            async for reply in client.ask_many(map(job, distinct_texts(plan.texts, "warm"))):
                check_reply(reply)
            return {}

        async def fill_room() -> Figures:
            await client.enqueue_many([job(next(misses)) for _ in range(2 * MOST_WAITING)])
            return {}

        async def ask(texts: Sequence[str], hits: int) -> Figures:
            window = WINDOW + len(texts) - hits
            began = time.perf_counter()
            async for reply in client.ask_many(map(job, texts), window=window):
                check_reply(reply)
                hits -= 1
                if not hits:
                    break
            return {"per_hit_s": (time.perf_counter() - began) / per_round}

        async def ask_hits() -> Figures:
            texts = zipf_texts(plan.texts, plan.exponent, per_round, rng.getrandbits(32))
            return await ask(texts, per_round)

        async def ask_mixed() -> Figures:
            hits = per_round - int(per_round * MISS_SHARE)
            texts = zipf_texts(plan.texts, plan.exponent, per_round, rng.getrandbits(32))
            for number in rng.sample(range(per_round), per_round - hits):
                texts[number] = next(misses)
            figures = await ask(texts, hits)
            return {"per_hit_s": figures["per_hit_s"] * per_round / hits}

        yield {
            "warm_up": warm_up,
            "fill_room": fill_room,
            "ask_hits": ask_hits,
            "ask_mixed": ask_mixed,
        }


async def _behave(model_root_url: str, behaviour: bytes) -> None:
    async with (
        aiohttp.ClientSession(trust_env=False) as session,
        session.post(f"{model_root_url}/reset", data=behaviour) as response,
    ):
        response.raise_for_status()
