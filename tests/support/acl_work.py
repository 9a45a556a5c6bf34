"""What each role does with the store, all of it: with the product where that gets there, else by
calling the script that it would call.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from askonce_loadtest.servers.node import Node
from askonce_queue import Client, Job, answer_scripts, names, queue_scripts, sync
from askonce_queue.answer_scripts import Release
from askonce_queue.queue_scripts import Lane
from askonce_queue.scripts import Call
from askonce_queue.store import Store
from askonce_worker.config import WorkerConfig
from askonce_worker.dead_letters import DeadLetters, Wanted
from askonce_worker.library import AnswerCache
from askonce_worker.pool.worker import Worker
from tests.support.acl import (
    AUTOSCALER,
    GATEWAY,
    OPERATOR,
    PASSWORD,
    PRODUCER,
    WORKER,
    store_of,
)
from tests.support.askonce_command import CONFIG, Askonce
from tests.support.queue_worker import QUICK, EchoModel, echo_tasks
from tests.support.waiting import eventually

TAG, POOL = "0", "default"
LANE = Lane(TAG, POOL, "interactive")
TAGS = ("red", "green")
X, Y = b"x" * 32, b"y" * 32
TOKEN, OTHER = b"0123456789abcdef", b"fedcba9876543210"
GHOST = "ghost"
"""A client that was never there."""


def job(text: str) -> Job:
    return Job(task="echo", text=text, id=text, tags=TAGS)


# The producer


async def produce(node: Node) -> None:
    """Enqueue jobs, one of them twice, and leave with debts."""
    store = store_of(node, PRODUCER, wait_replicas=1)
    async with Client(store, name="shop") as client:
        await client.enqueue_many([job("one"), job("two")])
        await client.enqueue(job("one"))
        await client.enqueue(job("named"), reply_to="sink")
    on_disk = store_of(node, PRODUCER, wait_fsync=True)
    with sync.Client(on_disk, name="desk") as desk:
        desk.enqueue(job("three"))


async def collect(node: Node) -> None:
    """Take the replies, and leave without debts."""
    async with Client(store_of(node, PRODUCER), name="shop") as client:
        replies = client.replies()
        assert {(await anext(replies)).id for _ in range(2)} == {"one", "two"}
        await replies.aclose()
    with sync.Client(store_of(node, PRODUCER), name="desk") as desk:
        assert next(iter(desk.replies(timeout_s=10))).id == "three"


# The worker


async def spoil(node: Node) -> None:
    """By nobody's right: an entry that is no job, and one that has killed workers again and again."""
    stream = LANE.stream
    await node.command("XGROUP", "CREATE", stream, names.GROUP, "0")
    await node.command("XREADGROUP", "GROUP", names.GROUP, "dead", "COUNT", 1, "STREAMS", stream, ">")
    ((entry, *_),) = await node.command("XPENDING", stream, names.GROUP, "-", "+", 1)
    await node.command("XCLAIM", stream, names.GROUP, "dead", 0, entry, "RETRYCOUNT", 9, "JUSTID")
    await node.command("XADD", stream, "*", "not", "a job")


async def serve(node: Node) -> None:
    """Hand jobs back in a drain, then take all there are, the suspect and the bad one too."""
    model = EchoModel()
    model.open.clear()
    async with worker(node, model, drain_s=0.05):
        await eventually(lambda: len(model.asked) >= 2)
    model.open.set()
    async with worker(node, model, sweep_every_s=0.02) as second:
        await eventually(lambda: second.counters.total("jobs_settled") == 4)
        await eventually(lambda: second.counters.total("jobs_buried") == 1)
    async with worker(node, model) as third:
        await third.run(burst=True) if False else None


@asynccontextmanager
async def worker(node: Node, model: EchoModel, **config: Any) -> AsyncGenerator[Worker]:
    made = Worker(store_of(node, WORKER), echo_tasks(model), WorkerConfig(**(QUICK | config)))
    async with made.running():
        yield made
