"""`askonce stats`, `invalidate` and `doctor`, on a real store."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from askonce_queue import names
from askonce_queue.connections import connect, connect_sync
from askonce_queue.embedded import EmbeddedStore
from askonce_queue.store import Store
from askonce_worker.cache.invalidation import invalidate
from askonce_worker.observe.totals import read_fleet
from tests.support.askonce_command import CONFIG, Askonce
from tests.support.waiting import eventually

PROMPT = 'labels = ["long", "short"]\nsystem = "Today is 2026-11-21. Judge {user_id}."'
TEXTS = [{"text": "hello"}, {"text": "hello"}, {"text": "hello, world"}]


@pytest.fixture
def askonce(tmp_path: Path) -> Iterator[Askonce]:
    with Askonce(tmp_path) as command:
        command.write("in.jsonl", TEXTS)
        yield command


def with_redis(url: str) -> str:
    return f'[redis]\nurl = "{url}"\n{CONFIG}'


# stats


def test_stats_of_a_new_store(askonce: Askonce) -> None:
    stats = json.loads(askonce("stats", "askonce.toml", "--json").stdout)
    assert stats["tasks"] == {}
    assert stats["workers"] == []
    assert stats["total"]["hit_rate"] is None
    empty = {"backlog": 0, "deferred": 0, "pending": 0, "oldest_s": 0.0}
    assert stats["lanes"]["bulk"] == empty
    assert "live workers" in askonce("stats", "askonce.toml").stdout


def test_stats_say_what_was_answered_from_where_and_what_waits(askonce: Askonce) -> None:
    askonce.write("mixed.jsonl", [*TEXTS, {"text": "fail"}])
    askonce.run("mixed.jsonl", code=1)
    askonce.run("in.jsonl")
    askonce("enqueue", "askonce.toml", "in.jsonl", "--task", "size", "--lane", "interactive")
    stats = json.loads(askonce("stats", "askonce.toml", "--json").stdout)
    size = stats["tasks"]["size"]
    assert (size["misses"], size["errors"]) == (2, 1)
    assert sum(size["hits"].values()) == 4
    assert size["hit_rate"] == pytest.approx(4 / 6, abs=1e-3)
    assert size["model_calls"] == {"fill": 3}
    assert size["failures"] == {"model_failed": 1}
    assert stats["total"] == size
    assert stats["jobs"]["settled"] == 7
    waiting = stats["lanes"]["interactive"]
    assert (waiting["backlog"], waiting["pending"]) == (3, 0)
    assert waiting["oldest_s"] > 0
    assert stats["answers"] == 2
    assert stats["store_bytes"] > 0
    assert stats["store_max_bytes"] == 1 << 30
    shown = askonce("stats", "askonce.toml").stdout
    assert "66.7%" in shown
    assert "backlog interactive   3 (0 pending, the oldest for" in shown


async def test_stats_count_workers_that_are_alive_and_dead_letters(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    beats = names.beats("0", "default").decode()
    await store.hset(beats, "dead", "1000")
    await store.hset(beats, "alive", "99999999999999")
    await store.xadd(names.dead("0", "default").decode(), {"code": "poison"})
    await store.hset(names.stats("0").decode(), "odd%7Ctask|memory", "3")
    fleet = Store(store_url)
    state = await read_fleet(fleet, "default")
    await fleet.aclose()
    assert state.workers == ["alive"]
    assert state.dead_letters == 1
    assert state.tasks["odd|task"].hits["memory"] == 3


# invalidate


def test_an_invalidated_task_is_asked_again(askonce: Askonce) -> None:
    askonce.run("in.jsonl")
    done = askonce("invalidate", "askonce.toml", "--task", "size")
    assert done.stdout.startswith("invalidated: task:size (1 of 1 shards confirmed)")
    askonce.run("in.jsonl")
    assert askonce.summary()["model_calls"] == 2
    askonce("invalidate", "askonce.toml", "--tag", "somebody-else's")
    askonce.run("in.jsonl")
    assert askonce.summary()["model_calls"] == 0
    askonce("invalidate", "askonce.toml", "--all")
    askonce.run("in.jsonl")
    assert askonce.summary()["model_calls"] == 2


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((), "say what to invalidate"),
        (("--all", "--task", "size"), "say what to invalidate"),
        (("--task", "sice"), "no task 'sice' (did you mean 'size'?)"),
        (("--tag", "line\nbreak"), "tags are 1 to 200 printable characters"),
    ],
)
def test_what_cannot_be_invalidated(askonce: Askonce, args: tuple[str, ...], expected: str) -> None:
    assert expected in askonce("invalidate", "askonce.toml", *args, code=2).stderr


def test_a_task_of_the_past_can_be_forced(askonce: Askonce) -> None:
    done = askonce("invalidate", "askonce.toml", "--task", "gone", "--force")
    assert "task:gone" in done.stdout


@asynccontextmanager
async def replica_of(
    store: redis.asyncio.Redis, folder: Path
) -> AsyncGenerator[redis.asyncio.Redis]:
    """A second server that copies the first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    await store.config_set("port", str(port))
    await store.config_set("repl-diskless-sync-delay", "0")
    async with EmbeddedStore(folder, maxmemory="64mb") as embedded:
        replica = connect(embedded.url, role="commands")
        try:
            await replica.execute_command("REPLICAOF", "127.0.0.1", str(port))

            async def linked() -> bool:
                info: dict[str, Any] = await replica.info("replication")
                return info.get("master_link_status") == "up"

            await eventually(linked, timeout_s=30)
            yield replica
            await replica.execute_command("REPLICAOF", "NO", "ONE")
        finally:
            await replica.aclose()


async def test_an_invalidation_is_complete_when_the_replicas_have_it(tmp_path: Path) -> None:
    async with EmbeddedStore(tmp_path / "primary", maxmemory="64mb") as embedded:
        primary = connect(embedded.url, role="commands")
        store = Store(embedded.url, shards=2)
        first = store.tags[0]
        try:
            async with replica_of(primary, tmp_path / "replica") as replica:
                done = await invalidate(store, ["a"])
                assert done.complete
                assert set(done.stamps) == set(store.tags)
                assert await replica.hget(names.stamps(first).decode(), "inv") is not None
                await replica.execute_command("CLIENT", "PAUSE", "5000", "ALL")
                late = await invalidate(store, ["a"])
                assert not late.complete
                assert set(late.failures) == set(store.tags)
                assert "0 of 1 replicas confirmed" in late.failures[first]
                await replica.execute_command("CLIENT", "UNPAUSE")
        finally:
            await store.aclose()
            await primary.aclose()


async def test_an_invalidation_without_a_store_is_incomplete() -> None:
    store = Store("redis://127.0.0.1:1/0")
    try:
        done = await invalidate(store, everything=True)
        assert not done.complete
        with pytest.raises(ValueError, match="at most 500"):
            await invalidate(store, ["t"] * 501)
    finally:
        await store.aclose()


# doctor


def doctor(askonce: Askonce, code: int = 0) -> dict[str, list[tuple[str, str]]]:
    """Status and message of each check, by name."""
    report = json.loads(askonce("doctor", "askonce.toml", "--json", code=code).stdout)
    assert report["ok"] == (code == 0)
    found: dict[str, list[tuple[str, str]]] = {}
    for check in report["checks"]:
        found.setdefault(check["name"], []).append((check["status"], check["message"]))
    return found


def test_doctor_finds_everything_in_place(askonce: Askonce) -> None:
    checks = doctor(askonce)
    assert {status for found in checks.values() for status, _ in found} == {"ok"}
    assert set(checks) == {
        "configuration",
        "store",
        "store shards",
        "store persistence",
        "store eviction",
        "store memory",
        "store memory held",
        "store latency",
        "model sizes",
    }
    shown = askonce("doctor", "askonce.toml").stdout
    assert "ok    store latency" in shown
    assert askonce.calls() == []


def test_doctor_finds_a_date_in_a_prompt(askonce: Askonce) -> None:
    askonce.configure(CONFIG.replace('labels = ["long", "short"]', PROMPT))
    found = doctor(askonce)["prompt size"]
    assert [status for status, _ in found] == ["warn"] * 3
    assert "has a date ('2026-11-21')" in found[2][1]
    assert "{user_id}" in found[1][1]
    assert "warn  prompt size" in askonce("doctor", "askonce.toml").stdout


def test_doctor_changes_nothing_in_the_store(askonce: Askonce, tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path / "other", maxmemory="64mb") as embedded:
        askonce.configure(with_redis(embedded.url))
        store = connect_sync(embedded.url, role="commands")
        try:
            before = store.info("stats")["total_commands_processed"]
            doctor(askonce)
            assert store.dbsize() == 0
            commands: dict[str, Any] = store.info("commandstats")
            assert store.info("stats")["total_commands_processed"] > before
            wrote = {name for name in commands if name.startswith(("cmdstat_h", "cmdstat_e"))}
            assert wrote <= {"cmdstat_hello", "cmdstat_hget", "cmdstat_evalsha", "cmdstat_eval"}
        finally:
            store.close()


def test_doctor_says_what_is_wrong_with_the_store(askonce: Askonce, tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path / "other", maxmemory="64mb") as embedded:
        askonce.configure(with_redis(embedded.url))
        store = connect_sync(embedded.url, role="commands")
        try:
            store.config_set("appendonly", "no")
            store.config_set("maxmemory-policy", "volatile-lru")
            store.config_set("maxmemory", "0")
            store.hset(names.META.decode(), "shards", "4")
            checks = doctor(askonce, code=1)
            assert checks["store persistence"][0][0] == "warn"
            assert "appendonly yes" in checks["store persistence"][0][1]
            assert checks["store eviction"][0][0] == "warn"
            assert checks["store memory"][0][0] == "warn"
            assert checks["store shards"][0][0] == "fail"
            store.config_set("maxmemory-policy", "allkeys-lru")
            (failure,) = doctor(askonce, code=1)["store"]
            assert failure[0] == "fail"
            assert "volatile-lfu" in failure[1]
            store.config_set("maxmemory-policy", "noeviction")
            assert doctor(askonce, code=1)["store eviction"][0][0] == "ok"
        finally:
            store.close()


def test_doctor_says_when_jobs_or_answers_are_refused(askonce: Askonce, tmp_path: Path) -> None:
    with EmbeddedStore(tmp_path / "other", maxmemory="32mb") as embedded:
        askonce.configure(with_redis(embedded.url))
        store = connect_sync(embedded.url, role="commands")
        try:
            for number in range(240):
                store.set(f"a:{{0}}:{number}", bytes(100_000), ex=600)
            assert doctor(askonce)["store memory held"][0][0] == "ok"  # answers give way
            store.config_set("maxmemory-policy", "noeviction")
            status, message = doctor(askonce)["store memory held"][0]
            assert status == "warn"
            assert "answers are not kept" in message
            for number in range(40):
                store.set(f"somebody else's {number}", bytes(100_000))
            status, message = doctor(askonce)["store memory held"][0]
            assert status == "warn"
            assert "jobs are refused" in message
        finally:
            store.close()


def test_doctor_goes_on_when_something_is_missing(askonce: Askonce) -> None:
    askonce.configure(
        with_redis("redis://:hunter2@127.0.0.1:1/0").replace(":classify", ":classifi")
        + '[models.gpt]\nkind = "openai"\nbase_url = "http://127.0.0.1:1/v1"\nmodel = "m"\n'
        + '[models.keyed]\nkind = "openai"\nbase_url = "http://127.0.0.1:1/v1"\nmodel = "m"\n'
        + 'api_key_env = "ASKONCE_TEST_NO_SUCH_KEY"\n'
    )
    checks = doctor(askonce, code=1)
    for name in ("store", "model sizes", "model gpt", "model keyed"):
        assert [status for status, _ in checks[name]] == ["fail"]
    assert "ASKONCE_TEST_NO_SUCH_KEY" in checks["model keyed"][0][1]
    assert "hunter2" not in str(checks)
    assert "FAIL  model gpt" in askonce("doctor", "askonce.toml", code=1).stdout


def test_doctor_on_a_broken_configuration(askonce: Askonce) -> None:
    askonce.configure("[tasks")
    done = askonce("doctor", "askonce.toml", "--json", code=2)
    assert json.loads(done.stdout)["checks"][0]["status"] == "fail"
    assert len(done.stderr.splitlines()) == 1
