"""The store, whatever it is made of: each request goes to the server that holds its shard.

What shares a server's fate shares a pipeline and a circuit breaker: in a cluster one shard, else
all shards together. A dead primary therefore delays only requests for its own shards, provided that
callers do not wait for several shards at once: every long-running loop serves one shard.

Two roles keep their own `Store`, because their time limits and retries contradict each other:
`commands` re-sends after a lost reply, which is safe because every script is idempotent; `blocking`
(XREADGROUP with BLOCK) never does, because a re-sent read leaves the first one's deliveries pending
with nobody who knows of them. After any error of a blocking read, read your own pending entries.
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import anyio
from redis.exceptions import ConnectionError as StoreDown
from redis.exceptions import RedisError

from askonce_queue.breaker import Breaker
from askonce_queue.connections import Endpoint, Role, Words
from askonce_queue.durability import (
    HISTORY,
    NotConfirmed,
    confirmation,
    replicas_of,
    unconfirmed,
)
from askonce_queue.exchange import Exchange, Next, Request
from askonce_queue.scripts import Arg, Call, Plain
from askonce_queue.shards import shard_tags
from askonce_queue.store_config import Address, StoreConfig, as_config
from askonce_queue.topology import SINGLE, UNANNOUNCED, NotKnown, topology_of

LEARN_EVERY_S = 0.05
"""The least time between two readings of the topology: failures come in crowds."""
SECOND_CHANCE_S = 2.0
"""How long the reply may take on a new connection, after a time-out on an old one, and to a probe;
beside what WAIT or BLOCK may take."""
PROBE_WAIT_S = 0.25
"""How long a request waits for the outcome of another's probe."""
LEARN_TIMEOUT_S = 1.5
"""How long one server may take to describe the topology before another is asked."""


class ShardDown(StoreDown):
    """A shard could not be reached a moment ago, and is not asked again just now."""


class Store:
    """An asyncio client for a store of any topology. Connects on first use; `aclose()` it.

    `block_s` is the longest BLOCK that a caller in the role `blocking` may use. A request beyond
    `max_connections` to one server waits for a free connection. All replies are as on the wire in
    RESP2: bytes, ints, lists, None. Raises `ConfigError` when `store` cannot be read.
    """

    def __init__(
        self,
        store: str | StoreConfig,
        *,
        shards: int = 1,
        role: Role = "commands",
        block_s: float = 2.0,
        max_connections: int = 16,
    ) -> None:
        self.config = config = as_config(store, shards)
        self.tags = shard_tags(config.shards)
        """The hash tag of each shard."""
        self._role: Role = role
        self._block_s = block_s if role == "blocking" else 0.0
        self._max_connections = max_connections
        self._topology = topology_of(config)
        self._rng = random.Random()
        self._endpoints: dict[Address, Endpoint] = {}
        self._sentinels: dict[Address, Endpoint] = {}
        self._breakers: defaultdict[str, Breaker] = defaultdict(lambda: Breaker(self._rng))
        self._probes: dict[str, anyio.Event] = {}
        self._learning = asyncio.Lock()
        self._learnt_at = -1.0

    async def run(self, call: Call) -> Any:
        """Run one script. Raises redis-py's errors."""
        (result,) = await self._ask(self._topology.group(call.keys[0]), [call])
        if isinstance(result, Exception):
            raise result
        return result

    async def run_many(self, calls: Sequence[Call]) -> list[Any]:
        """Run scripts, one round trip a shard: one result a call, an exception for one that failed.

        Never raises for what the store does.
        """
        return await self._by_group(self._ask, calls, [call.keys[0] for call in calls])

    async def run_confirmed(
        self, calls: Sequence[Call], *, every_replica: bool = False
    ) -> list[Any]:
        """`run_many`, where a result counts only once it will survive a failover.

        As configured by `wait_replicas` and `wait_fsync`, or with `every_replica` once all replicas
        that are connected have it. What was executed but not confirmed has `NotConfirmed` in its
        place. At least one call of a shard must write, or there is nothing to wait for.
        """
        confirm = functools.partial(self._confirm, every_replica=every_replica)
        return await self._by_group(confirm, calls, [call.keys[0] for call in calls])

    async def send(self, key: bytes, *words: Arg) -> Any:
        """Send one plain command to the shard that holds `key`. Raises redis-py's errors."""
        (result,) = await self._ask(self._topology.group(key), [Plain(words)])
        if isinstance(result, Exception):
            raise result
        return result

    async def send_many(self, commands: Sequence[tuple[bytes, Words]]) -> list[Any]:
        """Send plain commands, each with the key that says where to; results as of `run_many`."""
        return await self._by_group(
            self._ask, [Plain(words) for _, words in commands], [key for key, _ in commands]
        )

    async def ask_servers(self, *words: Arg) -> dict[Address, Any]:
        """Send one command to every primary; results as of `run_many`.

        Raises redis-py's errors when no primary is known.
        """
        if not self._topology.primaries:
            await self._learn()
        replies: dict[Address, Any] = {}

        async def ask(address: Address) -> None:
            exchange = Exchange([Plain(words)], self._role, self._rng)
            while not exchange.done:
                try:
                    following = exchange.replied(
                        await self._endpoint(address).exchange(exchange.commands())
                    )
                except (RedisError, OSError) as error:
                    following = exchange.failed(error)
                await anyio.sleep(following.pause_s)
            (replies[address],) = exchange.results

        primaries = self._topology.primaries
        async with anyio.create_task_group() as tasks:
            for address in primaries:
                tasks.start_soon(ask, address)
        return {address: replies[address] for address in primaries}

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

    async def aclose(self) -> None:
        """Close all connections."""
        for endpoint in (*self._endpoints.values(), *self._sentinels.values()):
            await endpoint.aclose()

    # Asking

    async def _by_group(
        self,
        ask: Callable[[str, Sequence[Any]], Awaitable[list[Any]]],
        requests: Sequence[Any],
        keys: Sequence[bytes],
    ) -> list[Any]:
        """Ask for each group at once; one result a request, in order."""
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for i, key in enumerate(keys):
            groups[self._topology.group(key)].append(i)
        if len(groups) <= 1:
            return await ask(next(iter(groups)), requests) if groups else []
        results: list[Any] = [None] * len(requests)

        async def ask_group(group: str, indexes: list[int]) -> None:
            found = await ask(group, [requests[i] for i in indexes])
            for i, result in zip(indexes, found, strict=True):
                results[i] = result

        async with anyio.create_task_group() as tasks:
            for group, indexes in groups.items():
                tasks.start_soon(ask_group, group, indexes)
        return results

    async def _ask(
        self, group: str, requests: Sequence[Request], *, together: bool = False
    ) -> list[Any]:
        """Ask for what shares a breaker; one result a request."""
        breaker = self._breakers[group]
        if not await self._admitted(group, breaker):
            reason = breaker.last_error
            return [ShardDown(f"not reachable a moment ago: {reason}")] * len(requests)
        probe = None if breaker.closed else self._probes.setdefault(group, anyio.Event())
        exchange = Exchange(
            requests, self._role, self._rng, together=together, second_chance=probe is None
        )
        try:
            await self._carry_out(
                group,
                exchange,
                SECOND_CHANCE_S + (self.config.confirm_s if together else self._block_s),
                probing=probe is not None,
            )
            report(exchange, breaker)
        except BaseException:
            breaker.abandoned()
            raise
        finally:
            if probe is not None:
                self._probes.pop(group, None)
                probe.set()
        return exchange.results

    async def _admitted(self, group: str, breaker: Breaker) -> bool:
        """Whether to ask a shard; while somebody probes it, that is waited for, but not long."""
        if not breaker.admit(time.monotonic()):
            probe = self._probes.get(group)
            if probe is None:
                return False
            with anyio.move_on_after(PROBE_WAIT_S):
                await probe.wait()
            return breaker.admit(time.monotonic())
        return True

    async def _carry_out(
        self, group: str, exchange: Exchange, short_s: float, *, probing: bool
    ) -> None:
        """Ask until the exchange is done. `short_s`: the limit after a time-out, and of a probe."""
        limit_s = short_s if probing else None
        while not exchange.done:
            endpoint: Endpoint | None = None
            try:
                endpoint = self._endpoint(exchange.detour or await self._where(group))
                with anyio.fail_after(limit_s):
                    replies = await endpoint.exchange(exchange.commands())
                following = exchange.replied(replies)
            except (RedisError, OSError) as error:
                following = exchange.failed(error)
            limit_s = short_s if probing or following.renew else None
            await self._prepare(group, exchange, following, endpoint)

    async def _prepare(
        self, group: str, exchange: Exchange, following: Next, endpoint: Endpoint | None
    ) -> None:
        """Do what must be done before the next try."""
        host = endpoint.address[0] if endpoint else ""
        if exchange.detour is not None:
            exchange.detour = whole(exchange.detour, host)
        if following.renew and endpoint is not None:
            await endpoint.forget_idle()
        if following.pause_s:
            await anyio.sleep(following.pause_s)
        if following.learn and self._topology.question:
            # If nobody says, what was known before is tried again.
            with suppress(RedisError, OSError):
                await self._learn()
        if exchange.moved_to is not None:
            # After learning: who gave a slot away knows it before those whom we happen to ask.
            self._topology.moved(group, whole(exchange.moved_to, host))
            exchange.moved_to = None

    async def _confirm(
        self, group: str, calls: Sequence[Call], *, every_replica: bool
    ) -> list[Any]:
        """Run calls of one shard and wait for their confirmation on the same connection."""
        config = self.config
        replicas = config.wait_replicas
        if every_replica:
            (role,) = await self._ask(group, [Plain(("ROLE",))])
            if isinstance(role, Exception):
                return [role] * len(calls)
            replicas = max(replicas, replicas_of(role))
        wait = confirmation(config, replicas)
        if wait is None:
            return await self._ask(group, calls)
        asked: list[Request] = [HISTORY, *calls, wait, HISTORY]
        before, *results, confirmed, after = await self._ask(group, asked, together=True)
        missing = unconfirmed(confirmed, config, replicas, before=before, after=after)
        if missing:
            return [r if isinstance(r, Exception) else NotConfirmed(missing) for r in results]
        return results

    # Servers

    async def _where(self, group: str) -> Address:
        address = self._topology.address(group)
        if address is None:
            await self._learn()
            address = self._topology.address(group)
        if address is None:
            raise NotKnown("no server holds this shard: are all slots of the cluster covered?")
        return address

    def _endpoint(self, address: Address) -> Endpoint:
        endpoint = self._endpoints.get(address)
        if endpoint is None:
            endpoint = self._endpoints[address] = Endpoint(
                self.config,
                address,
                block_s=self._block_s,
                max_connections=self._max_connections,
            )
        return endpoint

    async def _learn(self) -> None:
        """Ask who holds what, whoever knows. Raises the last error when nobody says."""
        if not self._topology.question:
            return
        called_at = time.monotonic()
        async with self._learning:
            if self._learnt_at >= called_at - LEARN_EVERY_S and self._topology.primaries:
                return  # somebody asked meanwhile
            last: Exception = NotKnown("no server is known")
            for address in self._whom_to_ask():
                try:
                    with anyio.fail_after(LEARN_TIMEOUT_S):
                        reply = await self._guide(address).exchange([self._topology.question])
                    if isinstance(reply[0], Exception):
                        raise reply[0]
                    self._topology.learn(reply[0], address)
                except (RedisError, OSError) as error:  # TimeoutError is an OSError
                    last = error
                    continue
                self._learnt_at = time.monotonic()
                await self._forget_others()
                return
            raise last

    def _whom_to_ask(self) -> list[Address]:
        """Those who may know, in random order, those who are known to be there first."""
        seeds = list(self._topology.seeds)
        primaries = [] if self.config.sentinel else list(self._topology.primaries)
        self._rng.shuffle(seeds)
        self._rng.shuffle(primaries)
        return list(dict.fromkeys([*primaries, *seeds]))

    def _guide(self, address: Address) -> Endpoint:
        if not self.config.sentinel:
            return self._endpoint(address)
        if address not in self._sentinels:
            self._sentinels[address] = Endpoint(
                self.config, address, max_connections=2, sentinel=True
            )
        return self._sentinels[address]

    async def _forget_others(self) -> None:
        """Close what is connected to servers that hold nothing any more."""
        known = set(self._topology.primaries)
        for address in [a for a in self._endpoints if a not in known]:
            await self._endpoints.pop(address).retire()


def unreachable(
    breakers: Mapping[str, Breaker], tags: Sequence[str], config: StoreConfig
) -> dict[str, Exception]:
    """The shard tags that could not be reached when last asked, and why."""
    found: dict[str, Exception] = {}
    for tag in tags:
        breaker = breakers.get(tag if config.cluster else SINGLE)
        if breaker is not None and breaker.last_error is not None:
            found[tag] = breaker.last_error
    return found


def report(exchange: Exchange, breaker: Breaker) -> None:
    """Tell the breaker of a shard how an exchange with it has ended."""
    if exchange.unreachable is not None:
        breaker.failed(time.monotonic(), exchange.unreachable)
    elif exchange.answered:
        breaker.succeeded()
    else:
        breaker.abandoned()


def whole(address: Address, asked_host: str) -> Address:
    """A redirection without a host means the host that said it."""
    return (asked_host if address[0] in ("", UNANNOUNCED) else address[0], address[1])
