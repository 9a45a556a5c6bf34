"""Eight workers share a model's limits: what all of them begin in any minute, minute by minute.

The loop, the quotas and the script on the real server are those of the product; time is virtual, so
that a minute is a minute, and a second of the test.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from askonce_queue import names
from askonce_queue.connections import connect_sync
from askonce_worker.config import LimitsConfig
from tests.support.quota_fleet import TTL_S, QuotaFleet
from tests.support.virtual_scripts import TAG

WORKERS = 8
PLENTY = 300
"""Flights that wait in a worker: more than it may begin."""


@pytest.fixture
def client(store_url: str) -> Iterator[redis.Redis]:
    with connect_sync(store_url, role="commands") as client:
        yield client
        client.flushall()


async def saturate(fleet: QuotaFleet, for_s: float, workers: int = WORKERS) -> None:
    for _ in range(workers):
        fleet.start().ask(PLENTY)
    await asyncio.sleep(for_s)


def per_minute(fleet: QuotaFleet, start: float, *, tokens: bool = False) -> float:
    """Calls, or their tokens, per minute from `start` on, to the last one."""
    begun = [call for call in fleet.begun if call.at >= start]
    total = sum(call.tokens if tokens else 1 for call in begun[:-1])
    return 60 * total / (begun[-1].at - begun[0].at)


@pytest.mark.parametrize("limit", [10, 100, 1200])
def test_requests_hold_within_two_percent_both_ways(client: redis.Redis, limit: int) -> None:
    fleet = QuotaFleet(client, LimitsConfig(requests_per_minute=limit))
    fleet.run(lambda fleet: saturate(fleet, 130 if limit < 1000 else 65))
    assert fleet.most_in_a_minute() <= limit
    assert per_minute(fleet, fleet.begun[0].at + 2) >= 0.98 * limit


@pytest.mark.parametrize("limit", [60, 600])
def test_scarce_requests_are_full_of_questions(client: redis.Redis, limit: int) -> None:
    """What is limited is requests: each worker puts as many questions in one as it may have."""
    size = 32
    fleet = QuotaFleet(client, LimitsConfig(requests_per_minute=limit), batch=size)
    fleet.run(lambda fleet: saturate(fleet, 75, workers=3))
    assert fleet.most_in_a_minute() <= limit
    assert per_minute(fleet, fleet.begun[0].at + 2) >= 0.95 * limit
    sizes = [call.questions for call in fleet.begun if call.at >= fleet.begun[0].at + 2]
    assert sum(sizes) >= 0.95 * size * len(sizes)


def test_failed_requests_of_many_do_not_break_the_limit(client: redis.Redis) -> None:
    """Each of their questions is asked again alone, in its turn."""
    limit = 600
    fleet = QuotaFleet(client, LimitsConfig(requests_per_minute=limit), batch=8, failing=0.1)
    fleet.run(lambda fleet: saturate(fleet, 65, workers=3))
    assert fleet.most_in_a_minute() <= limit
    assert per_minute(fleet, fleet.begun[0].at + 2) >= 0.95 * limit


def test_slots_of_batches_are_requests(client: redis.Redis) -> None:
    limit, size = 6, 8
    fleet = QuotaFleet(client, LimitsConfig(concurrency=limit), batch=size, call_s=lambda _: 0.2)
    fleet.run(lambda fleet: saturate(fleet, 40.0, workers=3))
    assert fleet.most_in_flight == limit
    later = [call.questions for call in fleet.begun if call.at >= fleet.begun[0].at + 5]
    assert sum(later) >= 0.9 * size * len(later)
    assert len(later) >= 0.8 * 35 * limit / 0.2


def test_tokens_hold_within_two_percent_both_ways(client: redis.Redis) -> None:
    """Although nobody knows before what a call will take."""
    limit = 60_000
    fleet = QuotaFleet(client, LimitsConfig(tokens_per_minute=limit))
    fleet.run(lambda fleet: saturate(fleet, 75))
    assert fleet.most_in_a_minute(tokens=True) <= 1.02 * limit
    assert per_minute(fleet, fleet.begun[0].at + 10, tokens=True) >= 0.98 * limit


def test_a_debt_of_tokens_is_carried(client: redis.Redis) -> None:
    """Calls that take far more than those before are paid for by those after."""
    limit, sizes = 60_000, [100]
    fleet = QuotaFleet(
        client, LimitsConfig(tokens_per_minute=limit), tokens=lambda _: sizes[0], seed=4
    )

    async def scenario(fleet: QuotaFleet) -> None:
        await saturate(fleet, 10, workers=3)
        sizes[0] = 2_000
        await asyncio.sleep(125)

    fleet.run(scenario)
    grown = next(call.at for call in fleet.begun if call.tokens > 100)
    after = sum(call.tokens for call in fleet.begun if grown <= call.at < grown + 120)
    assert after == pytest.approx(2 * limit, rel=0.05)


@pytest.mark.parametrize("limit", [40, 3])
def test_slots_are_never_exceeded_all_used_and_shared(client: redis.Redis, limit: int) -> None:
    fleet = QuotaFleet(client, LimitsConfig(concurrency=limit), call_s=lambda _: 0.2)
    for_s = 40.0
    fleet.run(lambda fleet: saturate(fleet, for_s))
    assert fleet.most_in_flight == limit
    # A call takes 0.2 s, and its slot is empty for the look-up of the next.
    assert len(fleet.begun) >= 0.9 * limit * for_s / 0.202
    each = Counter(call.worker for call in fleet.begun if call.at > fleet.begun[0].at + 10)
    assert len(each) == WORKERS
    assert max(each.values()) <= 2 * min(each.values())


def test_nobody_hoards_calls(client: redis.Redis) -> None:
    fleet = QuotaFleet(client, LimitsConfig(requests_per_minute=3000))
    fleet.run(lambda fleet: saturate(fleet, 30))
    each = Counter(call.worker for call in fleet.begun)
    assert max(each.values()) <= 1.5 * min(each.values())
    # All of it for one: chunks follow the demand.
    alone = QuotaFleet(client, LimitsConfig(requests_per_minute=3000))
    alone.run(lambda fleet: saturate(fleet, 30, workers=1))
    assert len(alone.begun) == pytest.approx(len(fleet.begun), rel=0.02)


def test_a_limiter_costs_no_round_trip_a_call(client: redis.Redis) -> None:
    fleet = QuotaFleet(client, LimitsConfig(requests_per_minute=30_000), call_s=lambda _: 0.1)
    fleet.run(lambda fleet: saturate(fleet, 10, workers=2))
    assert len(fleet.begun) > 4_500
    assert fleet.server.requests <= 2 * 10 * 22


def test_without_demand_nothing_is_asked_and_nobody_holds_anything(client: redis.Redis) -> None:
    fleet = QuotaFleet(client, LimitsConfig(concurrency=5, requests_per_minute=600), endless=False)
    asked: list[int] = []

    async def scenario(fleet: QuotaFleet) -> None:
        worker = fleet.start()
        await asyncio.sleep(100)
        asked.append(fleet.server.requests)
        worker.ask(20)
        await asyncio.sleep(10)
        asked.append(fleet.server.requests)
        await asyncio.sleep(1000)
        asked.append(fleet.server.requests)

    fleet.run(scenario)
    assert len(fleet.begun) == 20
    assert asked[0] == 0
    assert asked[1] < 60
    assert asked[2] == asked[1]
    assert client.hkeys(quota_key()) == [b"."]


def quota_key() -> str:
    return (names.quota_prefix(TAG) + b"gpt").decode()


@pytest.mark.parametrize("how", ["kill", "drain"])
def test_slots_of_who_has_gone_come_back(client: redis.Redis, how: str) -> None:
    fleet = QuotaFleet(client, LimitsConfig(concurrency=10))
    free_at: list[float] = []

    async def scenario(fleet: QuotaFleet) -> None:
        gone = fleet.start()
        gone.ask(PLENTY)
        await asyncio.sleep(5)
        await getattr(gone, how)()
        left_at = fleet.loop.time()
        fleet.start().ask(PLENTY)
        async with asyncio.timeout(100):
            while fleet.in_flight < 10:  # noqa: ASYNC110 -- in virtual time
                await asyncio.sleep(0.01)
        free_at.append(fleet.loop.time() - left_at)

    fleet.run(scenario)
    assert fleet.most_in_flight == 10
    earliest, latest = (TTL_S - 2, TTL_S + 0.5) if how == "kill" else (0.0, 0.5)
    assert earliest <= free_at[0] <= latest


def test_while_the_store_is_away_workers_use_up_what_they_have_and_stop(
    client: redis.Redis,
) -> None:
    fleet = QuotaFleet(client, LimitsConfig(concurrency=16, requests_per_minute=6000))
    marks: dict[str, int] = {}

    async def scenario(fleet: QuotaFleet) -> None:
        await saturate(fleet, 5)
        fleet.server.away = True
        marks["went"] = len(fleet.begun)
        await asyncio.sleep(1)
        marks["stopped"] = len(fleet.begun)
        await asyncio.sleep(100)
        marks["back"] = len(fleet.begun)
        fleet.server.away = False
        await asyncio.sleep(5)

    fleet.run(scenario)
    assert marks["stopped"] - marks["went"] <= 100
    assert marks["back"] == marks["stopped"]
    assert len(fleet.begun) - marks["back"] > 100
    assert fleet.most_in_flight <= 16
    assert fleet.most_in_a_minute() <= 6000


def test_what_was_granted_long_ago_is_not_begun(client: redis.Redis) -> None:
    """Or it could all begin in the same minute as what was granted since."""
    fleet = QuotaFleet(client, LimitsConfig(requests_per_minute=6000))
    rooms: list[int] = []

    async def scenario(fleet: QuotaFleet) -> None:
        worker = fleet.start()
        await asyncio.sleep(1)
        worker.waiting = 30
        worker.backend.wanted()
        await asyncio.sleep(0.0001)
        worker.waiting = 0  # they got their answers elsewhere
        await asyncio.sleep(0.1)
        fleet.server.away = True
        for after_s in (0.1, 0.3):
            rooms.append(worker.backend.free_slots)
            await asyncio.sleep(after_s)
        rooms.append(worker.backend.free_slots)

    fleet.run(scenario)
    assert rooms == [30, 30, 0]


def test_slots_in_use_are_not_given_away_after_an_outage(client: redis.Redis) -> None:
    """A call that takes longer than the outage: who comes back first finds its slot taken."""
    fleet = QuotaFleet(
        client, LimitsConfig(concurrency=4), endless=False, call_s=lambda _: 4 * TTL_S
    )

    async def scenario(fleet: QuotaFleet) -> None:
        fleet.start().ask(4)
        await asyncio.sleep(1)
        fleet.server.away = True
        await asyncio.sleep(2 * TTL_S)
        fleet.server.away = False
        fleet.start().ask(4)
        await asyncio.sleep(5 * TTL_S)

    fleet.run(scenario)
    assert len(fleet.begun) == 8
    assert fleet.most_in_flight == 4


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["start", "ask", "kill", "drain", "away", "back", "slow", "wait"]),
        st.integers(0, 7),
        st.floats(0.0, 12.0),
    ),
    min_size=3,
    max_size=14,
)


async def act(fleet: QuotaFleet, what: str, which: int) -> None:
    """One step of what may happen."""
    alive = [worker for worker in fleet.workers if worker.alive]
    worker: Any = alive[which % len(alive)] if alive else fleet.start()
    match what:
        case "start":
            fleet.start(slots=20).ask(100)
        case "ask":
            worker.ask(60)
        case "kill" | "drain":
            await getattr(worker, what)()
        case "away" | "back":
            fleet.server.away = what == "away"
        case _:
            fleet.server.way_s = 0.15 if what == "slow" else 0.001


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    steps=STEPS,
    concurrency=st.none() | st.integers(1, 20),
    rate=st.sampled_from([None, 7, 60, 300, 1200]),
    seed=st.integers(0, 2**32),
)
def test_no_order_of_events_exceeds_a_limit(
    client: redis.Redis,
    steps: list[tuple[str, int, float]],
    concurrency: int | None,
    rate: int | None,
    seed: int,
) -> None:
    """Starts, deaths, bursts after pauses, failing calls, a slow store and one that is away."""
    limits = LimitsConfig(concurrency=concurrency, requests_per_minute=rate)
    if not limits:
        limits = LimitsConfig(concurrency=5)
    fleet = QuotaFleet(client, limits, seed=seed, endless=False, failing=0.2)

    async def scenario(fleet: QuotaFleet) -> None:
        fleet.start().ask(100)
        for what, which, then_s in steps:
            await act(fleet, what, which)
            await asyncio.sleep(then_s)

    fleet.run(scenario)
    if limits.concurrency is not None:
        assert fleet.most_in_flight <= limits.concurrency
    if limits.requests_per_minute is not None:
        assert fleet.most_in_a_minute() <= limits.requests_per_minute
