"""The fill leases this worker holds: renewed together, dropped when lost.

A lease lasts `ttl_s` in the store and is renewed every `renew_s`. Past its TTL less a margin
without a successful renewal, by this process's monotonic clock, the flight no longer counts as
leased: somebody else may have taken it. The store's scripts check the token again at each write.
"""

from __future__ import annotations

from collections import defaultdict

import anyio
import structlog

from askonce_queue.errors import StoreUnavailable
from askonce_queue.scripts import CHUNK
from askonce_worker.cache.store_tier import StoreTier
from askonce_worker.clock import Clock
from askonce_worker.flights import Flight
from askonce_worker.observe.counters import Counters

log = structlog.get_logger("askonce.leases")


class Leases:
    """All leases of one process, of every shard."""

    def __init__(
        self, tier: StoreTier, clock: Clock, counters: Counters, *, renew_s: float
    ) -> None:
        self._tier = tier
        self._clock = clock
        self._counters = counters
        self._renew_s = renew_s
        self._margin_s = min(1.0, tier.lease_ttl_s / 10)
        self._held: defaultdict[int, dict[bytes, Flight]] = defaultdict(dict)

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def held(self, shard: int) -> list[Flight]:
        """The flights of a shard whose leases are ours."""
        return list(self._held[shard].values())

    def add(self, flight: Flight) -> None:
        """Renew the lease of `flight` from now on."""
        assert flight.token is not None
        self._held[flight.shard][flight.token + flight.key] = flight

    def drop(self, flight: Flight) -> None:
        """Renew it no more: it was given back or lost."""
        if flight.token is not None:
            self._held[flight.shard].pop(flight.token + flight.key, None)

    def lose(self, flight: Flight) -> None:
        """The lease is somebody else's: the flight may reply, but not fill."""
        self._counters.count(flight.task.name, "leases_lost")
        log.warning("lease lost", task=flight.task.name, key=flight.key.hex()[:16])
        self.drop(flight)
        flight.token = None

    def may_fill(self, flight: Flight) -> bool:
        """Whether the lease of `flight` can still be ours; a lease lost to time is noted."""
        if flight.token is None:
            return False
        if self._clock.monotonic() < flight.lease_until - self._margin_s:
            return True
        self.lose(flight)
        return False

    async def renew_forever(self, shard: int) -> None:
        """Renew all leases of a shard every `renew_s`."""
        while True:
            await anyio.sleep(self._renew_s)
            try:
                await self.renew(shard)
            except StoreUnavailable as error:
                held = len(self._held[shard])
                log.warning("leases cannot be renewed", shard=shard, held=held, error=str(error))

    async def renew(self, shard: int) -> None:
        """Renew all leases of a shard once. Raises `StoreUnavailable`."""
        held = [(flight, flight.token) for flight in self.held(shard) if flight.token is not None]
        for start in range(0, len(held), CHUNK):
            await self._renew_part(shard, held[start : start + CHUNK])

    async def _renew_part(self, shard: int, held: list[tuple[Flight, bytes]]) -> None:
        until = self._clock.monotonic() + self._tier.lease_ttl_s
        letters = await self._tier.renew(shard, [(flight.key, token) for flight, token in held])
        if letters is None:
            return
        for (flight, token), letter in zip(held, letters, strict=True):
            if flight.token != token:
                continue  # given back while the renewal was under way
            if letter == "r":
                flight.lease_until = until
            elif token + flight.key in self._held[shard]:
                self.lose(flight)
