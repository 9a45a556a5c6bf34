"""The sentinels: what they announce is where writes are taken."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import ConstantBackoff
from redis.exceptions import AuthenticationError

from askonce_loadtest.servers.sentinel import SentinelSet

PASSWORD = "s3cret"  # noqa: S105 -- a test's own servers
SENTINEL_PASSWORD = "another"  # noqa: S105


def sentinel_client(
    rig: SentinelSet, password: str = "", own: str = "", retries: int = 10
) -> Sentinel:
    """`own` is the password for the sentinels."""
    retry = Retry(ConstantBackoff(0.1), retries)
    return Sentinel(
        rig.addresses,
        sentinel_kwargs={"password": own or None, "protocol": 2, "retry": retry},
        password=password or None,
        protocol=2,
        retry=retry,
    )


async def close(client: Sentinel) -> None:
    for one in client.sentinels:
        await one.aclose()


async def test_a_failover_by_hand_is_announced(tmp_path: Path) -> None:
    async with SentinelSet(tmp_path) as rig:
        old = await rig.primary()
        client = sentinel_client(rig)
        assert await client.discover_master(rig.name) == old.address
        new = await rig.fail_over()
        assert new is not old
        assert await client.discover_master(rig.name) == new.address
        await new.command("SET", "key", "value")
        await close(client)


async def test_a_killed_primary_is_replaced_and_comes_back_as_a_replica(tmp_path: Path) -> None:
    async with SentinelSet(tmp_path, password=PASSWORD, sentinel_password=SENTINEL_PASSWORD) as rig:
        for known in ("", SENTINEL_PASSWORD):  # to whom the other password is not
            refused = sentinel_client(rig, own=known, retries=0)
            async with refused.master_for(rig.name) as master:
                with pytest.raises((MasterNotFoundError, AuthenticationError)):
                    await master.ping()
            await close(refused)
        client = sentinel_client(rig, PASSWORD, SENTINEL_PASSWORD)
        async with client.master_for(rig.name) as master:
            await master.set("key", "value")
            assert await master.wait(1, 5000) == 1
            killed = await rig.kill_primary()
            new = await rig.wait_new_primary(killed)
            assert new is not killed
            assert await master.get("key") == b"value"
            await master.set("key", "later")
            await rig.rejoin(killed)
            assert (await killed.info("replication"))["role"] == "slave"
            assert await killed.command("GET", "key") == "later"
        await close(client)
