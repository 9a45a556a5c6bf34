"""Picks hits at random and has them checked, when their model has nothing better to do."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import anyio
import structlog

from askonce_worker.asks import SeenHit
from askonce_worker.backend import Backend
from askonce_worker.clock import Clock
from askonce_worker.observe.counters import Counters
from askonce_worker.shadow.verdicts import AGREE, DIFFER, place
from askonce_worker.tasks import Task
from askonce_worker.verifier import Comparison, Replacement, Verifier

MOST_QUEUED = 64
"""Hits of one model that wait to be checked; past it they are dropped, and counted."""
MOST_AT_ONCE = 4
"""Checks under way at one model, and at most one for every eight of its slots."""
SLOTS_EACH = 8
MOST_WAIT_S = 60.0
"""How long a hit waits for room at its model before it is dropped: its age is that of then."""
POLL_S = 0.05
"""How often it is looked for room: nobody waits for a check, so nobody wakes it."""

log = structlog.get_logger("askonce.shadow")


class _Picked(NamedTuple):
    hit: SeenHit
    at: float


class ShadowChecks:
    """Checks `verify_share` of the hits of `tasks`. Add `note` to the resolver's watchers."""

    def __init__(
        self,
        verifier: Verifier,
        tasks: Iterable[Task],
        counters: Counters,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._verifier = verifier
        self._counters = counters
        self._clock = clock
        self._rng = rng
        self._skips: dict[str, int] = {}
        self._backends: dict[str, Backend] = {}
        for task in tasks:
            if task.policy.verify_share > 0:
                self._skips[task.name] = self._skip(task)
                self._backends[task.backend.name] = task.backend
        self._queues: dict[str, asyncio.Queue[_Picked]] = {
            name: asyncio.Queue(MOST_QUEUED) for name in self._backends
        }
        self._keys: set[bytes] = set()

    def __bool__(self) -> bool:
        """Whether there is anything to check."""
        return bool(self._skips)

    def note(self, seen: Sequence[SeenHit]) -> None:
        """Pick some of the hits. No I/O, and a random number for each that is picked only.

        What is served stale is passed over: it is being replaced already, or the model fails.
        """
        skips = self._skips
        for hit in seen:
            task = hit.ask.task
            left = skips.get(task.name)
            if left is None or hit.source == "stale":
                continue
            if left:
                skips[task.name] = left - 1
                continue
            skips[task.name] = self._skip(task)
            self._pick(hit)

    def _skip(self, task: Task) -> int:
        """How many hits to pass over before the next: geometric, as if each was drawn by itself."""
        share = task.policy.verify_share
        if share >= 1:
            return 0
        return int(math.log(1 - self._rng.random()) / math.log1p(-share))

    def _pick(self, hit: SeenHit) -> None:
        ask = hit.ask
        queue = self._queues[ask.task.backend.name]
        if queue.full() or ask.key in self._keys:
            self._counters.count(ask.task.name, "verify_dropped")
            return
        self._keys.add(ask.key)
        queue.put_nowait(_Picked(hit, self._clock.monotonic()))

    async def run(self) -> None:
        """Check what was picked, for ever; no model's checks wait for another's."""
        async with anyio.create_task_group() as tasks:
            for backend in self._backends.values():
                for _ in range(max(1, min(MOST_AT_ONCE, backend.slots // SLOTS_EACH))):
                    tasks.start_soon(self._serve, backend)

    async def _serve(self, backend: Backend) -> None:
        queue = self._queues[backend.name]
        while True:
            picked = await queue.get()
            ask, entry = picked.hit.ask, picked.hit.entry
            try:
                if await self._found_room(backend, picked.at):
                    self._count(picked.hit, await self._verifier.verify(ask, entry))
                else:
                    self._counters.count(ask.task.name, "verify_dropped")
            finally:
                self._keys.discard(ask.key)

    async def _found_room(self, backend: Backend, since: float) -> bool:
        """Wait until a slot can be spared, and take it; False if that takes too long."""
        while not self._verifier.reserve(backend):
            if self._clock.monotonic() - since > MOST_WAIT_S:
                return False
            await anyio.sleep(POLL_S)
        return True

    def _count(self, hit: SeenHit, comparison: Comparison | None) -> None:
        task = hit.ask.task
        if comparison is None:
            self._counters.count(task.name, "verify_void")
            return
        agrees, age_s, replacement = comparison
        label = hit.entry.answer.label
        verdict = AGREE if agrees else DIFFER
        self._counters.count(task.name, f"verify_{verdict}")
        self._counters.count(
            task.name, f"verify_{verdict}:{place(age_s, label, task.prompt.labels)}"
        )
        if replacement is None:
            return
        if replacement is not Replacement.FAILED:
            self._counters.count(task.name, "verify_replaced")
        log.info(
            "a hit differs from a fresh answer",
            task=task.name,
            key=hit.ask.key.hex(),
            age_s=round(age_s, 1),
            replacement=replacement.value,
        )
