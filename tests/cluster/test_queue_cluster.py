"""All of askonce on a real cluster: every job is answered once, whatever happens to its servers."""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import pytest

from askonce_loadtest.servers.cluster import Cluster
from askonce_queue import Client, Job, Reply, StoreUnavailable, names
from askonce_queue.shards import shard_of_digest, shard_of_job, shard_tags
from askonce_queue.store import Store
from askonce_queue.store_config import StoreConfig
from askonce_queue.sync import Client as SyncClient
from askonce_worker import AnswerCache
from askonce_worker.cache.invalidation import invalidate
from askonce_worker.cache.key import KeyMaker
from tests.support.askonce_command import CONFIG, Askonce
from tests.support.cluster_work import SHARDS, cluster_config, store_of, succeeds, worker_on
from tests.support.queue_worker import EchoModel, echo_tasks
from tests.support.waiting import eventually

TAGS = shard_tags(SHARDS)
DISTURBANCES = ["a killed primary", "failovers by hand", "slots that move"]


def jobs(amount: int, prefix: str = "j") -> list[Job]:
    """Jobs and questions of all shards."""
    return [Job(task="echo", text=f"{prefix} text {n}", id=f"{prefix}{n}") for n in range(amount)]


def toml(config: StoreConfig) -> str:
    return f"""
        [redis]
        url = "{config.url}"
        nodes = {json.dumps(list(config.nodes))}
        cluster = true
        shards = {config.shards}
    """


def assert_echoed(replies: Sequence[Reply], asked: Sequence[Job]) -> None:
    """Every job has one reply, and the right one."""
    assert Counter(reply.id for reply in replies) == Counter(job.id for job in asked)
    texts = {job.id: job.text for job in asked}
    for reply in replies:
        assert reply.answer is not None, reply.error
        assert reply.answer.label == str(texts[reply.id]).upper()


# --- nothing breaks --------------------------------------------------------------------------


async def test_clients_of_both_kinds_workers_and_answers(store_cluster: Cluster) -> None:
    config, model = cluster_config(store_cluster), EchoModel()
    cold, again = jobs(60), jobs(60, "again")
    same = [Job(task="echo", text=job.text, id=f"same{job.id}") for job in cold]
    async with worker_on(config, model).running(), worker_on(config, model).running():
        async with Client(config, name="async") as client:
            assert_echoed([reply async for reply in client.ask_many(cold)], cold)
            assert_echoed([reply async for reply in client.ask_many(same, ordered=True)], same)
            assert (await client.ask(Job(task="echo", text="alone"))).source == "model"
        assert Counter(model.asked) == Counter([*(str(job.text) for job in cold), "alone"])

        def ask_in_thread() -> list[Reply]:
            with SyncClient(config, name="sync") as client:
                client.enqueue_many(jobs(12, "left"))
                assert_echoed(list(client.replies(1.0)), jobs(12, "left"))
                assert client.ask(Job(task="echo", text="alone")).source in {"memory", "store"}
                return list(client.ask_many(again, timeout_s=5.0))

        assert_echoed(await asyncio.to_thread(ask_in_thread), again)
    async with store_of(config) as store:
        for tag in TAGS:
            owed, lane = names.owed(tag), names.jobs(tag, "default", "interactive")
            assert await store.send(owed, "EXISTS", owed) == 0
            assert await store.send(lane, "XLEN", lane) == 0


async def test_a_client_that_comes_back_gets_what_it_left_on_every_shard(
    store_cluster: Cluster,
) -> None:
    config, left = cluster_config(store_cluster), jobs(30)
    async with Client(config, name="resumed") as client:
        await client.enqueue_many(left)
    async with worker_on(config).running(), Client(config, name="resumed") as client:
        assert_echoed(await some_replies(client, 30), left)


async def some_replies(client: Client, count: int) -> list[Reply]:
    replies = client.replies()
    async with asyncio.timeout(20):
        return [await anext(replies) for _ in range(count)]


async def test_the_library_and_its_invalidation(store_cluster: Cluster) -> None:
    config = cluster_config(store_cluster)
    calls = Counter[int]()

    async def call(n: int) -> int:
        calls[n] += 1
        return n * n

    async def all_of(cache: AnswerCache, tags: Sequence[str] = ("t",)) -> set[str]:
        results = await asyncio.gather(
            *(cache.get_or_call("square", n, partial(call, n), tags=tags) for n in range(30))
        )
        assert [result.value for result in results] == [n * n for n in range(30)]
        return {result.source for result in results}

    async with AnswerCache(config) as one, AnswerCache(config) as two:
        assert await all_of(one) == {"model"}
        assert await all_of(one) == {"memory"}
        assert await all_of(two) == {"store"}
        async with store_of(config) as store:
            assert isinstance(store, Store)
            done = await invalidate(store, ["t"])
        assert done.complete
        assert set(done.stamps) == set(TAGS)

        async def forgotten() -> bool:
            await all_of(one)
            return set(calls.values()) == {2}

        await eventually(forgotten)


async def test_dead_letters_of_every_shard(store_cluster: Cluster) -> None:
    config = cluster_config(store_cluster)
    wrong = [Job(task="none", text=f"{n}", id=f"s{n}-wrong") for n in range(SHARDS)]
    async with worker_on(config).running(), Client(config) as client:
        replies = [reply async for reply in client.ask_many(wrong)]
    assert {reply.error and reply.error.code for reply in replies} == {"unknown_task"}
    async with store_of(config) as store:
        for tag in TAGS:
            dead = names.dead(tag, "default")
            assert await store.send(dead, "XLEN", dead) == 1


@pytest.fixture
def askonce(tmp_path: Path) -> Iterator[Askonce]:
    with Askonce(tmp_path) as command:
        yield command


async def test_the_command(store_cluster: Cluster, askonce: Askonce) -> None:
    config = cluster_config(store_cluster)
    askonce.configure(f"{toml(config)}\n{CONFIG}")
    askonce.write("in.jsonl", [{"text": f"text number {n}"} for n in range(20)])

    def work() -> tuple[str, str, str]:
        askonce.run("in.jsonl")
        stats = askonce("stats", "askonce.toml", "--json").stdout
        doctor = askonce("doctor", "askonce.toml", "--json").stdout
        return stats, doctor, askonce("invalidate", "askonce.toml", "--all").stdout

    stats, doctor, said = await asyncio.to_thread(work)
    assert [row["label"] for row in askonce.read("out.jsonl")] == ["long"] * 20
    assert json.loads(stats)["total"]["misses"] == 20
    checks = json.loads(doctor)["checks"]
    assert sum("Valkey" in check["message"] for check in checks) == 3
    assert all(check["status"] != "fail" for check in checks)
    assert str(SHARDS) in said


@pytest.mark.parametrize("given", [{"cluster": False, "nodes": ()}, {"shards": 5}])
async def test_a_store_that_is_not_what_the_configuration_says(
    store_cluster: Cluster, given: dict[str, object], askonce: Askonce
) -> None:
    async with Client(cluster_config(store_cluster)):
        pass
    config = cluster_config(store_cluster)
    text = toml(config)
    for name in given:
        (line,) = [line for line in text.splitlines() if line.strip().startswith(f"{name} ")]
        text = text.replace(line, "        shards = 5" if name == "shards" else "")
    askonce.configure(f"{text}\n{CONFIG}")
    said = await asyncio.to_thread(lambda: askonce("worker", "askonce.toml", code=2).stderr)
    expected = {"cluster": "set cluster = true", "shards": "was set up with 6"}
    assert expected[next(iter(given))] in said


# --- servers that fail -----------------------------------------------------------------------


class Load:
    """A producer that goes on for as long as a test wants, and counts its replies."""

    def __init__(self, client: Client) -> None:
        self.accepted: list[Job] = []
        self.replies: list[Reply] = []
        self.outages = 0
        self._client = client
        self._stop = asyncio.Event()

    async def produce(self) -> None:
        """Enqueue jobs for all shards; what is not known to be accepted is enqueued again."""
        for number in itertools.count():
            if self._stop.is_set():
                return
            batch = jobs(24, f"p{number}-")
            while not await self._accepted(batch):
                self.outages += 1
            self.accepted += batch

    async def _accepted(self, batch: Sequence[Job]) -> bool:
        try:
            await self._client.enqueue_many(batch)
        except StoreUnavailable:
            return False
        return True

    async def consume(self) -> None:
        async for reply in self._client.replies():
            self.replies.append(reply)

    async def some_more(self, amount: int = 100) -> None:
        """Wait until so many more jobs were accepted."""
        goal = len(self.accepted) + amount
        await eventually(lambda: len(self.accepted) >= goal, timeout_s=30)

    async def finish(self) -> None:
        """Stop, and wait until all that was accepted is replied."""
        self._stop.set()
        await eventually(lambda: len(self.replies) >= len(self.accepted), timeout_s=30)


@asynccontextmanager
async def load_on(config: StoreConfig) -> AsyncGenerator[Load]:
    """A load for the length of a block; at its end every job must have its one reply."""
    async with Client(config, name="load") as client:
        load = Load(client)
        consuming = asyncio.create_task(load.consume())
        producing = asyncio.create_task(load.produce())
        try:
            await load.some_more()
            yield load
            await load.some_more()
            await load.finish()
            await producing
        finally:
            for task in (producing, consuming):
                task.cancel()
            await asyncio.gather(producing, consuming, return_exceptions=True)
        assert_echoed(load.replies, load.accepted)


async def kill_a_primary(cluster: Cluster, load: Load) -> None:
    """Until it is back, as a replica, there is nobody to confirm what its successor accepts."""
    killed = await cluster.kill_primary(TAGS[0])
    await cluster.wait_new_primary(TAGS[0], killed)
    assert load.outages
    await cluster.rejoin(killed)


async def fail_over_by_hand(cluster: Cluster, load: Load) -> None:
    for tag in (TAGS[1], TAGS[5]):
        await cluster.fail_over(tag)
        await load.some_more(50)


async def move_a_slot(cluster: Cluster, load: Load) -> None:
    tag = TAGS[2]
    source = await cluster.primary_of(tag)
    target = next(node for node in await cluster.primaries() if node is not source)
    for there in (target, source):
        await cluster.migrate_slot(tag, there)
        await load.some_more(50)


@pytest.mark.parametrize(
    "disturb", [kill_a_primary, fail_over_by_hand, move_a_slot], ids=DISTURBANCES
)
async def test_a_fleet_under_load(
    store_cluster: Cluster, disturb: Callable[[Cluster, Load], Awaitable[None]]
) -> None:
    """What was accepted was confirmed by a replica before: all of it is answered, once."""
    config, model = cluster_config(store_cluster, wait_replicas=1), EchoModel()
    async with (
        worker_on(config, model).running(),
        worker_on(config, model).running(),
        load_on(config) as load,
    ):
        await disturb(store_cluster, load)


async def test_a_stopped_primary_is_given_back_what_it_lost(store_cluster: Cluster) -> None:
    """What it is told as it wakes up is thrown away while the tellers wait for replicas.

    They must not be told that replicas have it by what those confirm later, of another history.
    """
    patient = {"timeout_s": 20.0, "wait_timeout_s": 15.0}
    config = cluster_config(store_cluster, wait_replicas=1, **patient)
    async with worker_on(config, EchoModel()).running(), load_on(config) as load:
        for tag in (TAGS[0], TAGS[3]):
            stopped = await store_cluster.primary_of(tag)
            stopped.pause()
            await store_cluster.wait_new_primary(tag, stopped)
            stopped.resume()
            await store_cluster.wait_healthy()
            await store_cluster.fail_over(tag, "TAKEOVER")
            await load.some_more(50)


# --- one silent primary ----------------------------------------------------------------------

KEY_MAKER: KeyMaker = echo_tasks(EchoModel())["echo"].key_maker


class Questions:
    """New jobs with the job shard and the answer shard that a test wants."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    def new(self, job_shard: int, answer_shard: int) -> Job:
        while True:
            number = next(self._numbers)
            text = f"question {number}"
            if shard_of_digest(KEY_MAKER.text_key(text), SHARDS) == answer_shard:
                job = Job(task="echo", text=text, id=f"s{job_shard}-{number}")
                assert shard_of_job(str(job.id), SHARDS) == job_shard
                return job


@pytest.fixture
async def lonely(store_cluster: Cluster) -> AsyncIterator[tuple[Cluster, list[int], list[int]]]:
    """A cluster in which no replica may take over, the shards of one primary, and the others."""
    node = await store_cluster.primary_of(TAGS[0])
    for one in store_cluster.nodes:
        await one.command("CONFIG", "SET", "cluster-replica-no-failover", "yes")
    owners = [await store_cluster.primary_of(tag) for tag in TAGS]
    own = [shard for shard, owner in enumerate(owners) if owner is node]
    yield store_cluster, own, [shard for shard in range(SHARDS) if shard not in own]
    await store_cluster.wake()
    for one in store_cluster.nodes:
        await one.command("CONFIG", "SET", "cluster-replica-no-failover", "no")


async def test_one_silent_primary_delays_only_its_own_shards(
    lonely: tuple[Cluster, list[int], list[int]],
) -> None:
    """Hits and misses of the others take as long as before, although jobs for it are under way:
    more of them than the model has slots. It wakes up, and all of them are answered, once.
    """
    cluster, dead, alive = lonely
    config, model, questions = cluster_config(cluster), EchoModel(), Questions()
    node = await cluster.primary_of(TAGS[dead[0]])
    worker = worker_on(config, model, slots=8, max_held=400, max_waiting=100, batch=50)
    async with worker.running(), Client(config, name="quick") as client:
        pairs = itertools.cycle(itertools.product(alive, alive))
        hits = [questions.new(*next(pairs)) for _ in range(16)]
        assert_echoed([reply async for reply in client.ask_many(hits)], hits)

        async def time_one(job: Job, sources: set[str]) -> float:
            began = time.perf_counter()
            async with asyncio.timeout(10):
                reply = await client.ask(job)
            assert reply.source in sources
            return time.perf_counter() - began

        async def times() -> tuple[list[float], list[float]]:
            """How long hits and misses take, s, in turns."""
            taken: tuple[list[float], list[float]] = ([], [])
            for number in range(120):
                shard, _ = next(pairs)
                known = hits[number % len(hits)]
                hit = Job(task="echo", text=known.text, id=f"s{shard}-hit{time.monotonic_ns()}")
                taken[0].append(await time_one(hit, {"memory"}))
                taken[1].append(await time_one(questions.new(*next(pairs)), {"model"}))
            return taken

        before = await times()
        async with Client(config, name="patient") as other:
            stuck = [questions.new(alive[n % len(alive)], dead[n % len(dead)]) for n in range(600)]
            held_up = [questions.new(dead[n % len(dead)], alive[0]) for n in range(50)]
            asked = len(model.asked)
            model.open.clear()
            await other.enqueue_many([*stuck[:50], *held_up])
            await eventually(lambda: len(model.asked) == asked + 8)
            node.pause()
            model.open.set()
            await other.enqueue_many(stuck[50:])
            during = await times()
            assert not worker.resolver.stamps.seen(dead[0], time.monotonic())
            node.resume()
            assert_echoed(await some_replies(other, 650), [*stuck, *held_up])
    for kind, was, now in zip(("hit", "miss"), before, during, strict=True):
        ratio = statistics.median(now) / statistics.median(was)
        slowest = max(now)
        assert ratio < 10, f"{kind}s take {ratio:.1f} times as long"
        # A store that is waited for takes 5 s to time out.
        assert slowest < 2.5 + 3 * max(was), f"a {kind} took {slowest:.2f} s"


async def test_clients_go_on_with_the_other_shards(
    lonely: tuple[Cluster, list[int], list[int]],
) -> None:
    """Of both kinds; also when their names were lost on one of them meanwhile. Jobs without an id
    go where they can.
    """
    cluster, dead, alive = lonely
    config, questions = cluster_config(cluster), Questions()
    node = await cluster.primary_of(TAGS[dead[0]])
    survivor, clients = await cluster.primary_of(TAGS[alive[0]]), names.clients(TAGS[alive[0]])

    def anywhere() -> Job:
        return msgspec.structs.replace(questions.new(alive[0], alive[0]), id=None)

    async def work(client: Client) -> None:
        for job_shard in alive:
            async with asyncio.timeout(10):
                assert (await client.ask(questions.new(job_shard, alive[0]))).answer is not None
        with pytest.raises(StoreUnavailable):
            await client.enqueue(questions.new(dead[0], alive[0]))
        found = [reply async for reply in client.ask_many(anywhere() for _ in range(30))]
        assert len(found) == 30

    def work_sync(client: SyncClient) -> None:
        for job_shard in alive:
            job = questions.new(job_shard, alive[0])
            assert client.ask(job, timeout_s=10.0).answer is not None
        with pytest.raises(StoreUnavailable):
            client.enqueue(questions.new(dead[0], alive[0]))
        for _ in range(SHARDS):
            assert client.ask(anywhere(), timeout_s=10.0).answer is not None

    async with (
        worker_on(config).running(),
        Client(config, name="async") as client,
        sync_client(config) as threaded,
    ):
        node.kill()
        for _ in range(2):
            await work(client)
            await asyncio.to_thread(work_sync, threaded)
            await survivor.command("DEL", clients)
        lost = questions.new(dead[0], alive[0])
        await node.start()
        await succeeds(lambda: asyncio.to_thread(threaded.enqueue, lost))
        replies = await asyncio.to_thread(lambda: list(threaded.replies(timeout_s=2.0)))
        assert [reply.id for reply in replies] == [lost.id]


@asynccontextmanager
async def sync_client(config: StoreConfig) -> AsyncGenerator[SyncClient]:
    client = SyncClient(config, name="sync")
    await asyncio.to_thread(client.__enter__)
    try:
        yield client
    finally:
        await asyncio.to_thread(client.__exit__, None, None, None)
