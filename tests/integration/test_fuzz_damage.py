"""Damaged values in the store, beside the job streams: only what they stand for suffers."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import struct
import time
from contextlib import suppress

import msgspec
import pytest
import redis.asyncio

from askonce_queue import Client, Job, answer_scripts, names, queue_scripts
from askonce_queue.reply import decode_replies
from askonce_queue.scripts import run, send
from askonce_queue.store import Store
from askonce_worker.cache.entry import decode_entry
from askonce_worker.dead_letters import DeadLetters, Wanted
from tests.support.malformed import Malformed
from tests.support.queue_worker import INTERACTIVE, EchoModel, backlog, echo_worker
from tests.support.resolving import (
    StepModel,
    Waiter,
    all_keys,
    assert_at_rest,
    make_task,
    resolver_on,
)
from tests.support.waiting import eventually

SEED = 20_261_121
ANSWERS = 400
GARBAGE = (
    b"",
    b"garbage",
    b"nan",
    b"-nan",
    b"inf",
    b"-inf",
    b"1e300",
    b"-1e300",
    b"\xff\x00",
    b"0x",
)
ENDLESS = (b"inf", b"1e300")
"""Deadlines that never come."""
CLOCK_STEP_US = 1_000_000
FAR_MS = 4e12
"""A server time that does not come."""


def jobs(amount: int) -> list[Job]:
    return [Job(task="echo", text=f"text {n}", id=f"j{n}") for n in range(amount)]


# --- answers ---------------------------------------------------------------------------------


def nasty_entries(good: bytes) -> list[bytes]:
    """Entries of which each was once too much for a worker or for the client of its reply."""
    header = struct.Struct("<BBddddH")
    version, flags, created, built, fresh, over, tag_bytes = header.unpack_from(good)
    rest = good[header.size :]
    tags, body = rest[:tag_bytes], rest[tag_bytes:]

    def with_body(value: bytes) -> bytes:
        fields = b"\x96\xa1a\xc0\xc0\xc0\xc0" + value
        return good[: header.size] + tags + fields

    def with_times(*times: float) -> bytes:
        return header.pack(version, flags, *times, tag_bytes) + rest

    nan, inf = float("nan"), float("inf")
    return [
        with_body(b"\xd4\x05\x01"),  # a type that JSON has not
        with_body(b"\x81\xc0\x01"),  # a key that JSON has not
        with_body(b"\x91" * 5000 + b"\x01"),
        with_body(b"\xdd\xff\xff\xff\xff"),  # 4,294,967,295 items, none of them there
        with_body(b"\xc7\x0c\xff" + b"\xff" * 12),  # a time that does not exist
        good[: header.size]
        + tags
        + b"\x96\xa1a\xc0\xc0\xc0\x81\xa1a\xcb\x7f\xf8"
        + bytes(6)
        + b"\xc0",
        *(with_times(time, built, fresh, over) for time in (nan, inf, -inf)),
        *(with_times(created, time, fresh, over) for time in (nan, inf, -inf)),
        *(with_times(created, built, time, over) for time in (nan, inf)),
        *(with_times(created, built, fresh, time) for time in (nan, inf)),
        b"\x02" + good[1:],
        good[: header.size - 2] + b"\xff\xff" + tags + body,
        b"",
        b"\x01",
    ]


async def test_answers(store: redis.asyncio.Redis, store_url: str) -> None:
    """Each is served as it can be read, or asked for again; no worker and no reply fails."""
    malformed = Malformed(SEED)
    some = jobs(ANSWERS)
    async with Client(store_url) as client:
        async with echo_worker(store_url).running():
            first = [reply async for reply in client.ask_many(some, ordered=True)]
        readable: set[str | None] = set()
        keys = sorted(await all_keys(store, "a:*"))
        nasty = nasty_entries(await send(store, "GET", keys[0]))
        for number, key in enumerate(keys):
            entry = await send(store, "GET", key)
            entry = nasty[number] if number < len(nasty) else malformed.damaged(entry)
            await send(store, "SET", key, entry, "EX", 3600)
            with suppress(struct.error, msgspec.MsgspecError):
                readable.add(label_in(entry))
        model = EchoModel()
        worker = echo_worker(store_url, model)
        async with worker.running():
            async with asyncio.timeout(20):
                second = [reply async for reply in client.ask_many(some, ordered=True)]
            assert worker.counters.total("errors") == 0
        assert client._ledger.unreadable == 0
    assert [reply.id for reply in second] == [job.id for job in some]
    for before, after in zip(first, second, strict=True):
        # A bit that is flipped inside a label cannot be told from another label.
        assert after.answer is not None
        assert after.answer == before.answer or after.answer.label in readable
    assert len(nasty) <= len(model.asked) <= ANSWERS


def label_in(entry: bytes) -> str | None:
    """The label of an entry. Raises as `decode_entry`."""
    read = decode_entry(entry, now_ms=0, monotonic=0, memory_ttl_s=1, shard=0)
    return read.answer.label


# --- leases, tries, stamps -------------------------------------------------------------------


def damaged_leases(malformed: Malformed) -> list[bytes]:
    """Leases of a wrong layout; those that pass for one are over, or soon taken over."""
    sound = struct.pack("<16sddB", b"somebody else's!", 1.0, 1.0, 1)
    live = struct.pack("<16sddB", b"somebody else's!", FAR_MS, 9e15, 255)
    cuts = [sound[:size] for size in range(len(sound))]
    return [live, *cuts, *(malformed.damaged(sound) for _ in range(100))]


def damaged_tries(malformed: Malformed, until_ms: float) -> list[bytes]:
    """Records of every kind, known or not, that are soon over; and cut ones."""
    cut = struct.pack("<cBd", b"R", 3, FAR_MS)
    kinds = [struct.pack("<cBd", bytes([kind]), 255, until_ms) for kind in range(256)]
    return [*(kind + malformed.blob() for kind in kinds), *(cut[:size] for size in range(len(cut)))]


@pytest.mark.parametrize("damaged", ["leases", "tries"])
async def test_leases_and_tries(store: redis.asyncio.Redis, store_url: str, damaged: str) -> None:
    malformed, model = Malformed(SEED), StepModel()
    now_s, _ = await store.time()
    key, values = (
        (names.leases("0"), damaged_leases(malformed))
        if damaged == "leases"
        else (names.tries("0"), damaged_tries(malformed, 1000.0 * now_s + 2500))
    )
    task = make_task(model, slots=1000, patience_s=0.2)
    harmed = [Waiter(task, f"harmed {n}") for n in range(len(values))]
    sound = [Waiter(task, f"sound {n}") for n in range(len(values))]
    for waiter, value in zip(harmed, values, strict=True):
        await send(store, "HSET", key, waiter.key, value)
    async with resolver_on(store_url) as resolver:
        resolver.resolve([one for pair in zip(harmed, sound, strict=True) for one in pair])
        async with asyncio.timeout(2):
            assert {(await one.outcome()).label for one in sound} == {"a"}
        assert {(await one.outcome()).label for one in harmed} == {"a"}
        await assert_at_rest(store, resolver, task)
    assert set(model.calls.values()) == {1}


@pytest.mark.parametrize("field", ["inv", "base"])
async def test_stamps(store: redis.asyncio.Redis, field: str) -> None:
    """A look-up makes them anew, and nothing that was built before is served any more."""
    digest, token = b"d" * 32, b"t" * 16
    look_up = answer_scripts.look_up(
        "0", token=token, lease_ms=1000, max_new_leases=1, digests=[digest], asker_tags=[""]
    )
    for garbage in GARBAGE:
        await store.flushall()
        await run(store, look_up)
        fill = answer_scripts.Fill(digest, token, 10_000, 10_000, "", b"body")
        assert (await run(store, answer_scripts.fill("0", [fill])))[1] == b"f"
        assert (await run(store, look_up))[2][:1] == b"\x01"
        await send(store, "HSET", names.stamps("0"), field, garbage)
        before_us = time.time_ns() // 1000
        assert (await run(store, look_up))[2][:1] == b"L"
        stamps = await store.hgetall(names.stamps("0").decode())
        assert int(stamps[b"inv"]) >= int(stamps[b"base"]) >= before_us - CLOCK_STEP_US


# --- what settling and reclaiming read -------------------------------------------------------


@pytest.mark.parametrize("damage", ["reply stream", "reply stream at its end", "clients", "ids"])
async def test_settling(store: redis.asyncio.Redis, store_url: str, damage: str) -> None:
    """What was acknowledged is replied, whatever stands where the script writes next."""
    async with Client(store_url, name="c") as client:
        await client.enqueue(Job(task="echo", text="own"))
        await client.enqueue_many(jobs(20), reply_to="bad")
        await client.enqueue_many(
            [Job(task="echo", text=f"t{n}") for n in range(20)], reply_to="ok"
        )
        stream = names.replies("0", "@bad")
        if damage == "reply stream":
            await send(store, "SET", stream, "no stream")
        elif damage == "reply stream at its end":
            await send(store, "XADD", stream, f"{(1 << 64) - 1}-{(1 << 64) - 1}", "n", 0, "r", "")
        else:
            key = names.clients("0") if damage == "clients" else INTERACTIVE.ids
            await send(store, "DEL", key)
            await send(store, "SET", key, "no hash")
        worker = echo_worker(store_url)
        async with worker.running():
            await eventually(lambda: worker.counters.total("jobs_settled") >= 20)
            await eventually(lambda: len(worker._held) == 0)
            assert await backlog(store) == 0
            own = await anext(client.replies())
            assert own.answer is not None
            for address in ("@bad", "@ok"):
                entries = await send(store, "XRANGE", names.replies("0", address), "-", "+")
                ids = [one.id for _, fields in entries for one in decode_replies(fields[3])[0]]
                assert len(set(ids)) == len(ids) == 20
        await send(store, "DEL", names.clients("0"), INTERACTIVE.ids)


async def test_heartbeats(store: redis.asyncio.Redis, store_url: str) -> None:
    """Who has a heartbeat that cannot be read is dead; the others' jobs are taken all the same."""
    async with Client(store_url) as client:
        await client.enqueue_many(jobs(len(GARBAGE) + 1), reply_to="sink")
        await run(store, queue_scripts.ensure_group(INTERACTIVE))
        for number in range(len(GARBAGE) + 1):
            await send(
                store,
                *("XREADGROUP", "GROUP", names.GROUP, f"dead {number}"),
                *("COUNT", 1, "STREAMS", INTERACTIVE.stream, ">"),
            )
        heartbeats = {f"dead {n}": g for n, g in enumerate(GARBAGE) if g not in ENDLESS}
        for consumer, heartbeat in heartbeats.items():
            await send(store, "HSET", names.beats("0", "default"), consumer, heartbeat)
        worker = echo_worker(store_url)
        async with worker.running():
            await eventually(lambda: worker.counters.total("jobs_settled") == len(GARBAGE) + 1)


# --- what a client reads ---------------------------------------------------------------------


async def test_replies(store: redis.asyncio.Redis, store_url: str) -> None:
    """A client drops what are no replies, and gets those that are."""
    malformed = Malformed(SEED)
    stream = names.replies("0", "c")
    deep = b'{"id":"deep","answer":{"value":%b%b}}' % (b"[" * 5000, b"]" * 5000)
    reply = b'{"id":"x","answer":{"label":"a","scores":{"a":1}},"source":"model","age_s":1}'
    async with Client(store_url, name="c") as client:
        count = 0

        async def add(*fields: bytes) -> None:
            nonlocal count
            count += 1
            await send(store, "XADD", stream, "*", *fields)

        await add(b"n", b"1", b"r", deep)
        await add(b"n", b"many", b"r", deep + b"\n" + reply + b"\n" + deep)
        async with echo_worker(store_url).running():
            for part in range(4):
                for _ in range(150):
                    await add(b"n", malformed.blob(), b"r", malformed.damaged(reply))
                    await add(*malformed.written(f"foreign {count}"))
                async with asyncio.timeout(20):
                    some = [Job(task="echo", text=f"{part}, {n}") for n in range(50)]
                    replies = [one async for one in client.ask_many(some, ordered=True)]
                labels = [one.answer.label for one in replies if one.answer is not None]
                assert labels == [f"{part}, {n}" for n in range(50)]
        assert client._ledger.unreadable > count // 4
        client._ledger.take_early()  # replies that were readable, to jobs of nobody
        left = await store.xlen(stream)
        assert left <= count // 4


# --- dead letters ----------------------------------------------------------------------------


async def test_dead_letters(
    store: redis.asyncio.Redis, askonce_store: Store, store_url: str
) -> None:
    """Letters that no worker has written are shown, and retried or dropped like others."""
    malformed = Malformed(SEED)
    stream = names.dead("0", "default")
    letter = [b"code", b"poison", b"message", b"m", b"stream", INTERACTIVE.stream, b"entry", b"1-1"]
    for number in range(300):
        fields = malformed.written(f"job {number}")
        if number % 3:
            fields = [*letter, *fields]
        if number % 3 == 2:
            fields = [malformed.flipped(word) for word in fields]
        await send(store, "XADD", stream, "*", *fields)
    letters = DeadLetters(askonce_store, "default")
    found = [one async for one in letters.search(Wanted())]
    assert len(found) == 300
    assert [one async for one in letters.search(Wanted(task="echo", code="poison"))]
    retried = await letters.retry(found, max_backlog=1000, max_unread=1000)
    assert 0 < sum(not one.refusal for one in retried) < 300
    async with echo_worker(store_url).running():

        async def settled() -> bool:
            return await backlog(store) == 0

        await eventually(settled)
    left = [one.id async for one in letters.search(Wanted())]
    assert await letters.drop(left) == len(left)
    assert await letters.total() == 0
