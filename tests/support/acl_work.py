"""What each role does with the store, all of it: with the product where that gets there, else by
the script that it would call.

`prepare_…` is done by the administrator, and sets the scene.
"""

from __future__ import annotations

import functools
import json
import struct
from pathlib import Path
from typing import Any

import anyio
import redis.asyncio

from askonce_loadtest.servers.node import Node
from askonce_loadtest.servers.ports import HOST
from askonce_queue import Client, Job, answer_scripts, names, queue_scripts, quota_scripts, sync
from askonce_queue.answer_scripts import Fill, Release
from askonce_queue.queue_scripts import Lane, LoggedHit
from askonce_queue.quota_scripts import Rates, Request
from askonce_queue.scripts import Call
from askonce_queue.store import Store
from askonce_worker.cache.policy import Policy
from askonce_worker.config import WorkerConfig
from askonce_worker.dead_letters import DeadLetters, Wanted
from askonce_worker.hits.rulebook import RuleBook
from askonce_worker.hits.rules import Rule
from askonce_worker.library import AnswerCache
from askonce_worker.observe.backlog import read_shard
from askonce_worker.pool.worker import Worker
from tests.support.acl import AUTOSCALER, GATEWAY, OPERATOR, PASSWORD, PRODUCER, WORKER, store_of
from tests.support.askonce_command import CONFIG, Askonce
from tests.support.queue_worker import QUICK, EchoModel, echo_tasks
from tests.support.waiting import eventually

TAG, POOL = "0", "default"
LANE = Lane(TAG, POOL, "interactive")
TAGS = ("red", "green")
TEXTS = ("one", "two", "three")
X, Y = b"x" * 32, b"y" * 32
TOKEN, OTHER = b"0123456789abcdef", b"fedcba9876543210"
GHOST = "ghost"
"""The name of what nobody needs any more."""


def job(text: str, job_id: str = "") -> Job:
    """A job that has its text as its id, and a deadline that it keeps."""
    return Job(task="echo", text=text, id=job_id or text, tags=TAGS, deadline_s=3600)


# The producer


async def produce(node: Node) -> None:
    """Enqueue jobs, one of them twice, and leave before they are answered."""
    async with Client(store_of(node, PRODUCER, wait_replicas=1), name="shop") as client:
        await client.enqueue_many([job("one"), job("two")])
        await client.enqueue(job("one"))
        await client.enqueue(job("named"), reply_to="sink")
    await produce_synchronously(node, "three")


async def produce_synchronously(node: Node, job_id: str) -> None:
    """Enqueue a job with the synchronous client."""
    store = store_of(node, PRODUCER, wait_fsync=True)

    def enqueue() -> None:
        with sync.Client(store, name="desk") as client:
            client.enqueue(job("three", job_id))

    await anyio.to_thread.run_sync(enqueue)


async def collect(node: Node) -> None:
    """Take the replies, and leave: once with one not handed over, once with nothing owed."""
    store = store_of(node, PRODUCER)
    async with Client(store, name="shop") as client:
        replies = client.replies()
        assert {(await anext(replies)).id for _ in range(2)} == {"one", "two"}

    def take() -> list[str]:
        with sync.Client(store, name="desk") as client:
            return [reply.id for reply in client.replies(timeout_s=0.2)]

    assert await anyio.to_thread.run_sync(take) == ["three", "four"]


# The worker


async def prepare_work(node: Node) -> None:
    """A job that has killed workers, one that is none, and something for every sweep."""
    stream = LANE.stream
    await node.command("XGROUP", "CREATE", stream, names.GROUP, "0")
    await node.command(
        *("XREADGROUP", "GROUP", names.GROUP, GHOST, "COUNT", 1, "STREAMS", stream, ">")
    )
    ((entry, *_),) = await node.command("XPENDING", stream, names.GROUP, "-", "+", 1)
    await node.command("XCLAIM", stream, names.GROUP, GHOST, 0, entry, "RETRYCOUNT", 9, "JUSTID")
    await node.command("XADD", stream, "*", "not", "a job")
    await node.command("XGROUP", "CREATECONSUMER", stream, names.GROUP, f"{GHOST} 2")
    past = struct.pack("<d", 1.0)
    for key, field, value in (
        (names.ids(TAG, POOL), GHOST, "interactive/1-1"),
        (names.solo(TAG, POOL), "interactive/1-1", "1/t"),
        (names.owed(TAG), GHOST, "1"),
        (names.clients(TAG), f"{GHOST} 2", "t/1"),
        (names.leases(TAG), GHOST, bytes(16) + past + past + b"\1"),
        (names.tries(TAG), GHOST, b"A\1" + past),
        (names.beats(TAG, POOL), f"{GHOST} 2", "1"),
        (names.budgets(TAG), f"1|{GHOST}", "1"),
    ):
        await node.command("HSET", key, field, value)
    await node.command("ZADD", names.last(TAG), 1, GHOST)
    await node.command("ZADD", names.windows(TAG), 1, "10:1")
    await node.command("ZADD", names.quotas(TAG), 1, GHOST)
    await node.command("HSET", names.stamps(TAG), b"\1" + GHOST.encode(), 1)
    await keep_answers(node, 500)


async def keep_answers(node: Node, count: int) -> None:
    """So many that a random key is one."""
    prefix = names.answer_prefix(TAG)
    pairs = [part for i in range(count) for part in (prefix + b"%032d" % i, "no answer")]
    await node.command("MSET", *pairs)


async def serve(node: Node, replica: Node) -> None:
    """Defer jobs, and hand one back in a drain; then take all, the suspect and the bad one; sweep.

    The replica is asked how far it is: nobody watches what is done there.
    """
    model = EchoModel()
    model.open.clear()
    saturated = _worker(node, model, slots=1, max_waiting=1, drain_s=0.05)
    async with saturated.running():
        await eventually(lambda: saturated.counters.total("flights_deferred"))
    model.open.set()
    worker = _worker(node, model, sweep_every_s=0.02)
    async with worker.running():

        async def swept() -> bool:
            return not any([await _ghosts(replica), await replica.command("XLEN", LANE.stream)])

        await eventually(swept)
    await _worker(node, model).run(burst=True)
    await run_all(node, WORKER, [*_lease_calls("1"), *_quota_calls(), *_rare_calls()])
    store = Store(store_of(node, WORKER))
    try:
        await read_shard(store, TAG, POOL)  # for its metrics
    finally:
        await store.aclose()


async def _ghosts(replica: Node) -> bool:
    """Whether something is left that nobody needs."""
    keys = [key(TAG, POOL) for key in (names.ids, names.solo, names.beats)]
    keys += [key(TAG) for key in (names.owed, names.clients, names.leases, names.tries)]
    for key in keys:
        fields: list[bytes] = await replica.command("HKEYS", key, decode=False)
        if any(field.startswith(GHOST.encode()) for field in fields):
            return True
    return bool(await replica.command("ZCARD", names.last(TAG)))


async def prepare_again(node: Node) -> None:
    """Damage what is kept, and forget some other tag: all is looked at closely."""
    for key in await node.command("KEYS", names.answer_prefix(TAG) + b"*", decode=False):
        await node.command("APPEND", key, "rest")
    call = answer_scripts.invalidate(TAG, everything=False, tags=["blue"])
    await node.command(*call.command("EVAL"))
    # Too many globs have made all of it invalid.
    await node.command("HSET", names.stamps(TAG), "base", 0)


async def serve_again(node: Node) -> None:
    """Look up what was answered before, without a memory of it."""
    await _worker(node, EchoModel()).run(burst=True)


def _worker(node: Node, model: EchoModel, *, slots: int = 100, **config: Any) -> Worker:
    # A guard reads verdicts, of which there are none.
    guarded = Policy(verify_share=1e-9, max_disagreement=0.5)
    tasks = echo_tasks(model, slots=slots, policy=guarded)
    return Worker(store_of(node, WORKER), tasks, WorkerConfig(**(QUICK | config)))


def _lease_calls(new_tag: str) -> list[Call]:
    """A flight from its lease to its end, by ways that flights seldom take; and a new shard."""
    fill = Fill(Y, TOKEN, 1000, 1000, "\n".join(TAGS), b"body")
    look_up = answer_scripts.look_up(
        TAG, token=TOKEN, lease_ms=60_000, max_new_leases=2, digests=[X, Y], asker_tags=["", ""]
    )
    return [
        look_up,
        answer_scripts.fill(TAG, [fill]),
        answer_scripts.take_over(TAG, token=OTHER, lease_ms=60_000, seen=[(X, TOKEN)]),
        answer_scripts.renew(TAG, lease_ms=60_000, held=[(X, OTHER)]),
        answer_scripts.note_attempt(TAG, digest=X, token=OTHER, attempt=2, remember_ms=1000),
        answer_scripts.release(TAG, [Release(X, OTHER, "R", 1000, b"{}")]),
        answer_scripts.mark_read(TAG, [(Y, 1.0)]),
        queue_scripts.count(TAG, {"echo|a counter too many": 1}, most_fields=0),
        answer_scripts.read_stamps(TAG, seen_inv=0, most_tags=9),
        answer_scripts.read_stamps(new_tag, seen_inv=0, most_tags=9),
    ]


def _quota_calls() -> list[Call]:
    """A share of a model's limits, taken and given back."""
    wanted = Request(1, slots_wanted=1, calls_wanted=1)
    return [
        quota_scripts.take_quota(
            TAG, "gpt", "me", request, Rates(slots=1), ttl_ms=60_000, valid_us=1
        )
        for request in (wanted, Request(2))
    ]


def _rare_calls() -> list[Call]:
    """What a sweep does when there is too much, and a task with a budget."""
    return [
        queue_scripts.spend(TAG, ["echo"], [(0, "echo", 1)]),
        queue_scripts.sweep_stats(TAG, cursor=0, count=9, most=0, others="others"),
        queue_scripts.log_hits(TAG, 9, [LoggedHit("0" * 64, "echo", "store", 1, b"{}", "one", "")]),
    ]


# The gateway


async def share(node: Node) -> None:
    """Ask through the cache, with what is there and without."""
    async with AnswerCache(store_of(node, GATEWAY)) as cache:
        for text in TEXTS:
            await cache.get_or_call("shout", text, functools.partial(_shout, text), tags=TAGS)
        done = await cache.invalidate(
            tags=["blue"], patterns=[f"{number}*" for number in range(101)]
        )
        assert done.complete
    await run_all(node, GATEWAY, [*_lease_calls("2"), *_quota_calls()])


async def _shout(text: str) -> str:
    return text.upper()


# The autoscaler


async def scale(node: Node) -> None:
    """Everything that KEDA's redis-streams scaler asks for, as its client does (RESP3)."""
    url, stream = node.url_of(AUTOSCALER, PASSWORD), LANE.stream.decode()
    async with redis.asyncio.Redis.from_url(url, protocol=3) as client:
        for words in (
            ("INFO",),
            ("COMMAND",),
            ("XLEN", stream),
            ("XPENDING", stream, names.GROUP),
            ("XINFO", "GROUPS", stream),
        ):
            await client.execute_command(*words)


# The operator


async def prepare_letters(node: Node) -> None:
    """Two dead letters that can be retried, an answer of another prompt, and a hit to judge."""
    tags = b"task:size\nv:00000000"
    entry = struct.pack("<BBddddH", 1, 0, 1.0, 2.0**52, 1e15, 1e15, len(tags)) + tags
    await node.command("SET", names.answer_prefix(TAG) + b"o" * 32, entry, "PX", 60_000)
    hit = LoggedHit("0" * 64, "size", "store", 1, b"{}", "one", "")
    await node.command(*queue_scripts.log_hits(TAG, 9, [hit]).command("EVAL"))
    payload = '{"task":"echo","text":"letter"}'
    for number in (1, 2):
        fields = ("v", "1", "c", "shop", "i", f"letter {number}", "p", payload)
        head = ("code", "poison", "message", "", "stream", LANE.stream, "entry", "1-1")
        await node.command("XADD", names.dead(TAG, POOL), "*", *head, *fields)


async def operate(node: Node, folder: Path) -> None:
    """Look at everything, invalidate, and deal with dead letters."""
    store = Store(store_of(node, OPERATOR))
    try:
        letters = DeadLetters(store, POOL)
        assert await letters.total() >= 2
        found = [one async for one in letters.search(Wanted(code="poison"))]
        (again, _) = await letters.get([found[0].id, found[1].id])
        assert again is not None
        (retried,) = await letters.retry([again], max_backlog=9, max_unread=9)
        assert not retried.refusal
        assert await letters.drop([found[1].id]) == 1
        assert await RuleBook(store).read() == []
    finally:
        await store.aclose()
    login = f'url = "redis://{OPERATOR}@{HOST}:{node.port}/0"\npassword_file = "password"'
    (folder / "password").write_text(f"{PASSWORD}\n")
    with Askonce(folder) as askonce:
        askonce.configure(f"[redis]\n{login}\n{CONFIG}")

        async def command(name: str, *rest: str) -> str:
            done = await anyio.to_thread.run_sync(askonce, name, "askonce.toml", *rest)
            return done.stdout

        await command("stats")
        await command("doctor")
        told = json.loads(await command("invalidate", *("--tag=blue", "--pattern=g*n", "--json")))
        assert (told["complete"], told["unknown_because"]) == (True, "")
        assert json.loads(await command("invalidate", "--old-versions", "--json"))["count"] == 1
        # More than are kept.
        globs = [part for number in range(101) for part in ("--pattern", f"{number}*")]
        await command("invalidate", *globs)
        judge = functools.partial(askonce, stdin="w t\n")
        await anyio.to_thread.run_sync(judge, "hits", "review", "askonce.toml")
        rule = Rule("size", "*")
        await anyio.to_thread.run_sync(askonce, "hits", "rules", "remove", "askonce.toml", rule.id)


async def run_all(node: Node, user: str, calls: list[Call]) -> None:
    """Run scripts as a user; each must succeed."""
    store = Store(store_of(node, user))
    try:
        for call in calls:
            await store.run(call)
    finally:
        await store.aclose()
