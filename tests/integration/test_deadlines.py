"""Jobs with a deadline: past it an error and no model call, wherever the job is then."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
from typing import Any, cast

import anyio
import pytest
import redis.asyncio

from askonce_queue import Client, IdConflict, InvalidJob, Job, names, queue_scripts
from askonce_queue.reply import Reply
from askonce_queue.scripts import run
from askonce_worker.cache.policy import Control
from askonce_worker.config import WorkerConfig
from askonce_worker.models.protocol import Prompt, Question, TransientFailure
from askonce_worker.models.retry import RetryPolicy
from askonce_worker.pool.worker import Worker
from tests.support.queue_worker import (
    INTERACTIVE,
    QUICK,
    EchoModel,
    backlog,
    echo_tasks,
    echo_worker,
    pending,
)
from tests.support.resolving import (
    ShiftedClock,
    StepModel,
    Waiter,
    all_keys,
    assert_at_rest,
    lease_count,
    make_task,
    resolver_on,
)
from tests.support.waiting import eventually

SMALL: dict[str, Any] = {"max_held": 60, "max_waiting": 20, "batch": 20}
SOON_S = 0.2


def jobs(count: int, deadline_s: float | None) -> list[Job]:
    return [
        Job(task="echo", text=f"cold {n}", id=f"cold-{n}", deadline_s=deadline_s)
        for n in range(count)
    ]


async def replies_of(client: Client, count: int) -> list[Reply]:
    replies = client.replies()
    return [await anext(replies) for _ in range(count)]


def codes(replies: list[Reply]) -> set[str]:
    return {reply.error.code if reply.error else "answer" for reply in replies}


async def is_past(store: redis.asyncio.Redis, deadline_s: float) -> None:
    """Return when jobs of now are past their deadline, by the store's clock."""
    seconds, micros = await store.time()
    until = seconds + micros / 1e6 + deadline_s + 0.002

    async def past() -> bool:
        seconds, micros = await store.time()
        return bool(seconds + micros / 1e6 > until)

    await eventually(past)


async def assert_nothing_left(store: redis.asyncio.Redis) -> None:
    async def nothing() -> bool:
        keys = (INTERACTIVE.ids, INTERACTIVE.due)
        there = [await store.exists(key) for key in keys]
        jobs_left = [await backlog(store), await backlog(store, INTERACTIVE.deferred)]
        held = [await pending(store), await pending(store, INTERACTIVE.deferred)]
        return not any([*there, *jobs_left, *held])

    await eventually(nothing)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("tags", [(), ("a",)])
async def test_who_comes_too_late_is_told_so_even_of_what_is_known(
    store: redis.asyncio.Redis, store_url: str, warm: bool, tags: tuple[str, ...]
) -> None:
    model = EchoModel()
    async with Client(store_url) as client:
        if warm:
            async with echo_worker(store_url, model).running():
                await client.ask(Job(task="echo", text="x"))
        late = [Job(task="echo", text="x", deadline_s=0.001, tags=tags) for _ in range(3)]
        await client.enqueue_many([*late, Job(task="echo", text="x")])
        await is_past(store, 0.001)
        async with echo_worker(store_url, model).running() as worker:
            found = await replies_of(client, 4)
            assert worker.counters.total("expired") == worker.counters.total("errors") == 3
    assert sorted(reply.error.code if reply.error else "" for reply in found) == [
        "",
        *["deadline_exceeded"] * 3,
    ]
    assert model.asked == ["x"]
    await assert_nothing_left(store)


async def test_a_deadline_in_time_changes_nothing(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    async with echo_worker(store_url).running() as worker, Client(store_url) as client:
        asked = [job for n in (1, 2) for job in jobs(50, 600.0 / n)]
        for job in asked:
            job.id = None
        found = [reply async for reply in client.ask_many(asked)]
        assert codes(found) == {"answer"}
        assert worker.counters.total("model_calls") == 50
    await assert_nothing_left(store)


async def test_who_waits_for_a_dead_model_is_told_at_the_deadline_and_never_asked(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    model = EchoModel()
    model.open.clear()
    async with (
        echo_worker(store_url, model, slots=1).running() as worker,
        Client(store_url) as client,
    ):
        await client.enqueue(Job(task="echo", text="first"))
        await eventually(lambda: model.asked == ["first"])
        await client.enqueue(Job(task="echo", text="patient"))
        await client.enqueue_many(jobs(20, SOON_S))
        found = await replies_of(client, 20)
        assert codes(found) == {"deadline_exceeded"}
        assert min(reply.took_ms for reply in found) >= 0.7 * SOON_S * 1000
        assert worker.counters.total("flights_expired") == 20
        model.open.set()
        assert codes(await replies_of(client, 2)) == {"answer"}
    assert sorted(model.asked) == ["first", "patient"]
    await assert_nothing_left(store)


async def test_who_joined_a_call_is_told_while_it_goes_on_and_fills(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    model = EchoModel()
    model.open.clear()
    async with (
        echo_worker(store_url, model).running() as worker,
        Client(store_url) as client,
    ):
        await client.enqueue(Job(task="echo", text="x", id="patient"))
        await eventually(lambda: model.asked == ["x"])
        joined = await client.ask(Job(task="echo", text="x", deadline_s=SOON_S))
        assert joined.error
        assert joined.error.code == "deadline_exceeded"
        model.open.set()
        (patient,) = await replies_of(client, 1)
        assert (patient.id, patient.source) == ("patient", "model")
        again = await client.ask(Job(task="echo", text="x", deadline_s=60))
        assert again.source == "memory"
        assert worker.counters.total("fills") == 1
    assert model.asked == ["x"]
    assert await store.exists(INTERACTIVE.ids) == 0


async def test_deferred_jobs_are_told_while_the_model_is_dead(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    model = EchoModel()
    model.open.clear()
    async with (
        echo_worker(store_url, model, slots=1, **SMALL).running() as worker,
        Client(store_url) as client,
    ):
        forever = [Job(task="echo", text=f"forever {n}") for n in range(60)]
        await client.enqueue_many(forever)
        await eventually(lambda: worker.counters.total("jobs_deferred") >= 30)
        await client.enqueue_many(jobs(100, 0.5))
        found = await replies_of(client, 100)
        assert codes(found) == {"deadline_exceeded"}
        # The time of a deferred job runs from its enqueue. A slow heartbeat measures clocks badly.
        assert all(reply.took_ms >= 250 for reply in found)
        assert len(model.asked) == 1
        model.open.set()
        assert codes(await replies_of(client, 60)) == {"answer"}
    assert len(model.asked) == 60
    await assert_nothing_left(store)


async def test_a_deferred_job_brings_its_enqueue_along_and_is_the_same_job(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    model = EchoModel()
    model.open.clear()
    async with Client(store_url) as client:
        await client.enqueue_many(jobs(60, 600.0))
        before = {fields[b"i"]: entry_id for entry_id, fields in await _entries(store, False)}
        async with echo_worker(store_url, model, slots=1, **SMALL).running() as worker:
            await eventually(lambda: worker.counters.total("jobs_deferred") >= 30)
            deferred = await _entries(store, True)
            due: Any = await store.zrange(INTERACTIVE.due.decode(), 0, -1, withscores=True)
            scores = {entry_id: int(score) for entry_id, score in due}
            for entry_id, fields in deferred:
                assert fields[b"o"] == before[fields[b"i"]].partition(b"-")[0]
                assert fields[b"d"] == b"600000"
                if entry_id in scores:
                    assert scores[entry_id] == int(fields[b"o"]) + 600_000
            assert scores
            await client.enqueue_many(jobs(60, 600.0))
            await eventually(lambda: _there_are(store, 60))
            with pytest.raises(IdConflict):
                await client.enqueue_many(jobs(60, 601.0))
            with pytest.raises(IdConflict):
                await client.enqueue_many(jobs(60, None))
            model.open.set()
            assert codes(await replies_of(client, 60)) == {"answer"}
    await assert_nothing_left(store)


async def _there_are(store: redis.asyncio.Redis, count: int) -> bool:
    return await backlog(store) + await backlog(store, INTERACTIVE.deferred) == count


async def _entries(
    store: redis.asyncio.Redis, deferred: bool
) -> list[tuple[bytes, dict[bytes, bytes]]]:
    lane = INTERACTIVE.deferred if deferred else INTERACTIVE
    rows: Any = await store.xrange(lane.stream.decode())
    return [
        (entry_id, dict(zip(fields[::2], fields[1::2], strict=True))) for entry_id, fields in rows
    ]


async def test_what_a_dead_worker_held_is_told_by_the_next_without_a_try(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    """Some of it fetched, some deferred by the dead one: neither is tried, nor condemned."""
    model = EchoModel()
    async with Client(store_url) as client:
        for lane in (INTERACTIVE, INTERACTIVE.deferred):
            await run(store, queue_scripts.ensure_group(lane))
        await client.enqueue_many(jobs(10, SOON_S))
        read: Any = await store.xreadgroup(
            "workers", "dead", {INTERACTIVE.stream.decode(): ">"}, count=10
        )
        held = [entry_id for entry_id, _ in read[0][1]]
        records = [(entry_id, f"{client.name}/cold-{n}") for n, entry_id in enumerate(held[:5])]
        assert await run(store, queue_scripts.defer(INTERACTIVE, 9, records)) == b"ddddd"
        await store.xreadgroup(
            "workers", "dead", {INTERACTIVE.deferred.stream.decode(): ">"}, count=2
        )
        await is_past(store, SOON_S)
        async with echo_worker(store_url, model).running():
            found = await replies_of(client, 10)
    assert codes(found) == {"deadline_exceeded"}
    assert model.asked == []
    await assert_nothing_left(store)


async def test_an_overdue_job_is_taken_once_and_one_in_hand_is_left(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    async with Client(store_url) as client:
        for lane in (INTERACTIVE, INTERACTIVE.deferred):
            await run(store, queue_scripts.ensure_group(lane))
        await client.enqueue_many(jobs(3, 0.001))
        read: Any = await store.xreadgroup("workers", "a", {INTERACTIVE.stream.decode(): ">"})
        records = [
            (entry_id, f"{client.name}/cold-{n}") for n, (entry_id, _) in enumerate(read[0][1])
        ]
        await run(store, queue_scripts.defer(INTERACTIVE, 9, records))
        stream = INTERACTIVE.deferred.stream.decode()
        await store.xreadgroup("workers", "a", {stream: ">"}, count=1)
        await is_past(store, 0.001)
        seen, taken = await run(store, queue_scripts.take_overdue(INTERACTIVE.deferred, "b", 10))
        assert (seen, len(taken)) == (3, 2)
        assert await pending(store, INTERACTIVE.deferred) == {"a": 1, "b": 2}
        assert await store.zcard(INTERACTIVE.due.decode()) == 0
        # Its turn comes before its settle: another has it too, and the settle counts once.
        await store.xreadgroup("workers", "c", {stream: ">"})
        assert await pending(store, INTERACTIVE.deferred) == {"a": 1, "c": 2}
        again = await run(store, queue_scripts.take_overdue(INTERACTIVE.deferred, "b", 10))
        assert again == [0, []]
        for counted in (3, 0):
            groups = [
                queue_scripts.SettleGroup(
                    client.name,
                    b"".join(b'{"id":"cold-%d"}\n' % n for n in range(3)),
                    [
                        (entry_id, f"{client.name}/cold-{n}")
                        for n, (entry_id, _) in enumerate(await _entries(store, True))
                    ]
                    or [(b"1-1", "x")],
                )
            ]
            settled = await run(store, queue_scripts.settle(INTERACTIVE.deferred, groups))
            assert settled == counted


class Down:
    """A model that is down, and says to come again in half a minute."""

    def __init__(self) -> None:
        self.calls = 0

    async def ask(self, prompt: Prompt, question: Question) -> Any:
        del prompt, question
        self.calls += 1
        raise TransientFailure("unavailable", "come again", retry_after_s=0.05)

    async def check(self) -> str:
        return "down"

    async def aclose(self) -> None:
        pass


async def test_nobody_asks_again_when_all_who_waited_are_past_their_deadlines(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    model = Down()
    retry = RetryPolicy(max_attempts=1000, base_s=0.05, cap_s=0.05)
    task = make_task(cast("Any", model), retry=retry)
    clock = ShiftedClock()
    async with resolver_on(store_url, clock=clock) as resolver:
        now = clock.monotonic()
        waiters = [Waiter(task, "x", deadline=now + after) for after in (1000, 2000)]
        resolver.resolve(waiters)
        await eventually(lambda: model.calls >= 2)
        clock.shift_s += 1500
        assert (await waiters[0].outcome()).error is not None
        assert not waiters[1].outcomes
        before = model.calls
        await eventually(lambda: model.calls > before)  # somebody still waits
        clock.shift_s += 1500
        outcome = await waiters[1].outcome()
        assert outcome.error
        assert outcome.error.code == "deadline_exceeded"
        await assert_at_rest(store, resolver, task)
        after = model.calls
        await anyio.sleep(0.2)
        assert model.calls == after
        assert await lease_count(store) == 0
        assert not await store.exists(names.tries("0")) or after > 1


async def test_what_those_allowed_who_are_gone_holds_for_the_answer(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    """All who asked wanted nothing kept: nothing is, although nobody waits when it comes."""
    model = StepModel(closed=True)
    task = make_task(model)
    clock = ShiftedClock()
    async with resolver_on(store_url, clock=clock) as resolver:
        waiter = Waiter(task, "x", deadline=clock.monotonic() + 1, control=Control(no_store=True))
        resolver.resolve([waiter])
        await eventually(lambda: model.in_flight == 1)
        clock.shift_s += 2
        assert (await waiter.outcome()).error is not None
        model.open()
        await assert_at_rest(store, resolver, task)
        assert not await all_keys(store, "a:*")


async def test_the_heap_forgets_what_has_landed(store_url: str) -> None:
    model = StepModel()
    task = make_task(model)
    async with resolver_on(store_url) as resolver:
        for start in range(0, 3000, 500):
            waiters = [
                Waiter(task, f"{start} {n}", deadline=resolver._clock.monotonic() + 9e5)
                for n in range(500)
            ]
            resolver.resolve(waiters)
            await asyncio.gather(*(waiter.outcome() for waiter in waiters))
        assert len(resolver._deadlines) <= 2000


@pytest.mark.parametrize(
    "seconds", [0, -1, 0.0001, float("nan"), float("inf"), 1e9, True, "5", [5]]
)
async def test_what_is_no_deadline_is_refused_at_once(store_url: str, seconds: Any) -> None:
    async with Client(store_url) as client:
        with pytest.raises(InvalidJob, match="deadline_s is from"):
            await client.enqueue(Job(task="echo", text="x", deadline_s=seconds))


class WrongClock(ShiftedClock):
    """Of a machine whose wall clock is a day ahead, and that was started some other time."""

    def __init__(self) -> None:
        super().__init__()
        self.shift_s = 1e6

    def wall_ms(self) -> float:
        return super().wall_ms() + 86_400_000


async def test_the_clock_that_counts_is_the_stores(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    model = EchoModel()
    async with Client(store_url) as client:
        await client.enqueue_many([*jobs(2, 0.001), *[Job(task="echo", text="x", deadline_s=60)]])
        await is_past(store, 0.001)
        worker = Worker(store_url, echo_tasks(model), WorkerConfig(**QUICK), clock=WrongClock())
        async with worker.running():
            found = await replies_of(client, 3)
            again = await client.ask(Job(task="echo", text="y", deadline_s=30))
    assert sorted(reply.error.code if reply.error else "" for reply in found) == [
        "",
        *["deadline_exceeded"] * 2,
    ]
    assert again.source == "model"


async def test_a_retry_of_a_dead_letter_is_a_new_start(store: redis.asyncio.Redis) -> None:
    lane = INTERACTIVE
    letter = await store.xadd(
        names.dead("0", "default").decode(),
        {
            "code": "poison",
            "message": "m",
            "stream": "s",
            "entry": "1-1",
            "v": "1",
            "c": "c",
            "i": "j",
            "p": "{}",
            "d": "500",
            "o": "1000",
        },
    )
    call = queue_scripts.retry_dead(
        lane, cast("bytes", letter), record="c/j", address="@n", max_backlog=9, max_unread=9
    )
    assert await run(store, call) == b"r"
    ((_, fields),) = await _entries(store, False)
    assert fields[b"d"] == b"500"
    assert b"o" not in fields
