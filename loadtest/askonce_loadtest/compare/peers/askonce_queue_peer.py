"""askonce's queue: the worker is `askonce worker`, the producer its `Client`; all defaults."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager

from askonce_loadtest.compare.peers.drivers import cold_jobs, jobs_of, paced, timed
from askonce_loadtest.compare.peers.harness import Order, Step, serve
from askonce_queue.client import Client
from askonce_queue.job import Job

TASK = "compare"


@asynccontextmanager
async def producer(order: Order) -> AsyncGenerator[Mapping[str, Step]]:
    """The producer's steps."""
    async with Client(order.store_url) as client:

        async def ask_many(texts: Iterable[str]) -> int:
            answered = 0
            async for reply in client.ask_many(Job(task=TASK, text=text) for text in texts):
                order.check(reply.answer and reply.answer.label)
                answered += 1
            return answered

        async def ask(text: str) -> str | None:
            reply = await client.ask(Job(task=TASK, text=text))
            return reply.answer.label if reply.answer else None

        yield {
            "warm_up": lambda: timed(ask_many(order.texts()["warm"])),
            "ask_all": lambda: timed(ask_many(jobs_of(order))),
            "paced": lambda: paced(ask, order),
            "cold": lambda: timed(ask_many(cold_jobs(order))),
        }


if __name__ == "__main__":
    serve(producer)
