"""A virtual clock for a real server and the resolvers that use it: hours pass at once.

The scripts ask a key of the server for the time instead of the server; the resolver's clock is
shifted by as much. TTLs of keys are the server's own and do not shift: they only end later.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import redis.asyncio

from askonce_queue import answer_scripts, names, queue_scripts, quota_scripts
from askonce_queue.scripts import _PRELUDE, Script  # pyright: ignore[reportPrivateUsage]
from askonce_worker.resolver import Resolver
from tests.support.resolving import ShiftedClock, resolver_on
from tests.support.virtual_scripts import CLOCK_FIELD, START_MS

PRELUDE = f"""
local function now_us()
  return tonumber(redis.call('HGET', '{names.META.decode()}', '{CLOCK_FIELD}'))
end
local function now_ms()
  return math.floor(now_us() / 1000)
end
"""
LONG_S = 1e7


class VirtualTime:
    """The time on a server and in the resolvers made here."""

    def __init__(self, client: redis.asyncio.Redis, url: str) -> None:
        self._client = client
        self._url = url
        self._clock = ShiftedClock()

    @property
    def now_ms(self) -> float:
        """The server's time."""
        return START_MS + self._clock.shift_s * 1000

    async def advance(self, seconds: float) -> None:
        self._clock.shift_s += seconds
        await cast(
            "Any",
            self._client.hset(names.META.decode(), CLOCK_FIELD, str(round(self.now_ms * 1000))),
        )

    @asynccontextmanager
    async def resolver(self, **options: Any) -> AsyncGenerator[Resolver]:
        """One more process: nothing of it depends on how much time passes."""
        async with resolver_on(
            self._url, clock=self._clock, stamp_bound_s=LONG_S, lease_ttl_s=LONG_S, **options
        ) as resolver:
            yield resolver


def virtual_scripts() -> Generator[None]:
    """Have every script ask for the virtual time."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (answer_scripts, queue_scripts, quota_scripts):
            for script in vars(module).values():
                if isinstance(script, Script):
                    first, _, rest = script.source.decode().partition("\n")
                    assert rest.startswith(_PRELUDE)
                    source = f"{first}\n{PRELUDE}{rest.removeprefix(_PRELUDE)}".encode()
                    sha = hashlib.sha1(source, usedforsecurity=False).hexdigest()
                    patch.setattr(script, "source", source)
                    patch.setattr(script, "sha", sha)
        yield
