"""The hit log on the real server: what workers log, its bounds, what reviews and rules do."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from typing import Any

import pytest
import redis.asyncio
from redis.exceptions import RedisError

from askonce_queue import Client, Job, names, queue_scripts
from askonce_queue.queue_scripts import LoggedHit
from askonce_queue.reply import Answer, Reply
from askonce_queue.scripts import send
from askonce_queue.shards import shard_of_digest, shard_tags
from askonce_queue.store import Store
from askonce_worker.asks import SeenHit
from askonce_worker.cache.entry import Entry, encode_json
from askonce_worker.clock import SystemClock
from askonce_worker.config import HitLogConfig, WorkerConfig
from askonce_worker.hits import log as hit_log
from askonce_worker.hits import reviews as hit_reviews
from askonce_worker.hits import rulebook
from askonce_worker.hits.log import MOST_PENDING, HitLog
from askonce_worker.hits.review import judge
from askonce_worker.hits.reviews import Rate, Review, read_reviews, record_review
from askonce_worker.hits.rulebook import AppliedRules, RuleBook, TooManyRules
from askonce_worker.hits.rules import MOST_RULES, Rule
from askonce_worker.hits.search import Hit, Wanted, find_hits
from askonce_worker.observe.counters import Counters
from askonce_worker.pool.sweep import Sweep
from askonce_worker.pool.worker import Worker
from askonce_worker.tasks import Task
from tests.support.leftovers import LANES
from tests.support.queue_worker import QUICK, EchoModel, echo_tasks
from tests.support.resolving import Waiter
from tests.support.waiting import eventually

ALL = HitLogConfig(share=1.0)
HITS, REVIEWS, RULES = names.hits("0"), names.reviews("0"), names.rules("0")
TEXT = "mail me: john@example.com"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hit_log, "FLUSH_EVERY_S", 0.02)
    monkeypatch.setattr(rulebook, "READ_EVERY_S", 0.02)


def worker_of(
    url: str,
    model: EchoModel,
    config: HitLogConfig | None = ALL,
    *,
    shards: int = 1,
    **worker: Any,
) -> Worker:
    tasks = echo_tasks(model, hit_log=config)
    return Worker(url, tasks, WorkerConfig(**(QUICK | worker)), shards=shards)


async def ask(client: Client, text: str = TEXT, times: int = 1, tenant: str = "") -> list[Reply]:
    return [await client.ask(Job(task="echo", text=text, tenant=tenant)) for _ in range(times)]


async def logged(store: Store, count: int = 1, **wanted: Any) -> list[Hit]:
    """The hits that are logged, once there are so many."""

    async def there() -> list[Hit]:
        found = await find_hits(store, Wanted(**wanted))
        assert not found.failures
        return found.hits if len(found.hits) >= count else []

    return await eventually(there)


async def nothing_logged(worker: Worker, store: Store) -> None:
    await worker._hit_log.flush_all()
    assert not (await find_hits(store, Wanted())).hits


class TestLogging:
    async def test_hits_of_all_tiers_are_logged_redacted_once_a_question(
        self, askonce_store: Store, store_url: str, store: redis.asyncio.Redis
    ) -> None:
        model = EchoModel()
        async with worker_of(store_url, model).running() as worker, Client(store_url) as client:
            await ask(client)
            await nothing_logged(worker, askonce_store)  # it was no hit
            await ask(client, times=20)
            await ask(client, "other", times=2)
            found = await logged(askonce_store, 2)
            assert {hit.input: hit.source for hit in found} == {
                "mail me: [email]": "memory",
                "other": "memory",
            }
            (one,) = [hit for hit in found if hit.input != "other"]
            assert one.answer.label == "MAIL ME: [email]"
            assert one.times == 1
            assert (one.task, one.tenant, one.review) == ("echo", "", None)
        async with worker_of(store_url, model).running(), Client(store_url) as client:
            await ask(client)
        (again, _) = await logged(askonce_store, 2)  # a drain writes what was noted
        assert (again.input, again.source, again.times) == ("mail me: [email]", "store", 2)
        for key in (HITS, names.stats("0")):
            raw = await send(store, "DUMP", key)
            assert b"john" not in raw

    async def test_off_with_a_hash_and_with_tenants(
        self, askonce_store: Store, store_url: str
    ) -> None:
        for config, shown in (
            (None, None),
            (HitLogConfig(share=0), None),
            (HitLogConfig(share=1, input="hash"), ("", "")),
            (HitLogConfig(share=1, tenant=True), ("mail me: [email]", "acme")),
        ):
            await askonce_store.send(HITS, "DEL", HITS)
            async with (
                worker_of(store_url, EchoModel(), config).running() as worker,
                Client(store_url) as client,
            ):
                await ask(client, times=3, tenant="acme")
                if shown is None:
                    assert not worker.resolver.watchers
                    await nothing_logged(worker, askonce_store)
                else:
                    (hit,) = await logged(askonce_store)
                    assert (hit.input, hit.tenant) == shown

    async def test_the_head_does_not_drown_the_rest(self, askonce_store: Store) -> None:
        """A question that is most of the traffic is as likely to be logged as any other."""
        counters, clock = Counters(), SystemClock()
        (task,) = echo_tasks(EchoModel(), hit_log=HitLogConfig(share=0.2)).values()
        log = HitLog(askonce_store, [task], clock, counters, max_hits=1000)
        chosen = log._sampler.windows["echo"].has
        heads = (seen_hit(task, f"head {n}") for n in range(1000))
        head = next(hit for hit in heads if chosen(hit.ask.key))
        seen = [head] * 5000 + [seen_hit(task, f"tail {n}") for n in range(200)]
        log.note(seen)
        await log.flush_all()
        found = (await find_hits(askonce_store, Wanted())).hits
        assert 15 <= len(found) <= 70
        assert all(hit.times == 1 for hit in found)

    async def test_the_log_is_bounded_and_counts_what_it_drops(
        self, askonce_store: Store, store: redis.asyncio.Redis
    ) -> None:
        counters = Counters()
        (task,) = echo_tasks(EchoModel(), hit_log=ALL).values()
        log = HitLog(askonce_store, [task], SystemClock(), counters, max_hits=30)
        log.note([seen_hit(task, f"text {n}") for n in range(MOST_PENDING + 50)])
        await log.flush_all()
        assert await store.xlen(HITS.decode()) == 30
        assert counters.total("hits_dropped") == MOST_PENDING - 30
        # Those there was no room for come with their next hit.
        log.note([seen_hit(task, f"text {n}") for n in range(MOST_PENDING + 50)])
        await log.flush_all()
        assert counters.total("hits_dropped") == MOST_PENDING - 30 + 50

    async def test_a_store_that_fails_costs_the_sample_and_nothing_else(
        self, askonce_store: Store, store: redis.asyncio.Redis
    ) -> None:
        counters = Counters()
        (task,) = echo_tasks(EchoModel(), hit_log=ALL).values()
        log = HitLog(askonce_store, [task], SystemClock(), counters, max_hits=30)
        await store.set(HITS.decode(), "no stream")
        log.note([seen_hit(task, "text")])
        await log.flush(0)
        assert counters.total("hits_dropped") == 1

    async def test_every_shard_has_its_own(
        self, store_url: str, store: redis.asyncio.Redis
    ) -> None:
        async with (
            worker_of(store_url, EchoModel(), shards=3).running(),
            Client(store_url, shards=3) as client,
        ):
            for n in range(12):
                await ask(client, f"text {n}", times=2)
        sharded = Store(store_url, shards=3)
        try:
            found = await logged(sharded, 12)
        finally:
            await sharded.aclose()
        tags = shard_tags(3)
        for hit in found:
            tag = tags[shard_of_digest(bytes.fromhex(hit.key), 3)]
            entries = await send(store, "XRANGE", names.hits(tag), "-", "+")
            assert hit.key.encode() in [fields[1] for _, fields in entries]

    async def test_old_hits_are_swept(
        self, askonce_store: Store, store: redis.asyncio.Redis
    ) -> None:
        seconds, _ = await store.time()
        for age_s in (7200, 3500, 0):
            at = f"{(seconds - age_s) * 1000}-0"
            await send(store, "XADD", HITS, at, "key", "k")
        sweep = Sweep(
            askonce_store,
            LANES,
            every_s=3600,
            client_retain_s=60,
            lease_ttl_s=10,
            hit_retain_s=3600,
        )
        assert await sweep.once() == 1
        assert await store.xlen(HITS.decode()) == 2

    async def test_what_no_worker_wrote_is_passed_over(
        self, askonce_store: Store, store: redis.asyncio.Redis
    ) -> None:
        for fields in (
            ("a", "b"),
            ("key", "zz", "task", "t", "answer", "{}"),
            ("key", "0" * 64, "task", "t", "answer", "{"),
            ("key", "0" * 64, "task", "t", "answer", '{"label": 5}'),
            ("key", "0" * 64, "task", "t", "answer", "{}", "age_ms", "x"),
            ("key", "0" * 64, "task", b"\xff", "answer", "{}", "age_ms", "5"),
        ):
            await send(store, "XADD", HITS, "*", *fields)
        (hit,) = (await find_hits(askonce_store, Wanted())).hits
        assert hit.task == "\ufffd"


class TestReviews:
    async def test_what_is_flagged_is_taken_back(
        self, askonce_store: Store, store_url: str
    ) -> None:
        model = EchoModel()
        async with worker_of(store_url, model).running(), Client(store_url) as client:
            for text in ("good", "bad"):
                await ask(client, text, times=2)
            hits = {hit.input: hit for hit in await logged(askonce_store, 2)}
            await judge(askonce_store, hits["good"], "fine")
            await judge(askonce_store, hits["bad"], "wrong")

            async def asked_again() -> bool:
                return (await ask(client, "bad"))[0].source == "model"

            await eventually(asked_again)
            assert (await ask(client, "good"))[0].source != "model"
        assert sorted(model.asked) == ["bad", "bad", "good"]
        assert not (await find_hits(askonce_store, Wanted(unreviewed=True))).hits
        found = (await find_hits(askonce_store, Wanted())).hits
        verdicts = {hit.input: hit.review.verdict for hit in found if hit.review}
        assert verdicts == {"good": "fine", "bad": "wrong"}
        totals = (await read_reviews(askonce_store)).totals()
        assert totals.total == totals.tasks["echo"] == Rate(2, 1, 0, 0.5, 0.0945, 0.9055)

    async def test_another_answer_is_to_be_reviewed_again(self, askonce_store: Store) -> None:
        await log_one(askonce_store, answer=b'{"label":"a"}')
        (hit,) = (await find_hits(askonce_store, Wanted(unreviewed=True))).hits
        await judge(askonce_store, hit, "fine")
        await log_one(askonce_store, answer=b'{"label":"a"}')
        assert not (await find_hits(askonce_store, Wanted(unreviewed=True))).hits
        await log_one(askonce_store, answer=b'{"label":"b"}')
        (again,) = (await find_hits(askonce_store, Wanted(unreviewed=True))).hits
        assert again.answer.label == "b"

    async def test_the_latest_word_counts(self, askonce_store: Store) -> None:
        for verdict in ("wrong", "not_cacheable", "fine", "not_cacheable"):
            await record_review(askonce_store, Review("0" * 64, "t", verdict, "x"))
        await record_review(askonce_store, Review("0" * 64, "u", "fine", "x"))
        totals = (await read_reviews(askonce_store)).totals()
        assert (totals.tasks["t"].wrong, totals.tasks["t"].not_cacheable) == (0, 1)
        assert (totals.total.reviewed, totals.total.flagged, totals.total.rate) == (2, 1, 0.5)

    async def test_none(self, askonce_store: Store) -> None:
        totals = (await read_reviews(askonce_store)).totals()
        assert totals.total == Rate(0, 0, 0, None, None, None)
        assert totals.tasks == {}

    async def test_old_ones_do_not_count_and_there_are_not_too_many(
        self,
        askonce_store: Store,
        store: redis.asyncio.Redis,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(hit_reviews, "MOST_REVIEWS", 3)
        seconds, _ = await store.time()
        fields = ("key", "1" * 64, "task", "t", "verdict", "wrong", "answer", "x")
        await send(store, "XADD", REVIEWS, f"{(seconds - 91 * 86_400) * 1000}-0", *fields)
        await send(store, "XADD", REVIEWS, "*", "verdict", "great")
        assert (await read_reviews(askonce_store)).totals().total.reviewed == 0
        assert (await read_reviews(askonce_store, days=92)).totals().total.reviewed == 1
        for number in range(5):
            await record_review(askonce_store, Review(f"{number:064x}", "t", "fine", "x"))
        assert await store.xlen(REVIEWS.decode()) == 3

    async def test_a_decision_that_cannot_be_recorded_comes_again(
        self, askonce_store: Store, store: redis.asyncio.Redis
    ) -> None:
        await log_one(askonce_store)
        (hit,) = (await find_hits(askonce_store, Wanted())).hits
        with pytest.raises(ValueError, match="patterns have"):
            await judge(askonce_store, hit, "wrong", "")
        assert not await store.exists(names.stamps("0").decode())
        await store.set(REVIEWS.decode(), "no stream")
        with pytest.raises(RedisError):
            await judge(askonce_store, hit, "fine")
        await store.delete(REVIEWS.decode())
        assert (await find_hits(askonce_store, Wanted(unreviewed=True))).hits


class TestRules:
    async def test_workers_follow_rules(self, askonce_store: Store, store_url: str) -> None:
        model, book = EchoModel(), RuleBook(askonce_store)
        async with worker_of(store_url, model).running() as worker, Client(store_url) as client:
            for text in ("my balance", "hello"):
                await ask(client, text, times=2)
            rule = Rule("echo", "*balance*")
            await book.add(rule)

            async def bypassed() -> bool:
                return (await ask(client, "My Balance?"))[0].source == "model" and (
                    await ask(client, "My Balance?")
                )[0].source == "model"

            await eventually(bypassed)
            # What is in memory and in the store is not used either.
            assert [reply.source for reply in await ask(client, "my balance", 3)] == ["model"] * 3
            assert (await ask(client, "hello"))[0].source == "memory"
            assert worker.counters.total("calls_bypass") >= 3
            assert await book.remove(rule.id)

            async def kept_again() -> bool:
                return (await ask(client, "my balance"))[0].source != "model"

            await eventually(kept_again)
        assert not await book.remove(rule.id)

    async def test_a_rule_holds_for_the_first_job_of_a_worker(
        self, askonce_store: Store, store_url: str
    ) -> None:
        await RuleBook(askonce_store).add(Rule("echo", "*"))
        await RuleBook(askonce_store).add(Rule("unknown", "*"))
        model = EchoModel()
        async with Client(store_url) as client, worker_of(store_url, model).running():
            replies = await ask(client, times=4)
        assert [reply.source for reply in replies] == ["model"] * 4

    async def test_there_are_not_too_many(self, askonce_store: Store) -> None:
        book = RuleBook(askonce_store)
        for n in range(MOST_RULES):
            await book.add(Rule("t", f"p{n}", at_ms=n))
        await book.add(Rule("t", "p0", at_ms=0))
        with pytest.raises(TooManyRules, match="remove one first"):
            await book.add(Rule("t", "one more"))
        assert [rule.at_ms for rule in await book.read()] == list(range(MOST_RULES))

    async def test_while_they_cannot_be_read_the_old_ones_hold(
        self, askonce_store: Store, store: redis.asyncio.Redis
    ) -> None:
        book = RuleBook(askonce_store)
        tasks = echo_tasks(EchoModel())
        applied = AppliedRules(book, tasks)
        await book.add(Rule("echo", "*"))
        await applied.follow()
        kept_out = tasks["echo"].kept_out
        assert kept_out is not None
        await store.set(RULES.decode(), "no hash")
        await applied.follow()
        assert tasks["echo"].kept_out is kept_out
        await store.delete(RULES.decode())
        await applied.follow()
        assert tasks["echo"].kept_out is None

    async def test_what_is_no_rule_is_passed_over(
        self, askonce_store: Store, store: redis.asyncio.Redis
    ) -> None:
        for number, data in enumerate((b"{", b'{"task":"t"}', b'{"task":"t","pattern":""}')):
            await send(store, "HSET", RULES, str(number), data)
        await RuleBook(askonce_store).add(Rule("t", "x"))
        assert await RuleBook(askonce_store).read() == [Rule("t", "x")]


def seen_hit(task: Task, text: str) -> SeenHit:
    """A hit, with an entry that is enough for the log."""
    answer = Answer(label=text)
    entry = Entry(
        answer, encode_json(answer), born=0, built=0, kept=0, tags=(), shard=0, fresh_until=0
    )
    return SeenHit(Waiter(task, text), entry, "memory", 1.0)


async def log_one(store: Store, answer: bytes = b"{}") -> None:
    hit = LoggedHit("0" * 64, "t", "memory", 5, answer, "text", "")
    await store.run(queue_scripts.log_hits("0", 100, [hit]))
