"""100,000 malformed entries: each is answered or buried, and nobody else notices."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import gc
import random
import sys
from collections import Counter
from typing import Any, cast, get_args

import redis.asyncio

from askonce_queue import Client, Job, names, queue_scripts
from askonce_queue.ledger import CLIENT_NAME
from askonce_queue.queue_scripts import Lane
from askonce_queue.reply import ErrorCode, ErrorInfo, WireReply, decode_replies, encode_replies
from askonce_queue.scripts import run, send
from askonce_queue.store import Store
from askonce_worker.dead_letters import DeadLetters, Wanted
from askonce_worker.pool.decode import MOST_MESSAGE_CHARS, Bad, Decoder, Entry
from askonce_worker.pool.delivery import Delivery
from tests.support.malformed import Malformed
from tests.support.queue_worker import (
    BULK,
    INTERACTIVE,
    EchoModel,
    backlog,
    echo_tasks,
    echo_worker,
    pending,
)
from tests.support.waiting import eventually

SEED = 20_261_121
COUNT = 100_000
BATCH = 250
NEIGHBOURS = 5
"""Plain jobs in each batch."""
WRITTEN = 3_000
"""Entries that go through a real store and a running worker."""
MAX_DEAD = 500
NEW_BLOCKS = 20_000
"""Blocks of memory that may be new after another half of the entries: tables and free lists that
have grown. One block kept for each entry would be more than twice as many."""


class NoOutlet:
    """Where deliveries of a decoder go that nobody settles."""

    def crowded(self, stream: Lane, *, beyond: bool) -> bool:
        raise AssertionError(f"decoding asks for no room: {stream} {beyond}")

    def too_late(self, delivery: Delivery) -> None:
        raise AssertionError(f"no deadline has passed: {delivery}")

    def put(self, delivery: Delivery, reply: WireReply) -> None:
        raise AssertionError(f"decoding settles nothing: {delivery}, {reply}")

    def defer(self, delivery: Delivery) -> None:
        raise AssertionError(f"decoding defers nothing: {delivery}")


def decoder() -> Decoder:
    plain = echo_tasks(EchoModel(), max_input_bytes=1000)
    trimmed = echo_tasks(EchoModel(), normalize=str.strip)["echo"]
    trimmed.name = "trim"
    return Decoder(plain | {"trim": trimmed}, NoOutlet(), moment=in_time)


def in_time(_store_ms: float) -> float:
    """When a deadline passes: never while a test runs."""
    return float("inf")


def plain_job(number: int) -> list[bytes]:
    payload = b'{"task":"echo","text":"neighbour %d"}' % number
    return [b"v", b"1", b"c", b"client", b"i", b"n%d" % number, b"p", payload]


def test_every_entry_is_either_good_or_bad_and_harms_no_neighbour() -> None:
    malformed, places = Malformed(SEED), random.Random(SEED)
    read = decoder()
    codes: Counter[str] = Counter()
    blocks = 0
    for batch in range(COUNT // BATCH):
        if batch == COUNT // BATCH // 2:
            gc.collect()
            blocks = sys.getallocatedblocks()
        neighbours = [batch * NEIGHBOURS + n for n in range(NEIGHBOURS)]
        entries: list[Entry] = [(b"%d-0" % n, malformed.fields(f"job {n}")) for n in range(BATCH)]
        for number in neighbours:
            entries.insert(places.randrange(BATCH), (b"%d-1" % number, plain_job(number)))
        good, bad = read.read(INTERACTIVE, entries)
        found = [one.entry_id for one in good] + [one.envelope.entry_id for one in bad]
        assert sorted(found) == sorted(entry_id for entry_id, _ in entries)
        for delivery in good:
            check_good(delivery)
        for one in bad:
            check_bad(one)
        codes.update(one.code for one in bad)
        codes["good"] += len(good)
        texts = {one.entry_id: one.text for one in good if one.entry_id.endswith(b"-1")}
        assert texts == {b"%d-1" % number: f"neighbour {number}" for number in neighbours}
    gc.collect()
    assert sys.getallocatedblocks() - blocks < NEW_BLOCKS
    assert codes.total() == COUNT + COUNT // BATCH * NEIGHBOURS
    # What is drawn is as it is meant: mostly bad, and of every kind.
    assert COUNT / 20 < codes["good"] < COUNT / 3
    for code in ("undecodable", "unknown_task", "invalid_input", "too_large"):
        assert codes[code] > COUNT / 2000


def check_good(delivery: Delivery) -> None:
    """It can be asked, settled and replied to."""
    question = delivery.question()
    assert (question.text is None) != (question.messages is None)
    assert question.text or question.messages
    assert len(delivery.key) == 32
    assert delivery.job_id
    assert delivery.address
    if delivery.address.startswith("@"):
        assert CLIENT_NAME.fullmatch(delivery.address[1:])
    assert delivery.record.encode()


def check_bad(bad: Bad) -> None:
    """It can be buried: the reply can be written and read, and is no larger than it must be."""
    assert bad.code in get_args(ErrorCode)
    assert 0 < len(bad.message) <= MOST_MESSAGE_CHARS
    reply = WireReply(id=bad.envelope.job_id, error=ErrorInfo(bad.code, bad.message))
    (read_back,), unreadable = decode_replies(encode_replies([reply]))
    assert (read_back.id, read_back.error, unreadable) == (reply.id, reply.error, 0)
    assert bad.envelope.record.encode()
    assert all(type(field) is bytes for field in bad.fields)


async def test_a_worker_among_malformed_entries(
    store: redis.asyncio.Redis, askonce_store: Store, store_url: str
) -> None:
    malformed = Malformed(SEED)
    # Somebody who can be told; `nobody` is an address as well, and nobody's.
    await run(store, queue_scripts.claim_name("0", "client", "token", 600_000))
    rows = [malformed.written(f"job {n}") for n in range(WRITTEN)]
    told, count_bad = expected(rows)
    model = EchoModel()
    worker = echo_worker(store_url, model, max_dead=MAX_DEAD)
    async with worker.running(), Client(store_url) as client:
        jobs = [Job(task="echo", text=f"neighbour {n % 200}") for n in range(WRITTEN // 4)]
        for part in range(4):
            await write(store, rows[part::4])
            replies = [reply async for reply in client.ask_many(jobs[part::4], ordered=True)]
            labels = [reply.answer.label for reply in replies if reply.answer is not None]
            assert labels == [str(job.text).upper() for job in jobs[part::4]]

        async def settled() -> bool:
            return await backlog(store) + await backlog(store, BULK) == 0

        await eventually(settled)
        await eventually(lambda: len(worker._held) == 0)
        assert await pending(store) == await pending(store, BULK) == {}
    asked = Counter(text for text in model.asked if text.startswith("neighbour"))
    assert asked == Counter({str(job.text): 1 for job in jobs})
    assert worker.counters.total("jobs_buried") == count_bad
    assert worker.counters.total("dead_letters_dropped") == count_bad - MAX_DEAD
    assert await store.xlen(names.dead("0", "default")) == MAX_DEAD
    assert await replied(store) == told
    letters = [letter async for letter in DeadLetters(askonce_store, "default").search(Wanted())]
    assert len(letters) == MAX_DEAD


def expected(rows: list[list[bytes]]) -> tuple[Counter[tuple[str, str, str]], int]:
    """Address, id and error code of each reply that somebody gets, and how many entries are bad."""
    good, bad = Decoder(echo_tasks(EchoModel()), NoOutlet()).read(
        INTERACTIVE, [(b"1-1", fields) for fields in rows]
    )
    told = Counter((one.address, one.job_id, "") for one in good)
    told.update((one.envelope.address, one.envelope.job_id, one.code) for one in bad)
    for address, job_id, code in list(told):
        if not job_id or not (address.startswith("@") or address == "client"):
            del told[address, job_id, code]
    return told, len(bad)


async def write(store: redis.asyncio.Redis, rows: list[list[bytes]]) -> None:
    async with store.pipeline(transaction=False) as pipe:
        for number, fields in enumerate(rows):
            lane = BULK if number % 5 == 0 else INTERACTIVE
            pipe.execute_command("XADD", lane.stream, "*", *fields)
        await pipe.execute()


async def replied(store: redis.asyncio.Redis) -> Counter[tuple[str, str, str]]:
    """Address, id and error code of every reply in the store."""
    found: Counter[tuple[str, str, str]] = Counter()
    prefix = names.replies("0", "")
    for key in [key async for key in cast("Any", store.scan_iter(prefix + b"*"))]:
        address = key.removeprefix(prefix).decode()
        # No other stream would be read and cleared by anybody.
        assert address == "client" or CLIENT_NAME.fullmatch(address.removeprefix("@"))
        for _, fields in await send(store, "XRANGE", key, "-", "+"):
            replies, unreadable = decode_replies(
                dict(zip(fields[::2], fields[1::2], strict=True))[b"r"]
            )
            assert unreadable == 0
            found.update(
                (address, reply.id, reply.error.code if reply.error else "") for reply in replies
            )
    return found
