"""The store under test: what the driver needs of it, and one server as the simplest such store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

import anyio
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from askonce_loadtest.chaos.links import Address
from askonce_loadtest.chaos.plan import MAX_MEMORY, Plan
from askonce_loadtest.chaos.processes import ChaosError
from askonce_loadtest.chaos.schedule import Fault
from askonce_loadtest.servers.node import Node

Table = dict[str, Any]
"""A `[redis]` table of askonce's configuration."""
DRIVER = "chaos-driver"
"""The name of the driver's own connections."""
COMMAND_S = 3.0
PATIENCE_S = 30.0
"""How long a command of the driver may wait for a store that is down, paused or loading."""
PRESSURE = 0.98
"""Share of the memory in use to which the bound is lowered."""


class StoreUnderTest(Protocol):
    """A store of any topology that the driver starts, breaks and looks into.

    The driver's own commands go to it directly, past the proxies, and wait while it is down.
    """

    @property
    def shards(self) -> int:
        """The number of shards that everybody is configured with."""
        ...

    @property
    def servers(self) -> Mapping[str, Address]:
        """The servers that clients may connect to, by name: each link stands before all of them."""
        ...

    @property
    def faults(self) -> Mapping[str, Callable[[Fault], Awaitable[str]]]:
        """The kinds of faults it can suffer itself → what carries one out and says what it did."""
        ...

    def table(self, through: Mapping[str, Address] | None = None) -> Table:
        """The `[redis]` table of clients that reach each server at the given address instead."""
        ...

    async def start(self) -> None:
        """Start it and wait until it answers."""
        ...

    async def heal(self) -> None:
        """Undo what faults may have left: everything runs, nothing is short."""
        ...

    async def close(self) -> None:
        """End all its processes."""
        ...

    async def ask(self, key: bytes, *words: bytes | str | int) -> Any:
        """Send one command to the server that holds `key`; the reply is raw.

        Repeated while the store is down, so it must be harmless to repeat. Raises `ChaosError`.
        """
        ...

    async def ask_all(self, *words: bytes | str | int) -> list[Any]:
        """As `ask`, to every server that holds keys."""
        ...

    async def keys(self, pattern: str) -> list[bytes]:
        """All keys that match a pattern."""
        ...


class SingleStore:
    """One server with AOF."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self._plan = plan
        self._node = Node(
            folder,
            name="store",
            conf=[
                f"appendfsync {plan.appendfsync}",
                f"maxmemory {MAX_MEMORY}",
                "maxmemory-policy volatile-lfu",
            ],
        )
        self._admin: redis.asyncio.Redis | None = None
        self._turn = anyio.Lock()

    @property
    def shards(self) -> int:
        """See `StoreUnderTest`."""
        return self._plan.shards

    @property
    def servers(self) -> Mapping[str, Address]:
        """See `StoreUnderTest`."""
        return {"store": self._node.address}

    @property
    def faults(self) -> Mapping[str, Callable[[Fault], Awaitable[str]]]:
        """See `StoreUnderTest`."""
        actions = {
            "kill-store": self._kill,
            "restart-store": self._restart,
            "stop-store": self._stop,
            "memory-pressure": self._press,
        }
        return {kind: partial(self._in_turn, action) for kind, action in actions.items()}

    def table(self, through: Mapping[str, Address] | None = None) -> Table:
        """See `StoreUnderTest`."""
        host, port = through["store"] if through else self._node.address
        return {"url": f"redis://{host}:{port}/0", "shards": self._plan.shards}

    async def start(self) -> None:
        """See `StoreUnderTest`."""
        await self._node.start()
        self._admin = redis.asyncio.Redis.from_url(
            self._node.url,
            protocol=2,
            client_name=DRIVER,
            socket_timeout=COMMAND_S,
            socket_connect_timeout=COMMAND_S,
            retry=Retry(NoBackoff(), 0),
        )
        # Replies stay as they are on the wire: redis-py would turn some into dicts.
        self._admin.response_callbacks.clear()

    async def heal(self) -> None:
        """See `StoreUnderTest`."""
        if self._node.running:
            self._node.resume()
        else:
            await self._node.start()
        await self._ask("CONFIG", "SET", "maxmemory", MAX_MEMORY)

    async def close(self) -> None:
        """See `StoreUnderTest`."""
        self._node.close()  # first: what is awaited may be cancelled
        if self._admin is not None:
            await self._admin.aclose()

    async def ask(self, key: bytes, *words: bytes | str | int) -> Any:
        """See `StoreUnderTest`."""
        del key
        return await self._ask(*words)

    async def ask_all(self, *words: bytes | str | int) -> list[Any]:
        """See `StoreUnderTest`."""
        return [await self._ask(*words)]

    async def keys(self, pattern: str) -> list[bytes]:
        """See `StoreUnderTest`."""
        found: dict[bytes, None] = {}
        cursor = b"0"
        while True:
            cursor, page = await self._ask("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
            found.update(dict.fromkeys(page))
            if cursor == b"0":
                return list(found)

    async def _ask(self, *words: bytes | str | int) -> Any:
        assert self._admin is not None, "the store is not started"
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await cast("Awaitable[Any]", self._admin.execute_command(*words))
            except (RedisError, OSError) as error:
                if time.monotonic() > deadline:
                    raise ChaosError(f"the store does not answer {words[0]!r}: {error}") from error
                await anyio.sleep(0.1)

    # Faults, one at a time: loading a large log may take longer than the schedule foresees.

    async def _in_turn(self, action: Callable[[Fault], Awaitable[str]], fault: Fault) -> str:
        async with self._turn:
            return await action(fault)

    async def _kill(self, fault: Fault) -> str:
        self._node.kill()
        await asyncio.sleep(fault.for_s)
        await self._node.start()
        return "killed, and started again"

    async def _restart(self, fault: Fault) -> str:
        await self._node.terminate()
        await asyncio.sleep(fault.for_s)
        await self._node.start()
        return "terminated, and started again"

    async def _stop(self, fault: Fault) -> str:
        self._node.pause()
        await asyncio.sleep(fault.for_s)
        self._node.resume()
        return "stopped, and resumed"

    async def _press(self, fault: Fault) -> str:
        used = int((await self._info("memory"))["used_memory"])
        await self._ask("CONFIG", "SET", "maxmemory", int(PRESSURE * used))
        before = int((await self._info("stats"))["evicted_keys"])
        await asyncio.sleep(fault.for_s)
        evicted = int((await self._info("stats"))["evicted_keys"]) - before
        await self._ask("CONFIG", "SET", "maxmemory", MAX_MEMORY)
        return f"{used} bytes were used, {evicted} answers evicted"

    async def _info(self, section: str) -> dict[str, str]:
        text: bytes = await self._ask("INFO", section)
        pairs = (line.partition(":") for line in text.decode().splitlines())
        return {name: value for name, colon, value in pairs if colon}
