"""A process of a stampede: a resolver over the stand-in model server, told what to do in lines.

Arguments: store URL, model server's base URL, seed (its lease tokens begin with what it yields),
lease TTL and renewal interval in seconds. Prints `ready`, then takes a line with `{"texts": […],
"callers": n}`: every caller asks every text, all at once. Prints one JSON object, source → how many
were told so.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter

import aiohttp
import structlog

from askonce_worker.models.chat import ChatCompletions
from askonce_worker.models.http_model import HttpModel
from tests.support.resolving import Waiter, make_task, resolver_on


async def main(store_url: str, base_url: str, seed: int, ttl_s: float, renew_s: float) -> None:
    """Ask until everyone is told."""
    async with aiohttp.ClientSession() as session:
        model = HttpModel(
            session,
            ChatCompletions(),
            base_url=base_url,
            model="m",
            api_key=lambda: None,
            timeout_s=30,
        )
        async with resolver_on(
            store_url, lease_ttl_s=ttl_s, lease_renew_s=renew_s, rng=random.Random(seed)
        ) as resolver:
            print("ready", flush=True)  # noqa: T201
            request = json.loads(await asyncio.to_thread(sys.stdin.readline))
            task = make_task(model, slots=16)
            waiters: list[Waiter] = []
            for _ in range(request["callers"]):
                texts = list(request["texts"])
                random.shuffle(texts)
                mine = [Waiter(task, text) for text in texts]
                resolver.resolve(mine)
                waiters += mine
                await asyncio.sleep(0)
            outcomes = [await waiter.outcome() for waiter in waiters]
            told = Counter(outcome.source or "error" for outcome in outcomes)
            print(json.dumps(told), flush=True)  # noqa: T201


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5]))
    )
