"""Which server holds which shard: one server, the primary that sentinels name, or a cluster's map.

Pure: `Store` does the asking. A topology is learnt from the answer to `question`, put to any of
`seeds`; MOVED replies correct it in between. Sources: Redis Cluster specification ("Clients first
connection and handling of redirections"), Sentinel client guidelines.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, Protocol

from redis.exceptions import RedisError

from askonce_queue.shards import slot_of
from askonce_queue.store_config import Address, StoreConfig

UNANNOUNCED = "?"
"""What a server gives for a host that it does not know."""
SINGLE = ""
"""The name of the one group of shards of a store that has one server."""


class NotKnown(RedisError):
    """Nobody asked has said yet which server holds a shard."""


class Topology(Protocol):
    """What a `Store` needs to know of its servers."""

    @property
    def question(self) -> tuple[str, ...]:
        """The command whose reply `learn` reads; empty when there is nothing to ask."""
        ...

    @property
    def seeds(self) -> list[Address]:
        """Whom to ask, beside the primaries."""
        ...

    @property
    def primaries(self) -> list[Address]:
        """The servers that hold shards, as far as known."""
        ...

    def group(self, key: bytes) -> str:
        """What shares a pipeline and a breaker with `key`: its hash tag, in a cluster."""
        ...

    def address(self, group: str) -> Address | None:
        """Where a group is; None when that is not known."""
        ...

    def learn(self, reply: Any, asked: Address) -> None:
        """Take the reply to `question`. Raises `NotKnown` when it does not say."""
        ...

    def moved(self, group: str, to: Address) -> None:
        """A server said that a group is elsewhere."""
        ...


class OneServer:
    """A server whose address never changes."""

    question: tuple[str, ...] = ()

    def __init__(self, address: Address) -> None:
        self.seeds: list[Address] = []
        self.primaries = [address]

    def group(self, key: bytes) -> str:
        """All is one group."""
        del key
        return SINGLE

    def address(self, group: str) -> Address | None:
        """Always the same."""
        del group
        return self.primaries[0]

    def learn(self, reply: Any, asked: Address) -> None:
        """There is nothing to learn."""

    def moved(self, group: str, to: Address) -> None:
        """A server without a cluster says no such thing."""


class SentinelPrimary:
    """The server that sentinels call the primary of `name`."""

    def __init__(self, name: str, sentinels: list[Address]) -> None:
        self.question: tuple[str, ...] = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)
        self.seeds = sentinels
        self.primaries: list[Address] = []

    def group(self, key: bytes) -> str:
        """All is one group."""
        del key
        return SINGLE

    def address(self, group: str) -> Address | None:
        """As the last sentinel said."""
        del group
        return self.primaries[0] if self.primaries else None

    def learn(self, reply: Any, asked: Address) -> None:
        """Read `[host, port]`."""
        if not reply:
            raise NotKnown(f"the sentinel at {asked[0]}:{asked[1]} knows no {self.question[2]!r}")
        self.primaries = [(_text(reply[0]), int(reply[1]))]

    def moved(self, group: str, to: Address) -> None:
        """A server without a cluster says no such thing."""


class ClusterMap:
    """The primaries of a cluster by hash slot."""

    question: tuple[str, ...] = ("CLUSTER", "SLOTS")

    def __init__(self, nodes: list[Address]) -> None:
        self.seeds = nodes
        self._starts: list[int] = []
        self._ranges: list[tuple[int, Address]] = []
        self._corrections: dict[str, Address] = {}

    @property
    def primaries(self) -> list[Address]:
        """Each once, in the order of their slots."""
        return list(dict.fromkeys(address for _, address in self._ranges))

    def group(self, key: bytes) -> str:
        """The hash tag of `key`: all of a shard falls in one slot."""
        return hash_tag(key)

    def address(self, group: str) -> Address | None:
        """The primary of the group's slot."""
        if group in self._corrections:
            return self._corrections[group]
        slot = slot_of(group)
        at = bisect_right(self._starts, slot) - 1
        if at < 0 or slot > self._ranges[at][0]:
            return None
        return self._ranges[at][1]

    def learn(self, reply: Any, asked: Address) -> None:
        """Read `[[first slot, last slot, [host, port, …], replicas …], …]`."""
        ranges = sorted(
            (int(row[0]), int(row[1]), (_host(row[2]) or asked[0], int(row[2][1]))) for row in reply
        )
        if not ranges:
            raise NotKnown(f"the node at {asked[0]}:{asked[1]} knows of no slots")
        self._starts = [first for first, _, _ in ranges]
        self._ranges = [(last, address) for _, last, address in ranges]
        self._corrections.clear()

    def moved(self, group: str, to: Address) -> None:
        """Believe a MOVED until the whole map is read again."""
        self._corrections[group] = to


def topology_of(config: StoreConfig) -> Topology:
    """The kind of topology that a configuration describes, of which nothing is known yet."""
    addresses = config.addresses
    if config.cluster:
        return ClusterMap(addresses)
    if config.sentinel:
        return SentinelPrimary(config.sentinel, addresses)
    return OneServer(addresses[0])


def hash_tag(key: bytes) -> str:
    """The part of a key that decides its slot: what is in the first braces, else all of it."""
    _, opened, rest = key.partition(b"{")
    tag, closed, _ = rest.partition(b"}")
    return (tag if opened and closed and tag else key).decode("latin-1")


def _host(node: list[Any]) -> str:
    """The host of `[host, port, id, [name, value, …]]`, "" if it is that of whoever says so.

    A node that is to announce a hostname and has none says "?", and its address among the rest.
    """
    host = _text(node[0] or b"")
    if host != UNANNOUNCED:
        return host
    rest: list[bytes] = node[3] if len(node) > 3 else []  # noqa: PLR2004 -- see above
    return _text(dict(zip(rest[::2], rest[1::2], strict=False)).get(b"ip", b""))


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
