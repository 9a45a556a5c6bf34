"""What all topologies of several servers have in common: start, end, and waking up what is down."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from askonce_loadtest.servers.node import Node
from askonce_loadtest.servers.waiting import until


class Rig(ABC):
    """Several servers. `async with` starts them, and kills them at its end, however it ends."""

    @property
    @abstractmethod
    def nodes(self) -> list[Node]:
        """All server processes."""

    @abstractmethod
    async def start(self) -> None:
        """Start all and wait until they work together. Raises `ServerFailed`."""

    def close(self) -> None:
        """Kill and reap all."""
        for node in self.nodes:
            node.close()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def wake(self) -> None:
        """Let go on what is paused, and start what is dead. Raises `ServerFailed`."""
        for node in self.nodes:
            if node.running:
                node.resume()
        await asyncio.gather(*(node.start() for node in self.nodes if not node.running))

    async def wait_until(
        self, condition: Callable[[], Awaitable[str]], what: str, timeout_s: float
    ) -> None:
        """`waiting.until`, with the logs of all servers."""
        await until(condition, what=what, timeout_s=timeout_s, servers=self.nodes)
