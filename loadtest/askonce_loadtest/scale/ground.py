"""What points stand on: an embedded server or a cluster on loopback, and a stand-in model server.

Both are real servers with an append-only file, in a temporary folder, and gone afterwards.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import msgspec

from askonce_loadtest.bench.child import Order
from askonce_loadtest.bench.children import program
from askonce_loadtest.bench.plan import Plan
from askonce_loadtest.bench.running import MODEL_START_S, config_text
from askonce_loadtest.bench.store_use import StoreUse, store_use
from askonce_loadtest.scale.axes import PRIMARIES
from askonce_loadtest.scale.point import Point
from askonce_loadtest.servers.cluster import Cluster
from askonce_loadtest.servers.waiting import until
from askonce_queue.connections import connect
from askonce_queue.embedded import EmbeddedStore
from askonce_queue.scripts import AsyncStore, send

MODEL_LATENCY_MS = 5.0
REWRITE_S = 300.0


class Ground:
    """Servers, a model, and a folder for configuration files."""

    def __init__(
        self,
        servers: Sequence[AsyncStore],
        config: Path,
        redis: Mapping[str, str | bool | int],
        base_url: str,
    ) -> None:
        self.servers = servers
        """A client of each primary."""
        self._config = config
        self._redis = redis
        self._base_url = base_url

    async def order(self, point: Point, detail: msgspec.Struct) -> Order:
        """Write the configuration of a point, and return what its children are told."""
        worker = f"[worker]\nmemory_bytes = {point.memory_bytes}\n"
        text = config_text({**self._redis, "shards": point.shards}, self._base_url)
        await anyio.Path(self._config).write_text(text + worker, encoding="utf-8")
        raw = msgspec.Raw(msgspec.json.encode(detail))
        return Order(Plan(), "", str(self._config), raw)

    async def use(self) -> StoreUse:
        """What all servers have used so far."""
        uses = [await store_use(server) for server in self.servers]
        return StoreUse(*(sum(values) for values in zip(*uses, strict=True)))

    async def used_bytes(self) -> int:
        """Memory that all servers use."""
        infos: list[dict[str, Any]] = [await server.info("memory") for server in self.servers]
        return sum(int(info["used_memory"]) for info in infos)

    async def flush(self) -> None:
        """Delete all keys."""
        for server in self.servers:
            await server.flushall()

    @asynccontextmanager
    async def without_log(self) -> AsyncGenerator[None]:
        """Fill without the append-only file, and have it written once, at the end.

        Otherwise the server would rewrite it again and again as it grows.
        """
        for server in self.servers:
            await send(server, "CONFIG", "SET", "appendonly", "no")
        yield
        for server in self.servers:
            await send(server, "CONFIG", "SET", "appendonly", "yes")
        for server in self.servers:
            await until(
                partial(_rewriting, server),
                what="the append-only file is written",
                timeout_s=REWRITE_S,
                servers=(),
            )


async def _rewriting(server: AsyncStore) -> str:
    info: dict[str, Any] = await server.info("persistence")
    at_it = int(info["aof_rewrite_in_progress"]) or int(info["aof_rewrite_scheduled"])
    return "it is being rewritten" if at_it else ""


@asynccontextmanager
async def ground(*, cluster: bool, maxmemory_bytes: int) -> AsyncGenerator[Ground]:
    """Start it all; at the end of the block nothing is left.

    Raises `ServerFailed`, `StoreUnavailable` or `ChildError`.
    """
    latency = ("--latency-ms", str(MODEL_LATENCY_MS))
    with TemporaryDirectory(prefix="askonce-scale-") as folder:
        async with AsyncExitStack() as stack:
            if cluster:
                rig = await stack.enter_async_context(
                    Cluster(Path(folder), primaries=PRIMARIES, replicas_each=0)
                )
                urls = rig.urls
                redis: dict[str, str | bool] = {"url": urls[0], "cluster": True}
            else:
                embedded = await stack.enter_async_context(
                    EmbeddedStore(Path(folder, "store"), maxmemory=maxmemory_bytes)
                )
                urls = [embedded.url]
                redis = {"url": embedded.url}
            # It ends on SIGTERM only, so it need not be given time.
            model = await stack.enter_async_context(
                program(["askonce_loadtest", "model", "--port", "0", *latency], end_s=0.0)
            )
            with anyio.fail_after(MODEL_START_S):
                base_url = (await model.read_line()).decode()
            servers = [connect(url, role="commands", max_connections=1) for url in urls]
            for server in servers:
                stack.push_async_callback(server.aclose)
            yield Ground(servers, Path(folder, "askonce.toml"), redis, base_url)
