"""The store's memory per answer: what `used_memory` grows by when answers come in, all in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from askonce_loadtest.bench.child import Figures, Order, Steps
from askonce_loadtest.bench.children import child
from askonce_loadtest.bench.stampede import CallerAsk
from askonce_loadtest.bench.workload import LABELS, TASK, distinct_texts
from askonce_queue.reply import Answer, Usage
from askonce_queue.scripts import AsyncStore
from askonce_queue.store import Store
from askonce_worker.backend import Backend
from askonce_worker.cache.key import KeyMaker, task_digest
from askonce_worker.models.protocol import Prompt, Question
from askonce_worker.resolver import Resolver
from askonce_worker.tasks import Task

SLOTS = 1_000


async def measure_footprint(order: Order, store: AsyncStore) -> Figures:
    """Return the bytes that the store needs for one answer."""
    before = await _used_bytes(store)
    async with child(filler, order) as filling:
        await filling.do("fill_all")
    growth = await _used_bytes(store) - before
    return {"store_bytes_per_answer": growth / order.plan.answers}


async def _used_bytes(store: AsyncStore) -> int:
    """Memory in use, less the buffers of clients and of the append-only file."""
    memory: dict[str, Any] = await store.info("memory")
    buffers = ("mem_clients_normal", "mem_aof_buffer")
    return int(memory["used_memory"]) - sum(int(memory.get(name, 0)) for name in buffers)


class Labeller:
    """A model of this process that answers at once, with the fields that an API's answer has."""

    async def ask(self, prompt: Prompt, question: Question) -> Answer:
        """Answer with one of the prompt's labels."""
        labels = prompt.labels
        label = labels[len(question.text or "") % len(labels)]
        return Answer(label=label, model="stand-in-1", usage=Usage(60, 8))

    async def check(self) -> str:
        """Say that it is here."""
        return "in this process"

    async def aclose(self) -> None:
        """Nothing to release."""


@asynccontextmanager
async def filler(order: Order) -> AsyncGenerator[Steps]:
    """The role of whoever fills the store: through leases and fills, as every answer gets there."""
    prompt = Prompt(labels=LABELS)
    digest = task_digest(model_identity={"kind": "labeller"}, prompt=prompt, normalize=())
    task = Task(
        TASK,
        backend=Backend("labeller", Labeller(), SLOTS, patience_s=60.0),
        prompt=prompt,
        key_maker=KeyMaker(digest, shared=False),
    )
    store = Store(order.url)
    try:
        async with Resolver(store, memory_bytes=0).running() as resolver:

            async def fill_all() -> Figures:
                texts = distinct_texts(order.plan.answers, "filled")
                for start in range(0, len(texts), SLOTS):
                    asks = [CallerAsk(task, text) for text in texts[start : start + SLOTS]]
                    resolver.resolve(asks)
                    await asyncio.gather(*(ask.label() for ask in asks))
                return {}

            yield {"fill_all": fill_all}
    finally:
        await store.aclose()
