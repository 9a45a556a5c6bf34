"""How each kind of fault is carried out, once the schedule says so."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Literal, cast

from askonce_loadtest.chaos import model
from askonce_loadtest.chaos.evidence import Done
from askonce_loadtest.chaos.fleet import Producers, Workers
from askonce_loadtest.chaos.invalidating import Invalidating
from askonce_loadtest.chaos.links import LinkFault
from askonce_loadtest.chaos.malformed import Malformed
from askonce_loadtest.chaos.plan import MODEL_LATENCY_MS, MODEL_SIGMA
from askonce_loadtest.chaos.processes import ChaosError, Commanded
from askonce_loadtest.chaos.proxy import SetFault, State
from askonce_loadtest.chaos.schedule import LINKS, Fault
from askonce_loadtest.chaos.store import StoreUnderTest
from askonce_loadtest.model_server import Behaviour
from askonce_queue import names
from askonce_queue.shards import shard_tags

Action = Callable[[Fault], Awaitable[str]]
"""Carries a fault out from its beginning to its end; returns what there is to say about it."""

SOUND = Behaviour(latency_ms=MODEL_LATENCY_MS, latency_sigma=MODEL_SIGMA)
"""The model when nothing is wrong with it."""
SLOW_SIGMA = 0.2


class Faults:
    """Carries out the faults of a schedule, and keeps a record of them.

    `config` is a configuration file that reaches the store directly, for the `askonce` command.
    """

    def __init__(
        self,
        *,
        seed: int,
        store: StoreUnderTest,
        proxy: Commanded,
        model_server: Commanded,
        workers: Workers,
        producers: Producers,
        config: Path,
    ) -> None:
        self.done: list[Done] = []
        self.invalidating = Invalidating(seed, store, model_server, config)
        self.malformed = Malformed(store, seed)
        self._store = store
        self._proxy = proxy
        self._model_server = model_server
        self._workers = workers
        self._producers = producers
        self._poison = itertools.count(1)
        self._struck: Counter[tuple[str, str]] = Counter()
        links = ("drop", "cut", "delay", "throttle", "half-open", "refuse")
        self._actions: Mapping[str, Action] = {
            **dict.fromkeys(links, self._break_link),
            "kill-worker": lambda fault: workers.kill(fault.target, fault.for_s),
            "stop-worker": lambda fault: workers.stop(fault.target, fault.for_s),
            "drain-worker": lambda fault: workers.drain(fault.target, fault.for_s),
            "kill-producer": lambda fault: producers.kill(fault.target, fault.for_s),
            "stop-producer": lambda fault: producers.stop(fault.target, fault.for_s),
            "lose-answers": self._lose_answers,
            "lose-stamps": self._lose_stamps,
            "flush-scripts": self._flush_scripts,
            "model-stall": lambda fault: self._misbehave(fault, Behaviour(stall=1.0)),
            "model-errors": lambda fault: self._misbehave(fault, Behaviour(status_500=1.0)),
            "model-slow": lambda fault: self._misbehave(
                fault, Behaviour(latency_ms=fault.amount, latency_sigma=SLOW_SIGMA)
            ),
            "invalidate": self.invalidating.carry_out,
            "poison": lambda _: producers.poison(next(self._poison)),
            "malformed": lambda _: self.malformed.add(),
            **store.faults,
        }

    async def carry_out(self, fault: Fault) -> Done:
        """Carry one fault out and note it. One that cannot be is noted as failed."""
        done = Done(fault=fault, began=time.monotonic(), ended=float("inf"))
        self.done.append(done)
        try:
            done.note = await self._actions[fault.kind](fault)
        except ChaosError as error:
            done.note, done.failed = str(error), True
        done.ended = time.monotonic()
        return done

    async def heal(self) -> None:
        """Undo everything: links, model, store, stopped processes."""
        for link in LINKS:
            await self._proxy.ask(SetFault(link), State)
        await self._model_server.ask(model.Change(behaviour=SOUND), model.Done)
        await self._store.heal()
        self._workers.wake()
        self._producers.wake()

    # Links and models

    async def _break_link(self, fault: Fault) -> str:
        kind = cast(
            "Literal['drop', 'cut', 'delay', 'throttle', 'half-open', 'refuse']", fault.kind
        )
        before = await self._proxy.ask(SetFault(fault.target, LinkFault(kind, fault.amount)), State)
        try:
            await asyncio.sleep(fault.for_s)
        finally:
            after = await self._proxy.ask(SetFault(fault.target), State)
        struck = after.struck[fault.target].get(kind, 0)
        # What a fault strikes at its very beginning is in `before` already: count those too.
        earlier, self._struck[fault.target, kind] = self._struck[fault.target, kind], struck
        return f"struck {struck - earlier} times, {before.open[fault.target]} connections were open"

    async def _misbehave(self, fault: Fault, behaviour: Behaviour) -> str:
        await self._model_server.ask(model.Change(behaviour=behaviour), model.Done)
        try:
            await asyncio.sleep(fault.for_s)
        finally:
            await self._model_server.ask(model.Change(behaviour=SOUND), model.Done)
        return ""

    # Data

    async def _lose_answers(self, fault: Fault) -> str:
        del fault
        keys = await self._store.keys("a:*")
        for key in keys:
            await self._store.ask(key, "UNLINK", key)
        return f"{len(keys)} answers unlinked"

    async def _lose_stamps(self, fault: Fault) -> str:
        del fault
        for tag in shard_tags(self._store.shards):
            stamps, last = names.stamps(tag), names.last(tag)
            await self._store.ask(stamps, "DEL", stamps, last)
        return ""

    async def _flush_scripts(self, fault: Fault) -> str:
        del fault
        await self._store.ask_all("SCRIPT", "FLUSH")
        return ""
