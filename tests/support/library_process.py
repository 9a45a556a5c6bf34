"""A process that uses `AnswerCache`: one JSON request on stdin, one JSON report on stdout.

Prints `ready` once its cache is open, and `called` when its function begins. The request is
`{"key": …, "callers": n, "hold": bool, "result": …}`; with `hold` the function waits for another
line on stdin (for ever, if none comes).
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from askonce_worker import AnswerCache


async def main(url: str, lease_ttl_s: float) -> None:
    """Serve one request."""
    calls = 0
    async with AnswerCache(url, lease_ttl_s=lease_ttl_s) as cache:
        say("ready")
        request: dict[str, Any] = json.loads(await asyncio.to_thread(sys.stdin.readline))

        async def call() -> object:
            nonlocal calls
            calls += 1
            say("called")
            if request["hold"]:
                await asyncio.to_thread(sys.stdin.readline)
            return request["result"]

        results = await asyncio.gather(
            *[cache.get_or_call("f", request["key"], call) for _ in range(request["callers"])]
        )
        values = [result.value for result in results]
        sources = [result.source for result in results]
        say(json.dumps({"values": values, "sources": sources, "calls": calls}))


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
