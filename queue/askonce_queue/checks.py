"""Checks that a store is one askonce can run on, made before anything is written to it."""

from __future__ import annotations

import re
from typing import Any

from redis.exceptions import RedisError

from askonce_queue import names
from askonce_queue.errors import ConfigError, StoreUnavailable
from askonce_queue.queue_scripts import record_shards
from askonce_queue.store import Store
from askonce_queue.store_config import Address
from askonce_queue.sync_store import SyncStore


def parse_info(reply: bytes) -> dict[str, str]:
    """The fields of an INFO reply."""
    lines = (line.partition(":") for line in reply.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


async def check_store(store: Store) -> None:
    """Raise `StoreUnavailable` unless the store answers, is new enough and evicts only answers.

    Of a cluster, at least one primary has to answer; those that don't are not looked at.
    """
    try:
        replies = await store.ask_servers("INFO")
    except (RedisError, OSError) as error:
        raise _unreachable(error) from error
    _check_servers(replies, cluster=store.config.cluster)


async def check_shards(store: Store) -> None:
    """Record the number of shards in a new store; raise `ConfigError` if it has another one.

    With another number, jobs and answers would be looked for where they are not.
    """
    shards = store.config.shards
    _compare_shards(shards, await store.run(record_shards(shards)))


async def recorded_shards(store: Store) -> int | None:
    """The number of shards the store was set up with; None: nobody has used it yet."""
    recorded = await store.send(names.META, "HGET", names.META, "shards")
    return None if recorded is None else int(recorded)


def check_shards_sync(store: SyncStore) -> None:
    """`check_shards` on a synchronous client."""
    shards = store.config.shards
    _compare_shards(shards, store.run(record_shards(shards)))


def _check_servers(replies: dict[Address, Any], *, cluster: bool) -> None:
    answered = {a: parse_info(r) for a, r in replies.items() if not isinstance(r, Exception)}
    if not answered:
        failures = [reply for reply in replies.values() if isinstance(reply, Exception)]
        raise _unreachable(failures[0]) from failures[0]
    for info in answered.values():
        _check_server(info, cluster=cluster)


def _check_server(info: dict[str, str], *, cluster: bool) -> None:
    # Valkey calls itself Redis 7.2.4 for old clients' sake, whatever its own version is.
    is_valkey = "valkey_version" in info
    name, oldest = ("Valkey", (7, 2)) if is_valkey else ("Redis", (7, 0))
    version = info["valkey_version" if is_valkey else "redis_version"]
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < oldest:
        raise StoreUnavailable(
            f"the store is {name} {version}; askonce needs Redis 7.0 or Valkey 7.2, or newer"
        )
    if (info.get("cluster_enabled") == "1") != cluster:
        raise ConfigError(
            "[redis] cluster: the store is "
            + (
                "not a cluster: remove cluster = true"
                if cluster
                else "a cluster: set cluster = true"
            )
        )
    policy = info["maxmemory_policy"]
    if policy.startswith("allkeys-"):
        raise StoreUnavailable(
            f"the store's maxmemory-policy is {policy}, which would evict accepted jobs; "
            "set it to volatile-lfu (only answers carry a TTL)"
        )


def _unreachable(error: Exception) -> StoreUnavailable:
    return StoreUnavailable(
        f"the store does not answer: {error}. Check [redis] url, and that the server runs"
    )


def _compare_shards(shards: int, recorded: bytes) -> None:
    if int(recorded) != shards:
        raise ConfigError(
            f"[redis] shards is {shards}, but this store was set up with "
            f"{recorded.decode()}: use that number, or an empty database"
        )
