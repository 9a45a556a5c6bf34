"""A `Store` whose scripts go by a virtual clock: for what runs scripts through the product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from askonce_queue import names
from askonce_queue.scripts import Call, Script
from askonce_queue.store import Store
from tests.support.virtual_scripts import CLOCK_FIELD, PRELUDE, START_MS


class VirtualStore(Store):
    """The real server, at a time that the test sets; call `advance` once before anything else."""

    now_ms = START_MS

    async def advance(self, ms: int = 0) -> None:
        """Let time pass."""
        self.now_ms += ms
        await self.send(names.META, "HSET", names.META, CLOCK_FIELD, str(self.now_ms * 1000))

    async def run(self, call: Call) -> Any:
        return await super().run(self._virtual(call))

    async def run_many(self, calls: Sequence[Call]) -> list[Any]:
        return await super().run_many([self._virtual(call) for call in calls])

    def _virtual(self, call: Call) -> Call:
        allow_oom = b"allow-oom" in call.script.source.splitlines()[0]
        return call._replace(script=Script(call.script.name, allow_oom=allow_oom, prelude=PRELUDE))
