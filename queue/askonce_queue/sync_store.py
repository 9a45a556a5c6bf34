"""`Store` without asyncio: the same decisions, one shard after the other."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from redis.exceptions import RedisError

from askonce_queue.breaker import Breaker
from askonce_queue.connections import Role, SyncEndpoint
from askonce_queue.durability import HISTORY, NotConfirmed, confirmation, unconfirmed
from askonce_queue.exchange import Exchange, Next, Request
from askonce_queue.scripts import Arg, Call, Plain
from askonce_queue.shards import shard_tags
from askonce_queue.store import ShardDown, report, unreachable, whole
from askonce_queue.store_config import Address, StoreConfig, as_config
from askonce_queue.topology import NotKnown, topology_of


class SyncStore:
    """A synchronous client for a store of any topology; `close()` it. See `Store`."""

    def __init__(
        self,
        store: str | StoreConfig,
        *,
        shards: int = 1,
        role: Role = "commands",
        block_s: float = 2.0,
        max_connections: int = 2,
    ) -> None:
        self.config = config = as_config(store, shards)
        self.tags = shard_tags(config.shards)
        self._role: Role = role
        self._block_s = block_s if role == "blocking" else 0.0
        self._max_connections = max_connections
        self._topology = topology_of(config)
        self._rng = random.Random()
        self._endpoints: dict[tuple[Address, bool], SyncEndpoint] = {}
        self._breakers: defaultdict[str, Breaker] = defaultdict(lambda: Breaker(self._rng))

    @property
    def groups(self) -> list[list[str]]:
        """The shard tags, those together that one command can reach."""
        return [[tag] for tag in self.tags] if self.config.cluster else [list(self.tags)]

    @property
    def confirms(self) -> bool:
        """Whether `run_confirmed` waits for anything, as configured."""
        return confirmation(self.config, self.config.wait_replicas) is not None

    def server_of(self, key: bytes) -> Address | None:
        """The server that holds `key`, as far as known."""
        return self._topology.address(self._topology.group(key))

    def down(self) -> dict[str, Exception]:
        """The shard tags that could not be reached when last asked, and why."""
        return unreachable(self._breakers, self.tags, self.config)

    def run(self, call: Call) -> Any:
        """Run one script. Raises redis-py's errors."""
        return _value(self._ask(self._topology.group(call.keys[0]), [call]))

    def send(self, key: bytes, *words: Arg) -> Any:
        """Send one plain command to the shard that holds `key`. Raises redis-py's errors."""
        return _value(self._ask(self._topology.group(key), [Plain(words)]))

    def run_many(self, calls: Sequence[Call]) -> list[Any]:
        """Run scripts: one result a call, an exception for one that failed."""
        return self._by_group(calls, confirmed=False)

    def run_confirmed(self, calls: Sequence[Call]) -> list[Any]:
        """`run_many`, where a result counts only once it will survive a failover, as configured."""
        return self._by_group(calls, confirmed=True)

    def close(self) -> None:
        """Close all connections."""
        for endpoint in self._endpoints.values():
            endpoint.close()

    def _by_group(self, calls: Sequence[Call], *, confirmed: bool) -> list[Any]:
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for i, call in enumerate(calls):
            groups[self._topology.group(call.keys[0])].append(i)
        results: list[Any] = [None] * len(calls)
        for group, indexes in groups.items():
            part = [calls[i] for i in indexes]
            found = self._confirm(group, part) if confirmed else self._ask(group, part)
            for i, result in zip(indexes, found, strict=True):
                results[i] = result
        return results

    def _confirm(self, group: str, calls: Sequence[Call]) -> list[Any]:
        wait = confirmation(self.config, self.config.wait_replicas)
        if wait is None:
            return self._ask(group, calls)
        asked: list[Request] = [HISTORY, *calls, wait, HISTORY]
        before, *results, confirmed, after = self._ask(group, asked, together=True)
        missing = unconfirmed(
            confirmed, self.config, self.config.wait_replicas, before=before, after=after
        )
        if missing:
            return [r if isinstance(r, Exception) else NotConfirmed(missing) for r in results]
        return results

    def _ask(self, group: str, requests: Sequence[Request], *, together: bool = False) -> list[Any]:
        breaker = self._breakers[group]
        if not breaker.admit(time.monotonic()):
            reason = breaker.last_error
            return [ShardDown(f"not reachable a moment ago: {reason}")] * len(requests)
        exchange = Exchange(
            requests, self._role, self._rng, together=together, second_chance=breaker.closed
        )
        try:
            while not exchange.done:
                self._step(group, exchange)
        except BaseException:
            breaker.abandoned()
            raise
        report(exchange, breaker)
        return exchange.results

    def _step(self, group: str, exchange: Exchange) -> None:
        endpoint: SyncEndpoint | None = None
        try:
            endpoint = self._endpoint(exchange.detour or self._where(group))
            following = exchange.replied(endpoint.exchange(exchange.commands()))
        except (RedisError, OSError) as error:
            following = exchange.failed(error)
        self._prepare(group, exchange, following, endpoint)

    def _prepare(
        self, group: str, exchange: Exchange, following: Next, endpoint: SyncEndpoint | None
    ) -> None:
        """Do what must be done before the next try."""
        host = endpoint.address[0] if endpoint else ""
        if exchange.detour is not None:
            exchange.detour = whole(exchange.detour, host)
        if following.renew and endpoint is not None:
            endpoint.forget_idle()
        if following.pause_s:
            time.sleep(following.pause_s)
        if following.learn:
            with suppress(RedisError, OSError):
                self._learn()
        if exchange.moved_to is not None:
            self._topology.moved(group, whole(exchange.moved_to, host))
            exchange.moved_to = None

    def _where(self, group: str) -> Address:
        address = self._topology.address(group)
        if address is None:
            self._learn()
            address = self._topology.address(group)
        if address is None:
            raise NotKnown("no server holds this shard: are all slots of the cluster covered?")
        return address

    def _endpoint(self, address: Address, *, sentinel: bool = False) -> SyncEndpoint:
        endpoint = self._endpoints.get((address, sentinel))
        if endpoint is None:
            endpoint = self._endpoints[address, sentinel] = SyncEndpoint(
                self.config,
                address,
                block_s=self._block_s,
                max_connections=self._max_connections,
                sentinel=sentinel,
            )
        return endpoint

    def _learn(self) -> None:
        """Ask who holds what, whoever knows. Raises the last error when nobody says."""
        topology = self._topology
        if not topology.question:
            return
        sentinel = bool(self.config.sentinel)
        known = [] if sentinel else list(topology.primaries)
        last: Exception = NotKnown("no server is known")
        for address in dict.fromkeys([*known, *topology.seeds]):
            try:
                endpoint = self._endpoint(address, sentinel=sentinel)
                reply = endpoint.exchange([topology.question])[0]
                if isinstance(reply, Exception):
                    raise reply
                topology.learn(reply, address)
            except (RedisError, OSError) as error:
                last = error
                continue
            return
        raise last


def _value(results: list[Any]) -> Any:
    if isinstance(results[0], Exception):
        raise results[0]
    return results[0]
