"""Workers of this process on a real store, with a model that a test can watch and hold."""

from __future__ import annotations

import asyncio
from typing import Any

from askonce_queue.queue_scripts import Lane
from askonce_queue.reply import Answer
from askonce_queue.scripts import AsyncStore, send
from askonce_worker.backend import Backend
from askonce_worker.cache.key import KeyMaker, task_digest
from askonce_worker.cache.policy import Policy
from askonce_worker.config import LimitsConfig, WorkerConfig
from askonce_worker.models.protocol import Model, Prompt, Question
from askonce_worker.pool.worker import Worker
from askonce_worker.tasks import Task

INTERACTIVE = Lane("0", "default", "interactive")
BULK = Lane("0", "default", "bulk")
"""The lanes of a store with one shard."""
QUICK: dict[str, Any] = {
    "heartbeat_ttl_s": 0.6,
    "lease_ttl_s": 1.0,
    "lease_renew_s": 0.3,
    "drain_s": 3.0,
    "sweep_every_s": 3600.0,
}
"""A worker that calls others dead soon, and sweeps only when told."""


class EchoModel:
    """Answers with the text itself, upper case, once `open` is set (it is at first)."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.open = asyncio.Event()
        self.open.set()

    async def ask(self, prompt: Prompt, question: Question) -> Answer:
        del prompt
        self.asked.append(question.text or "")
        await self.open.wait()
        return Answer(label=(question.text or "").upper())

    async def check(self) -> str:
        return "echo"

    async def aclose(self) -> None:
        pass


def echo_tasks(
    model: Model, *, slots: int = 1000, shared: LimitsConfig | None = None, **options: Any
) -> dict[str, Task]:
    """One task, `echo`."""
    digest = task_digest(model_identity={"kind": "echo"}, prompt=Prompt(), normalize=())
    backend = Backend("echo", model, slots, patience_s=60.0, shared=shared)
    key_maker = KeyMaker(digest, shared=False)
    return {"echo": Task("echo", backend=backend, prompt=Prompt(), key_maker=key_maker, **options)}


def echo_worker(
    url: str,
    model: Model | None = None,
    *,
    shards: int = 1,
    slots: int = 1000,
    policy: Policy | None = None,
    shared: LimitsConfig | None = None,
    **config: Any,
) -> Worker:
    """A worker for `echo`, quick to call others dead."""
    tasks = echo_tasks(model or EchoModel(), slots=slots, policy=policy, shared=shared)
    return Worker(url, tasks, WorkerConfig(**(QUICK | config)), shards=shards)


async def backlog(store: AsyncStore, lane: Lane = INTERACTIVE) -> int:
    """The unsettled jobs of a lane."""
    return int(await store.xlen(lane.stream))


async def pending(store: AsyncStore, lane: Lane = INTERACTIVE) -> dict[str, int]:
    """Consumer → deliveries pending to it."""
    rows: list[Any] = await send(store, "XPENDING", lane.stream, "workers")
    return {name.decode(): int(count) for name, count in rows[3] or ()}
