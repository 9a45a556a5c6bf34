"""What this worker holds: deliveries that were fetched and whose settle is not yet confirmed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import anyio

from askonce_queue.queue_scripts import Lane


class Held:
    """The bounded set of deliveries in hand, of all lanes.

    *Parked* deliveries were taken from a dead worker and wait for their retry; they are ours, but
    not under way.
    """

    def __init__(self, most: int, most_waiting: int) -> None:
        self.most = most
        self.most_waiting = most_waiting
        """From how many deliveries under way those that cannot be asked now are deferred."""
        self._active: defaultdict[Lane, set[bytes]] = defaultdict(set)
        self._parked: defaultdict[Lane, set[bytes]] = defaultdict(set)
        self._changed = anyio.Event()

    def __len__(self) -> int:
        """How many deliveries are under way."""
        return sum(map(len, self._active.values()))

    @property
    def room(self) -> int:
        """How many more deliveries may be fetched."""
        return max(0, self.most - len(self))

    @property
    def crowded(self) -> bool:
        """Whether there are so many that those that cannot be asked now are to be deferred."""
        return len(self) > self.most_waiting

    @property
    def room_for_deferred(self) -> int:
        """How many deferred deliveries may be fetched: none until it is half empty again."""
        room = self.most_waiting - len(self)
        return room if 2 * room >= self.most_waiting else 0

    def add(self, lane: Lane, entry_ids: Iterable[bytes]) -> None:
        """Deliveries are under way, whether new or parked until now."""
        ids = set(entry_ids)
        self._parked[lane] -= ids
        self._active[lane] |= ids

    def park(self, lane: Lane, entry_ids: Iterable[bytes]) -> None:
        """Deliveries are ours and wait for their retry."""
        self._parked[lane].update(entry_ids)

    def remove(self, lane: Lane, entry_ids: Iterable[bytes]) -> None:
        """Deliveries are settled."""
        self._active[lane].difference_update(entry_ids)
        self._changed.set()

    def look_again(self) -> None:
        """Have everyone who waits for a condition look at it: something else has changed."""
        self._changed.set()

    def has(self, lane: Lane, entry_id: bytes) -> bool:
        """Whether a delivery is in hand, under way or parked."""
        return entry_id in self._active[lane] or entry_id in self._parked[lane]

    def under_way(self, lane: Lane) -> list[bytes]:
        """The entry ids under way of one lane."""
        return list(self._active[lane])

    async def wait_until(self, condition: Callable[[Held], bool]) -> None:
        """Wait until `condition` holds; looked at when something was settled, and when told."""
        while not condition(self):
            if self._changed.is_set():
                self._changed = anyio.Event()
            await self._changed.wait()
