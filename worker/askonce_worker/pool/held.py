"""What this worker holds: deliveries that were fetched and whose settle is not yet confirmed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import anyio

from askonce_queue.queue_scripts import LANES, Lane
from askonce_worker.config import LaneWeights


class Held:
    """The bounded set of deliveries in hand, of all lanes.

    *Parked* deliveries were taken from a dead worker and wait for their retry; they are ours, but
    not under way.

    Those that wait have `most_waiting` places. A lane has its share of them whatever the other
    does, and more while the other leaves some: so bulk alone may use all, and interactive jobs that
    come then are held beyond them, up to half of what is left for hits.
    """

    def __init__(self, most: int, most_waiting: int, weights: LaneWeights | None = None) -> None:
        self.most = most
        self.most_waiting = most_waiting
        """From how many deliveries under way those that cannot be asked now are deferred."""
        weights = weights or LaneWeights()
        self._shares: dict[str, int] = {
            lane: max(1, int(most_waiting * weights.share(lane))) for lane in LANES
        }
        self._counts: dict[str, int] = dict.fromkeys(LANES, 0)
        self._active: defaultdict[Lane, set[bytes]] = defaultdict(set)
        self._parked: defaultdict[Lane, set[bytes]] = defaultdict(set)
        self._changed = anyio.Event()

    def __len__(self) -> int:
        """How many deliveries are under way."""
        return sum(self._counts.values())

    @property
    def room(self) -> int:
        """How many more deliveries may be fetched."""
        return max(0, self.most - len(self))

    def crowded(self, lane: Lane) -> bool:
        """Whether there are so many that those of a lane that cannot be asked are deferred."""
        held = len(self)
        if held <= self.most_waiting:
            return False
        home = lane.home
        return self._counts[home] > self._shares[home] or self._is_packed(held)

    def crowded_beyond(self) -> bool:
        """The same for those that are not to stand behind others which cannot be asked for long.

        They have a quarter of what is left for hits.
        """
        return len(self) > self.most_waiting + (self.most - self.most_waiting) // 4

    def room_for_deferred(self, lane: Lane) -> int:
        """How many deferred deliveries of a lane may be fetched.

        None until all that may wait, or the lane's share of it, is half empty again.
        """
        held, home = len(self), lane.home
        room = self.most_waiting - held
        if 2 * room >= self.most_waiting:
            return room
        share = self._shares[home]
        room = share - self._counts[home]
        return room if 2 * room >= share and not self._is_packed(held) else 0

    @property
    def room_to_look(self) -> int:
        """How many deferred deliveries may be looked at out of turn, in the room of hits."""
        return self.room // 4

    def _is_packed(self, held: int) -> bool:
        """Whether hits need the room that is left."""
        return held > (self.most_waiting + self.most) // 2

    def add(self, lane: Lane, entry_ids: Iterable[bytes]) -> None:
        """Deliveries are under way, whether new or parked until now."""
        ids = set(entry_ids)
        active = self._active[lane]
        before = len(active)
        self._parked[lane] -= ids
        active |= ids
        self._counts[lane.home] += len(active) - before

    def park(self, lane: Lane, entry_ids: Iterable[bytes]) -> None:
        """Deliveries are ours and wait for their retry."""
        self._parked[lane].update(entry_ids)

    def remove(self, lane: Lane, entry_ids: Iterable[bytes]) -> None:
        """Deliveries are settled."""
        active = self._active[lane]
        before = len(active)
        active.difference_update(entry_ids)
        self._counts[lane.home] -= before - len(active)
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
