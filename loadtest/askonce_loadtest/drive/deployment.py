"""What is driven: workers, store and model of our own, or a deployment that runs already."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import anyio
import msgspec

from askonce_loadtest.bench.child import Order
from askonce_loadtest.bench.children import child, program
from askonce_loadtest.bench.plan import Plan
from askonce_loadtest.bench.serving import worker
from askonce_loadtest.bench.workload import LABELS
from askonce_queue.embedded import EmbeddedStore
from askonce_queue.ledger import Limits
from askonce_queue.store_config import StoreConfig
from askonce_worker.build import open_store
from askonce_worker.cli.inputs import known_task, limits_of
from askonce_worker.config import load_settings

MODEL_START_S = 30.0


class Deployment(NamedTuple):
    """What a client has to know of it."""

    store: str | StoreConfig
    shards: int = 1
    pool: str = "default"
    limits: Limits = Limits()


@asynccontextmanager
async def own(
    tasks: Sequence[str], *, workers: int, model_latency_ms: float
) -> AsyncGenerator[Deployment]:
    """Worker processes, an embedded store and a stand-in model, for the length of a block.

    In a temporary folder, with askonce's defaults. Raises `ChildError` when one of them ends.
    """
    model = ["askonce_loadtest", "model", "--port", "0", "--latency-ms", str(model_latency_ms)]
    with TemporaryDirectory(prefix="askonce-drive-") as folder:
        async with (
            EmbeddedStore(Path(folder, "store")) as store,
            # It ends on SIGTERM only, so it need not be given time.
            program(model, end_s=0.0) as serving,
            AsyncExitStack() as stack,
        ):
            with anyio.fail_after(MODEL_START_S):
                base_url = (await serving.read_line()).decode()
            config = await anyio.Path(folder, "askonce.toml").absolute()
            await config.write_text(_config(store.url, base_url, tasks), encoding="utf-8")
            for _ in range(workers):
                await stack.enter_async_context(
                    child(worker, Order(Plan(), store.url, str(config)))
                )
            yield Deployment(store.url)


@asynccontextmanager
async def running(path: Path, tasks: Sequence[str]) -> AsyncGenerator[Deployment]:
    """The deployment that a configuration file describes. Its workers are somebody else's.

    Raises `ConfigError`, `StoreUnavailable`, and `Failed` for a task that it does not have.
    """
    settings = load_settings(path)
    for task in tasks:
        known_task(settings, task)
    async with open_store(settings) as store:
        yield Deployment(store, settings.shards, settings.worker.pool, limits_of(settings.worker))


def _config(url: str, base_url: str, tasks: Sequence[str]) -> str:
    def toml(value: object) -> str:
        return msgspec.json.encode(value).decode()  # JSON texts and lists of them are TOML too

    parts = [
        f"[redis]\nurl = {toml(url)}\n",
        f'[models.stand_in]\nkind = "openai"\nbase_url = {toml(base_url)}\nmodel = "stand-in-1"\n',
    ]
    parts += [
        f'[tasks.{toml(task)}]\nmodel = "stand_in"\nlabels = {toml(LABELS)}\nmax_tokens = 16\n'
        for task in tasks
    ]
    return "\n".join(parts)
