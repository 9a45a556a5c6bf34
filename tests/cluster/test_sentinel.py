"""The primary that sentinels name: found with passwords, replaced when it dies, followed by all."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from pathlib import Path

import msgspec
import pytest
from redis.exceptions import RedisError

from askonce_loadtest.servers.sentinel import SentinelSet
from askonce_queue import Client, Job, Reply, StoreUnavailable, names, queue_scripts
from askonce_queue.checks import check_store
from askonce_queue.shards import shard_tags
from askonce_queue.store import Store
from tests.support.cluster_work import AnyStore, sentinel_config, store_of, succeeds, worker_on
from tests.support.waiting import eventually

PASSWORD, SENTINEL_PASSWORD, VARIABLE = "p/w@1", "s3ntinel", "SENTINEL_PASSWORD"
TAGS = shard_tags(2)
COUNTED = [queue_scripts.count(tag, {"x|y": 1}) for tag in TAGS]


async def replies_to(client: Client, jobs: list[Job]) -> list[Reply]:
    """The replies to jobs that are enqueued until they are confirmed."""

    async def accepted() -> bool:
        try:
            await client.enqueue_many(jobs)
        except StoreUnavailable:
            return False
        return True

    await eventually(accepted, timeout_s=20)
    replies = client.replies()
    async with asyncio.timeout(20):
        return [await anext(replies) for _ in jobs]


def jobs(prefix: str) -> list[Job]:
    return [Job(task="echo", text=f"{prefix} {n}", id=f"{prefix}{n}") for n in range(40)]


async def test_a_primary_that_dies_and_one_that_is_relieved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, SENTINEL_PASSWORD)
    async with SentinelSet(tmp_path, password=PASSWORD, sentinel_password=SENTINEL_PASSWORD) as rig:
        config = sentinel_config(rig, shards=2, sentinel_password_env=VARIABLE)
        await refuses_strangers(rig)
        async with (
            store_of(config) as store,
            store_of(config, "sync") as threaded,
            store_of(config, role="blocking") as blocking,
            worker_on(config).running(),
            Client(config, name="c") as client,
        ):
            clients: tuple[AnyStore, ...] = (store, threaded)

            async def all_work() -> None:
                for one in clients:
                    for call in COUNTED:
                        await succeeds(partial(one.run, call))
                await succeeds(partial(blocking.send, names.META, "EXISTS", names.META))

            await all_work()
            first = jobs("first")
            assert_echoed(await replies_to(client, first), first)
            killed = await rig.kill_primary()
            new = await rig.wait_new_primary(killed)
            # It stays dead: nobody is sent back to it.
            await all_work()
            second = jobs("second")
            assert_echoed(await replies_to(client, second), second)
            assert isinstance(store, Store)
            assert store.server_of(names.META) == new.address
            await rig.rejoin(killed)
            careful = msgspec.structs.replace(config, wait_replicas=1)
            async with Client(careful, name="careful") as patient:
                assert await rig.fail_over() is killed
                # The old primary takes writes, and loses them, until it is told what it is now.
                third = jobs("third")
                assert_echoed(await replies_to(patient, third), third)
            await rig.wait_healthy()
            await all_work()
            assert store.server_of(names.META) == killed.address


def assert_echoed(replies: list[Reply], asked: list[Job]) -> None:
    assert Counter(reply.id for reply in replies) == Counter(job.id for job in asked)
    assert all(reply.answer is not None for reply in replies)


async def refuses_strangers(rig: SentinelSet) -> None:
    """Who lacks a password, or asks for another name, is told so."""
    good = {"sentinel_password_env": VARIABLE}
    strangers: list[tuple[dict[str, str], str]] = [
        ({}, "[Aa]uthentication required"),
        ({"password": "wrong", **good}, "invalid username-password pair"),
        ({"name": "other", **good}, "knows no 'other'"),
    ]
    for options, said in strangers:
        async with store_of(sentinel_config(rig, **options)) as store:
            assert isinstance(store, Store)
            with pytest.raises(StoreUnavailable, match=said) as caught:
                await check_store(store)
        assert PASSWORD not in str(caught.value)
        assert SENTINEL_PASSWORD not in str(caught.value)
    async with store_of(sentinel_config(rig, **good)) as store:
        assert isinstance(store, Store)
        await check_store(store)


async def test_sentinels_that_are_gone(tmp_path: Path) -> None:
    """One that answers is enough; with none, what was known is used, and nothing new is learnt."""
    async with SentinelSet(tmp_path) as rig:
        config = sentinel_config(rig)
        async with store_of(config) as store, store_of(config, "sync") as threaded:
            for sentinel in rig.sentinels[:2]:
                sentinel.kill()
            await store.run(COUNTED[0])
            rig.sentinels[2].kill()
            await store.run(COUNTED[0])
            with pytest.raises(RedisError):
                await threaded.run(COUNTED[0])
