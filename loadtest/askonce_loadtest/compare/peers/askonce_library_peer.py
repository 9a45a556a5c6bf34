"""askonce without its queue: `AnswerCache.get_or_call`, all defaults, in the caller's process."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

from askonce_loadtest.compare.peers.drivers import cache_steps
from askonce_loadtest.compare.peers.harness import Order, Step, serve
from askonce_loadtest.compare.peers.recipe import ask_model
from askonce_worker.library import AnswerCache


@asynccontextmanager
async def asker(order: Order) -> AsyncGenerator[Mapping[str, Step]]:
    """The steps of a process that asks."""
    async with AnswerCache(order.store_url) as cache:

        async def ask(text: str) -> str:
            found = await cache.get_or_call(
                "compare", text, lambda: ask_model(order.model_url, text), returns=str
            )
            return found.value

        yield cache_steps(ask, order)


if __name__ == "__main__":
    serve(asker)
