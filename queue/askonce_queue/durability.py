"""Waiting until a write survives its server: WAIT for replicas, WAITAOF for disks.

Both speak of what their own connection wrote before them, so they go in the same pipeline. And both
compare offsets, which say something within one history only: a server that loses its shard to a
replica while somebody waits, and gets it back, may confirm what it has thrown away in between
(Valkey 9.1 does). So the history is read before and after, and must be the same.
"""

from __future__ import annotations

import re
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


HISTORY = Plain(("INFO", "replication"))
"""Names the history of a server's data; it gets a new one with every change of the primary."""
_HISTORY = re.compile(rb"^master_replid:(\w+)", re.MULTILINE)


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


def unconfirmed(reply: Any, config: StoreConfig, replicas: int, *, before: Any, after: Any) -> str:
    """What is wrong with the reply to `confirmation`; '' if nothing is.

    `before` and `after`: the replies to `HISTORY` around what is to be confirmed.
    """
    changed = _changed(before, after)
    if changed or isinstance(reply, Exception):
        return changed or _refused(reply)
    within = f"within {config.confirm_s:g} s"
    confirmed = int(reply[1] if config.wait_fsync else reply)
    if config.wait_fsync and int(reply[0]) < 1:
        return f"the primary's disk did not confirm {within}"
    return "" if confirmed >= replicas else f"{confirmed} of {replicas} replicas confirmed {within}"


def _changed(before: Any, after: Any) -> str:
    """Whether the server may have thrown away what it was told in between."""
    for told in (before, after):
        if isinstance(told, Exception):
            return f"whether the server has kept it is unknown: {told}"
    if _HISTORY.findall(before) != _HISTORY.findall(after):
        return "the shard went to another server meanwhile"
    return ""


def _refused(error: Exception) -> str:
    for refusal, remedy in _CANNOT.items():
        if refusal in str(error):
            return remedy
    return f"whether replicas have it is unknown: {error}"
