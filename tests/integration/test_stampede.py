"""Many processes, many callers, the same cold questions: each is asked once, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager
from typing import cast

import redis.asyncio

from askonce_loadtest.model_behaviour import Behaviour
from askonce_loadtest.model_server import ModelServer
from askonce_queue import names
from tests.support.lines import LineProcess
from tests.support.resolving import (
    StepModel,
    Waiter,
    ask,
    lease_count,
    make_task,
    resolver_on,
)
from tests.support.virtual_scripts import LEASE
from tests.support.waiting import eventually

PROCESSES, CALLERS, KEYS = 4, 32, 20
TEXTS = [f"question {number}" for number in range(KEYS)]


@asynccontextmanager
async def processes(
    store_url: str, server: ModelServer, *, ttl_s: float = 10.0, renew_s: float = 3.0
) -> AsyncGenerator[list[LineProcess]]:
    """All of them, ready to ask; their seeds are 0, 1, 2 …"""
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                LineProcess(
                    "stampede_process.py",
                    store_url,
                    server.base_url,
                    *(str(part) for part in (seed, ttl_s, renew_s)),
                )
            )
            for seed in range(PROCESSES)
        ]
        for process in started:
            await asyncio.to_thread(process.expect, "ready")
        yield started


def go(process: LineProcess, texts: list[str] = TEXTS) -> None:
    process.write(json.dumps({"texts": texts, "callers": CALLERS}))


async def report(process: LineProcess) -> Counter[str]:
    return Counter(json.loads(await asyncio.to_thread(process.read)))


async def holders(store: redis.asyncio.Redis) -> Counter[int]:
    """Seed of a process → how many leases it holds."""
    prefixes = {random.Random(seed).randbytes(8): seed for seed in range(PROCESSES)}
    leases = await cast("asyncio.Future[list[bytes]]", store.hvals(names.leases("0").decode()))
    return Counter(prefixes[LEASE.unpack(lease)[0][:8]] for lease in leases)


async def test_every_question_is_asked_once(store: redis.asyncio.Redis, store_url: str) -> None:
    async with (
        ModelServer(Behaviour(latency_ms=50, latency_sigma=0.5)) as server,
        processes(store_url, server) as started,
    ):
        for process in started:
            go(process)
        told = sum([await report(process) for process in started], Counter[str]())
        assert server.calls == dict.fromkeys(TEXTS, 1)
        assert server.total_calls == KEYS
    assert told.total() == PROCESSES * CALLERS * KEYS
    assert told["model"] == KEYS
    assert set(told) <= {"model", "coalesced", "store", "memory"}
    assert await lease_count(store) == 0


async def test_leaders_are_killed_midway(store: redis.asyncio.Redis, store_url: str) -> None:
    """Their questions, and only those, are asked once more; the survivors are all answered."""
    async with (
        ModelServer(Behaviour(latency_ms=400)) as server,
        processes(store_url, server, ttl_s=1.0, renew_s=0.2) as started,
    ):
        for process in started:
            go(process)
        await eventually(lambda: server.total_calls == KEYS)
        held = await holders(store)
        assert held.total() == KEYS
        # The two with the most to lose.
        victims = [seed for seed, _ in held.most_common(2)]
        for seed in victims:
            started[seed].kill()
        held = await holders(store)
        killed_leaders = sum(held[seed] for seed in victims)
        assert killed_leaders > 0
        survivors = [p for seed, p in enumerate(started) if seed not in victims]
        told = sum([await report(process) for process in survivors], Counter[str]())
        assert told.total() == len(survivors) * CALLERS * KEYS
        assert told["error"] == 0
        assert KEYS < server.total_calls <= KEYS + killed_leaders
        assert max(server.calls.values()) == 2
    assert await lease_count(store) == 0


async def test_a_stopped_leader_that_wakes_is_fenced(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    """It slept past its lease with the answer on its way; who took over has answered since."""
    async with (
        ModelServer(Behaviour(latency_ms=300)) as server,
        processes(store_url, server, ttl_s=0.5, renew_s=0.1) as (leader, *_),
    ):
        go(leader, ["question"])
        await eventually(lambda: server.total_calls == 1)
        leader.stop()
        try:
            key = Waiter(make_task(StepModel()), "question").key
            async with resolver_on(store_url) as resolver:
                outcome = await ask(resolver, make_task(StepModel("of the taker")), "question")
                assert outcome.label == "of the taker"
                assert resolver.counters.total("calls_takeover") == 1
            kept = await store.get(names.answer_prefix("0") + key)
            assert isinstance(kept, bytes)
            assert b"of the taker" in kept
        finally:
            leader.resume()
        told = await report(leader)
        # It answers its own callers, with what it has, but keeps nothing.
        assert told == {"model": 1, "coalesced": CALLERS - 1}
        assert await store.get(names.answer_prefix("0") + key) == kept
        assert server.total_calls == 1
        assert await lease_count(store) == 0
