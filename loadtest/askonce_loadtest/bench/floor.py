"""The floor: the client CPU of what a warm job cannot do without, and of nothing else.

The list is fixed here, in one place (`answer_batch`), and run on the same store in the same run as
the worker it is compared with, by a process without any of askonce's logic: no delivery objects,
no flights, no checks, no counters, no loops. What it shares with the worker are the connections
(`connect`) and the settle script, because their settings are part of what is bare.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256

import msgspec

from askonce_loadtest.bench.child import Figures, Order, Steps
from askonce_loadtest.bench.children import child
from askonce_loadtest.bench.enqueue import enqueuer
from askonce_loadtest.bench.workload import LABELS, distinct_texts
from askonce_queue import names, queue_scripts
from askonce_queue.connections import connect
from askonce_queue.job import Payload
from askonce_queue.queue_scripts import LANES, Lane, SettleGroup
from askonce_queue.reply import Answer, WireReply
from askonce_queue.scripts import CHUNK, AsyncStore, run, send
from askonce_queue.shards import shard_tags

CONSUMER = "floor"
PREFIX = bytes(45)
"""As long as a task digest with scope and kind, which is what a key hashes before the text."""

_decode = msgspec.json.Decoder(Payload).decode
_encode_lines = msgspec.json.Encoder().encode_lines


async def measure_floor(order: Order) -> Figures:
    """Return the CPU of the bare commands per job."""
    async with child(enqueuer, order) as enqueuing, child(floor, order) as bare:
        await enqueuing.do("enqueue_all")
        run = await bare.do("answer_all")
    return {"floor_cpu_us_per_job": run["cpu_s"] / order.plan.jobs * 1e6}


@asynccontextmanager
async def floor(order: Order) -> AsyncGenerator[Steps]:
    """The role of the bare worker: answers all jobs in the stream, one batch after the other."""
    lane = Lane(shard_tags(1)[0], "default", LANES[0])
    reads, commands = connect(order.url, role="blocking"), connect(order.url, role="commands")
    known = _answers(distinct_texts(order.plan.texts, "warm"))

    async def answer_all() -> Figures:
        left = order.plan.jobs
        await send(commands, "XGROUP", "CREATE", lane.stream, names.GROUP, "0")
        cpu_s = time.process_time()
        while left:
            left -= await answer_batch(reads, commands, lane, known)
        return {"cpu_s": time.process_time() - cpu_s}

    try:
        yield {"answer_all": answer_all}
    finally:
        await reads.aclose()
        await commands.aclose()


async def answer_batch(
    reads: AsyncStore, commands: AsyncStore, lane: Lane, known: dict[bytes, msgspec.Raw]
) -> int:
    """Do the least for one batch; return how many jobs it had."""
    # 1. Fetch: one XREADGROUP for 500 jobs, its reply as the wire has it.
    group = ("GROUP", names.GROUP, CONSUMER, "COUNT", CHUNK, "STREAMS", lane.stream, ">")
    reply = await send(reads, "XREADGROUP", *group)
    entries: Sequence[tuple[bytes, list[bytes]]] = reply[0][1]
    client = entries[0][1][3].decode()
    replies: list[WireReply] = []
    settled: list[tuple[bytes, str]] = []
    for entry_id, fields in entries:
        # 2. Decode the payload, with validation.
        payload = _decode(fields[7])
        # 3. The cache key: SHA-256 of the task's precomputed part and the text.
        key = sha256(PREFIX + (payload.text or "").encode()).digest()
        # 4. Look the answer up: one dict.
        answer = known[key]
        # 5. The reply, and what the store needs to settle the job.
        job_id = fields[5].decode()
        replies.append(WireReply(id=job_id, answer=answer, source="memory"))
        settled.append((entry_id, f"{client}/{job_id}"))
    # 6. Encode the replies: NDJSON, one entry for all.
    lines = _encode_lines(replies)
    # 7. Settle: one script call for 500 jobs.
    await run(commands, queue_scripts.settle(lane, [SettleGroup(client, lines, settled)]))
    return len(entries)


def _answers(texts: Sequence[str]) -> dict[bytes, msgspec.Raw]:
    answer = msgspec.Raw(msgspec.json.encode(Answer(label=LABELS[0], model="stand-in-1")))
    return {sha256(PREFIX + text.encode()).digest(): answer for text in texts}
