"""WAIT and WAITAOF: when they are sent, and what their replies mean."""

from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import ResponseError

from askonce_queue.durability import confirmation, replicas_of, unconfirmed
from askonce_queue.store_config import StoreConfig


def config(**options: Any) -> StoreConfig:
    return StoreConfig(url="redis://h", **options)


KEPT = b"# Replication\r\nrole:master\r\nmaster_replid:f1305e\r\nmaster_replid2:ec4fb0\r\n"
OTHER = KEPT.replace(b"f1305e", b"ec4fb0")


@pytest.mark.parametrize(
    ("options", "replicas", "words"),
    [
        ({}, 0, None),
        ({}, 2, ("WAIT", 2, 2000)),
        ({"wait_replicas": 1}, 1, ("WAIT", 1, 2000)),
        ({"wait_replicas": 1, "wait_timeout_s": 0.25}, 1, ("WAIT", 1, 250)),
        ({"wait_fsync": True}, 0, ("WAITAOF", 1, 0, 2000)),
        ({"wait_fsync": True, "wait_replicas": 2}, 2, ("WAITAOF", 1, 2, 2000)),
        # 0 would wait for ever.
        ({"wait_replicas": 1, "wait_timeout_s": 0.0001}, 1, ("WAIT", 1, 1)),
    ],
)
def test_what_is_sent(
    options: dict[str, Any], replicas: int, words: tuple[Any, ...] | None
) -> None:
    command = confirmation(config(**options), replicas)
    assert (command and command.command("EVALSHA")) == words


@pytest.mark.parametrize(
    ("options", "replicas", "reply", "missing"),
    [
        ({}, 2, 2, ""),
        ({}, 2, 3, ""),
        ({}, 2, 1, "1 of 2 replicas confirmed within 2 s"),
        ({"wait_timeout_s": 0.25}, 1, 0, "0 of 1 replicas confirmed within 0.25 s"),
        ({"wait_fsync": True}, 0, [1, 0], ""),
        ({"wait_fsync": True}, 0, [0, 0], "the primary's disk did not confirm within 2 s"),
        ({"wait_fsync": True}, 1, [1, 1], ""),
        ({"wait_fsync": True}, 1, [1, 0], "0 of 1 replicas confirmed within 2 s"),
        ({"wait_fsync": True}, 1, [0, 1], "the primary's disk did not confirm within 2 s"),
    ],
)
def test_what_the_reply_means(
    options: dict[str, Any], replicas: int, reply: Any, missing: str
) -> None:
    told = unconfirmed(reply, config(**options), replicas, before=KEPT, after=KEPT)
    assert told == missing


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (
            "ERR WAITAOF cannot be used when numlocal is set but appendonly is disabled.",
            "set 'appendonly yes'",
        ),
        (
            "ERR unknown command 'WAITAOF', with args beginning with: '1' '0' '1000' ",
            "needs Redis 7.2",
        ),
        ("ERR WAIT cannot be used with replica instances.", "whether replicas have it is unknown"),
    ],
)
def test_a_store_that_cannot_confirm(refusal: str, said: str) -> None:
    """What will not pass by itself is told as what it is: enqueueing again would not help."""
    error = ResponseError(refusal)
    assert said in unconfirmed(error, config(wait_fsync=True), 0, before=KEPT, after=KEPT)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (KEPT, OTHER, "the shard went to another server meanwhile"),
        (KEPT, b"# Replication\r\nrole:slave\r\n", "the shard went to another server meanwhile"),
        (ResponseError("NOPERM"), KEPT, "whether the server has kept it is unknown: NOPERM"),
        (KEPT, ResponseError("LOADING"), "whether the server has kept it is unknown: LOADING"),
        (b"", b"", ""),  # a server that hides it
    ],
)
def test_who_changed_its_history_confirms_nothing(before: Any, after: Any, said: str) -> None:
    assert unconfirmed(1, config(wait_replicas=1), 1, before=before, after=after) == said


ROLES: list[tuple[list[Any], int]] = [
    ([b"master", 3129659, []], 0),
    ([b"master", 3129659, [[b"10.0.0.1", b"7001", b"3129242"]] * 2], 2),
    ([b"slave", b"10.0.0.1", 7001, b"connected", 3167038], 1),
    ([b"slave", b"10.0.0.1", 7001, b"connect", -1], 1),
]


@pytest.mark.parametrize(("role", "replicas"), ROLES)
def test_every_replica_is_counted_by_the_primary(role: list[Any], replicas: int) -> None:
    """https://valkey.io/commands/role/"""
    assert replicas_of(role) == replicas
