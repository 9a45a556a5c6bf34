"""Waiting until a write survives its server: WAIT for replicas, WAITAOF for disks.

Both speak of what their own connection wrote before them, so they go in the same pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.exceptions import RedisError

from askonce_queue.scripts import Plain
from askonce_queue.store_config import StoreConfig

_CANNOT = {
    "appendonly is disabled": "wait_fsync needs an AOF: set 'appendonly yes' on every server",
    "unknown command 'WAITAOF'": "wait_fsync needs Redis 7.2 or Valkey 7.2, or newer",
}
"""What a server says that cannot confirm anything → what to do about it."""


class NotConfirmed(RedisError):
    """A write was executed, but might not survive a failover. Repeating it is harmless."""


def confirmation(config: StoreConfig, replicas: int) -> Plain | None:
    """The command that waits for `replicas`, and for disks if configured; None: no need."""
    timeout_ms = max(1, int(config.confirm_s * 1000))  # 0 would wait for ever
    if config.wait_fsync:
        return Plain(("WAITAOF", 1, replicas, timeout_ms))
    return Plain(("WAIT", replicas, timeout_ms)) if replicas else None


def replicas_of(role: Sequence[Any]) -> int:
    """How many replicas must confirm what is to be everywhere, by a server's reply to ROLE.

    A server that is no primary (any more) tells nothing of its successor's, but is one of them.
    """
    return len(role[2]) if role[0] == b"master" else 1


def unconfirmed(reply: Any, config: StoreConfig, replicas: int) -> str:
    """What is wrong with the reply to `confirmation`; '' if nothing is."""
    if isinstance(reply, Exception):
        for refusal, remedy in _CANNOT.items():
            if refusal in str(reply):
                return remedy
        return f"whether replicas have it is unknown: {reply}"
    within = f"within {config.confirm_s:g} s"
    if not config.wait_fsync:
        if int(reply) >= replicas:
            return ""
        return f"{int(reply)} of {replicas} replicas confirmed {within}"
    local, others = int(reply[0]), int(reply[1])
    if local < 1:
        return f"the primary's disk did not confirm {within}"
    return "" if others >= replicas else f"{others} of {replicas} replicas confirmed {within}"
