"""What a cache saves, computed and measured: `python examples/cost.py`.

The effective cost of N requests is C × (1 − h) + the store's cost: C is what N model calls cost, h
the hit rate. Here the requests are those of a real trace. Its best possible hit rate is computed
from the trace alone; then the requests go through an `AnswerCache` whose model is a function that
counts its calls, and the two are compared. The prices are yours to give.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# Run as a script, Python looks beside this file, not in the folder of the `examples` package.
from askonce_queue.embedded import EmbeddedStore  # noqa: E402
from askonce_worker import AnswerCache  # noqa: E402
from examples.request_stream import build_stream  # noqa: E402

AT_ONCE = 200
"""Requests under way at the same time."""


async def measure(texts: list[str]) -> int:
    """Ask for every text in order; how many model calls that takes."""
    calls = 0

    async def model(text: str) -> int:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0)
        return len(text)

    with tempfile.TemporaryDirectory(prefix="askonce-cost-") as work:
        async with EmbeddedStore(Path(work)) as store, AnswerCache(store.url) as cache:
            for start in range(0, len(texts), AT_ONCE):
                batch = texts[start : start + AT_ONCE]
                await asyncio.gather(
                    *(cache.get_or_call("cost", text, partial(model, text)) for text in batch)
                )
    return calls


def effective(per_call: float, hit_rate: float, store_per_request: float) -> float:
    """The cost of one request."""
    return per_call * (1 - hit_rate) + store_per_request


def main() -> int:
    """Compute, measure, compare, and print what it comes to."""
    parser = argparse.ArgumentParser(description="What a cache saves, computed and measured.")
    parser.add_argument("--requests", type=int, metavar="N", help="only the first N of the trace")
    parser.add_argument("--per-call", type=float, default=0.0002, help="price of a model call, $")
    parser.add_argument("--store", type=float, default=60.0, help="price of the store, $ a month")
    parser.add_argument("--month", type=int, default=10_000_000, help="requests a month")
    arguments = parser.parse_args()
    texts = [example.text for example in build_stream("intent", arguments.requests).requests]
    hit_rate = 1 - len(set(texts)) / len(texts)
    calls = asyncio.run(measure(texts))
    per_call, month = arguments.per_call, arguments.month
    store = arguments.store / month
    bare, cached = per_call * month, effective(per_call, hit_rate, store) * month
    pays_from = store / per_call
    for what, value in (
        ("requests of the trace", f"{len(texts):,}"),
        ("distinct questions", f"{len(set(texts)):,}"),
        ("hit rate h, computed", f"{hit_rate:.1%}"),
        ("hit rate h, measured", f"{1 - calls / len(texts):.1%} ({calls:,} calls)"),
        ("a month without a cache, C", f"${bare:,.2f} ({month:,} calls)"),
        ("a month with it, C * (1 - h) + store", f"${cached:,.2f}"),
        ("saved", f"{1 - cached / bare:.1%}"),
        ("it pays from a hit rate of", f"{pays_from:.1%}"),
    ):
        print(f"{what:38} {value}")
    if calls != len(set(texts)):
        print("The model was not asked once for each question: see above.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
