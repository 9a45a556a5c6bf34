"""Invalidations under load: of a group, of a task, of everything; each until it is confirmed.

First the epochs rise at the model, then the answers are invalidated: what was built before is of an
older epoch, and whoever is served it afterwards was served an invalid answer. The shorter the time
between the two, the more calls straddle both; so most are made by a call of the library, and only
some by the `askonce` command, which takes its time to start.
"""

from __future__ import annotations

import itertools
import random
import time
from pathlib import Path

import anyio

from askonce_loadtest.chaos import model
from askonce_loadtest.chaos.evidence import ALL_GROUPS, ALL_TASKS, Invalidation
from askonce_loadtest.chaos.plan import TASK
from askonce_loadtest.chaos.processes import ChaosError, Commanded, Process
from askonce_loadtest.chaos.schedule import Fault
from askonce_loadtest.chaos.store import StoreUnderTest
from askonce_loadtest.chaos.workload import group_tag
from askonce_queue.store import Store
from askonce_queue.store_config import StoreConfig
from askonce_worker.cache.invalidation import invalidate

CONFIRM_S = 40.0
"""How long an invalidation may take until it is confirmed, however often it has to be repeated."""
COMMAND_S = 20.0
GROUP_SHARE, TASK_SHARE, COMMAND_SHARE = 0.75, 0.15, 0.15


class Invalidating:
    """Invalidates, and keeps a record of it.

    `config` is a configuration file that reaches the store directly, for the `askonce` command.
    """

    def __init__(
        self, seed: int, store: StoreUnderTest, model_server: Commanded, config: Path
    ) -> None:
        self.done: list[Invalidation] = []
        self._seed = seed
        self._store = store
        self._model_server = model_server
        self._config = config
        self._turn = anyio.Lock()

    async def carry_out(self, fault: Fault) -> str:
        """Invalidate something by chance: most often a group."""
        rng = random.Random(f"{self._seed}:{fault.at_s}")
        chance = rng.random()
        by_command = rng.random() < COMMAND_SHARE
        group, task = rng.choice(ALL_GROUPS), rng.choice(ALL_TASKS)
        if chance < GROUP_SHARE:
            return await self._take_back([group], [], group_tag(group), by_command=by_command)
        if chance < GROUP_SHARE + TASK_SHARE:
            groups = ALL_GROUPS if task == TASK else []
            return await self._take_back(groups, [task], f"task:{task}", by_command=by_command)
        return await self._take_back(ALL_GROUPS, ALL_TASKS, "", by_command=by_command)

    async def _take_back(
        self, groups: list[int], tasks: list[str], tag: str, *, by_command: bool
    ) -> str:
        """Raise the epochs of groups, then invalidate a tag ("": everything) until it is done."""
        async with self._turn:
            raised = time.monotonic()
            await self._model_server.ask(model.Change(raise_epochs=groups), model.Done)
            one = Invalidation(
                groups=groups, tasks=tasks, raised=raised, began=time.monotonic(), confirmed=None
            )
            self.done.append(one)
            deadline = time.monotonic() + CONFIRM_S
            for tries in itertools.count(1):
                if await (self._by_command(tag) if by_command else self._by_library(tag)):
                    one.confirmed = time.monotonic()
                    how = " by command" if by_command else ""
                    return f"{tag or 'everything'}{how}, confirmed at the {tries}. time"
                if time.monotonic() > deadline:
                    raise ChaosError(f"{tag or 'everything'} was never confirmed ({tries} times)")
                await anyio.sleep(0.2)
        raise AssertionError("unreachable")

    async def _by_library(self, tag: str) -> bool:
        store = Store(StoreConfig(**self._store.table()))
        try:
            done = await invalidate(store, [tag] if tag else [], everything=not tag)
        finally:
            await store.aclose()
        return done.complete

    async def _by_command(self, tag: str) -> bool:
        folder = self._config.parent
        options = ["--tag", tag] if tag else ["--all"]
        process = Process(
            ["askonce_worker", "invalidate", str(self._config), *options],
            folder / "invalidate.log",
            cwd=folder,
        )
        try:
            await process.wait(COMMAND_S)
            return process.returncode == 0
        finally:
            process.close()
