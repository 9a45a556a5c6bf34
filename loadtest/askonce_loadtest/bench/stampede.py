"""A stampede: many callers in many processes ask the same cold questions at the same moment.

The judge is the stand-in model server, which counts the calls of each distinct input.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec

from askonce_loadtest.bench.child import Figures, Order, Steps
from askonce_loadtest.bench.children import child
from askonce_loadtest.bench.workload import LABELS, TASK, WrongReplyError, distinct_texts
from askonce_queue.queue_scripts import LaneName
from askonce_queue.reply import ErrorInfo, Source
from askonce_queue.store import Store
from askonce_worker.build import build_tasks, open_models
from askonce_worker.cache.entry import Entry
from askonce_worker.config import load_settings
from askonce_worker.models.protocol import Question
from askonce_worker.resolver import Resolver
from askonce_worker.tasks import Task


class _Served(msgspec.Struct):
    """What is read of the model server's `/stats`."""

    total_calls: int


async def measure_stampede(order: Order, model_root_url: str) -> Figures:
    """Return the model calls that all askers together caused, counted by the model."""
    plan = order.plan
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession(trust_env=False))
        askers = [await stack.enter_async_context(child(asker, order)) for _ in range(plan.askers)]
        async with session.post(f"{model_root_url}/reset") as response:
            response.raise_for_status()
        began = time.perf_counter()
        answers = await asyncio.gather(*(one.do("ask_all") for one in askers))
        took_s = time.perf_counter() - began
        async with session.get(f"{model_root_url}/stats") as response:
            response.raise_for_status()
            served = msgspec.json.decode(await response.read(), type=_Served)
    return {
        "stampede_calls": served.total_calls,
        "stampede_asks": sum(one["answered"] for one in answers),
        "stampede_s": took_s,
    }


class CallerAsk:
    """One caller's ask for one text; `label` is there once it was answered."""

    __slots__ = (
        *("_label", "_text", "cacheable", "control", "deadline"),
        *("key", "lane", "tags", "task", "tenant"),
    )

    def __init__(self, task: Task, text: str) -> None:
        self.task = task
        self.key = task.key_maker.text_key(text)
        self.tags: Sequence[str] = task.tags
        self.cacheable = True
        self.control = None
        self.lane: LaneName = "interactive"
        self.deadline = math.inf
        self.tenant = ""
        self._text = text
        self._label: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

    async def label(self) -> str | None:
        """Wait for the answer. Raises `WrongReplyError` when there is none."""
        return await self._label

    def key_for(self, task: Task) -> bytes:
        """The key of the same text under another task."""
        return task.key_maker.text_key(self._text)

    def may_defer(self) -> bool:
        """Callers wait where they are."""
        return False

    def deferred(self) -> None:
        """Nobody says so."""
        raise AssertionError("it may not be deferred")

    def question(self) -> Question:
        """What the model is asked."""
        return Question(text=self._text)

    def answered(self, entry: Entry, source: Source, age_s: float) -> None:  # noqa: ARG002
        """Take the answer."""
        self._label.set_result(entry.answer.label)

    def failed(self, error: ErrorInfo, cause: Exception | None) -> None:  # noqa: ARG002
        """Take the failure."""
        self._label.set_exception(WrongReplyError(f"{error.code}: {error.message}"))


@asynccontextmanager
async def asker(order: Order) -> AsyncGenerator[Steps]:
    """The role of one process of the stampede: its callers ask every cold text, all at once."""
    plan = order.plan
    settings = load_settings(Path(order.config))
    store = Store(order.url)
    texts = distinct_texts(plan.cold_keys, "cold")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(store.aclose)
        backends = await stack.enter_async_context(open_models(settings))
        task = build_tasks(settings, backends)[TASK]
        resolver = Resolver(store, memory_bytes=int(settings.worker.memory_bytes))
        await stack.enter_async_context(resolver.running())

        async def call(text: str) -> None:
            ask = CallerAsk(task, text)
            resolver.resolve([ask])
            if await ask.label() not in LABELS:
                raise WrongReplyError(f"not a label of the task: {await ask.label()}")

        async def ask_all() -> Figures:
            asks = texts * plan.callers
            random.shuffle(asks)  # every process in an order of its own
            await asyncio.gather(*map(call, asks))
            return {"answered": len(asks)}

        yield {"ask_all": ask_all}
