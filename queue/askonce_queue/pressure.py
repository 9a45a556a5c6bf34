"""The bound on the store's memory: how much of it what cannot be evicted may take.

Answers give way to jobs and replies (`volatile-lfu` evicts what has a TTL), so a full server is the
usual state and no reason to refuse anything. `lua/pressure.lua` finds out what is *held*: all the
memory that eviction could not free, whosever it is. The scripts that add data ask it first, so the
bound holds in the same atomic step as the writing, also while no worker is up. What one call found
serves the next for a second at most, and less the less room there was.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import NamedTuple

_LUA = files("askonce_queue") / "lua"
FUNCTIONS = (_LUA / "pressure.lua").read_text()
PRELUDE = (_LUA / "now.lua").read_text() + FUNCTIONS
"""What stands before `enqueue`, `fill` and `measure`."""

MAX_MEMORY_SHARE = 0.85
"""Enqueueing stops when this share of maxmemory is held. The rest is for the replies to what is
queued, and for what keeps the system alive."""
STOP_FILLS_AT = 0.70
"""Where nothing is evicted, answers stop here: the room up to `MAX_MEMORY_SHARE` is left to jobs,
or answers would keep them out for as long as their TTL."""


class Memory(NamedTuple):
    """What a server's memory is taken by. `max_bytes` is 0 when it has no limit.

    `held_bytes` is what eviction cannot free: all that is used, unless the policy `evicts` answers.
    It is exact to about a fifth of the answers' part, whose sizes are sampled.
    """

    used_bytes: int
    max_bytes: int
    held_bytes: int
    evicts: bool

    @property
    def held_share(self) -> float:
        """The part of maxmemory that is held; 0 without a limit."""
        return self.held_bytes / self.max_bytes if self.max_bytes else 0.0


def read_memory(raw: Sequence[bytes | int]) -> Memory:
    """The result of `queue_scripts.measure`."""
    used, most, held, evicts = map(int, raw)
    return Memory(used, most, held, bool(evicts))
