"""Flights that wait for a slot of one model: in turn within a lane, by weight between the lanes.

Weights are kept by start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair Queuing", SIGCOMM
1996), with a slot as the unit: each lane has the virtual time at which its next flight starts, the
lane with the earlier one is served, and that moves it on by 1 / weight. A lane that was idle begins
at the virtual time of now, so it has saved up nothing; of equals, interactive goes first.
So an interactive flight that waits alone has at most one bulk flight served before it, and bulk
that waits has its share of the slots, whatever comes in the other lane.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from askonce_queue.queue_scripts import LANES
from askonce_worker.config import LaneWeights
from askonce_worker.flights import Flight

MOST_DEAD = 256
"""How many flights that have ended otherwise may stand here before they are looked for."""


class SlotQueue:
    """The flights that wait for one model, and those whose turn has come."""

    def __init__(self, weights: LaneWeights) -> None:
        self._flights: dict[str, deque[Flight]] = {lane: deque() for lane in LANES}
        self._steps: dict[str, float] = {lane: 1 / weights.share(lane) for lane in LANES}
        self._starts: dict[str, float] = dict.fromkeys(LANES, 0.0)
        self._now = 0.0
        self._most: dict[str, int] = dict.fromkeys(LANES, MOST_DEAD)
        self.chosen: set[Flight] = set()
        """Flights whose turn has come and that the store is about to be asked about: for each, one
        free slot is nobody else's."""

    def put(self, flight: Flight) -> None:
        """Let a flight wait; one that waits in its lane already keeps its place."""
        lane = flight.lane
        if flight.queued_in == lane:
            return
        self._forget_dead(lane)
        waiting = self._flights[lane]  # another one, perhaps
        if not waiting:
            step = self._steps[lane] if lane == "bulk" else 0.0
            self._starts[lane] = max(self._starts[lane], self._now + step)
        flight.queued_in = lane
        waiting.append(flight)

    def pop(self) -> Flight | None:
        """Take the flight whose turn it is."""
        for lane in LANES:
            self._forget_dead(lane)
        # The first of equals: lanes stand in the order of their urgency.
        waiting = [lane for lane in LANES if self._flights[lane]]
        if not waiting:
            return None
        lane = min(waiting, key=self._starts.__getitem__)
        flight = self._flights[lane].popleft()
        flight.queued_in = ""
        self._now = self._starts[lane]
        self._starts[lane] += self._steps[lane]
        return flight

    def rank(self, flight: Flight) -> tuple[bool, bool]:
        """What to sort by when slots are given out: whose turn has come, then the urgent ones."""
        return flight not in self.chosen, flight.bulk

    def __iter__(self) -> Iterator[Flight]:
        return (one for lane in LANES for one in self._flights[lane] if _waits(one, lane))

    def __len__(self) -> int:
        """How many stand here; some may wait no more."""
        return sum(map(len, self._flights.values()))

    def __bool__(self) -> bool:
        return any(True for _ in self)

    def _forget_dead(self, lane: str) -> None:
        """Drop those in front that wait no more, and where there may be many, all."""
        waiting = self._flights[lane]
        while waiting and not _waits(waiting[0], lane):
            waiting.popleft()
        if len(waiting) > self._most[lane]:
            self._flights[lane] = deque(one for one in waiting if _waits(one, lane))
            self._most[lane] = MOST_DEAD + 2 * len(self._flights[lane])


def _waits(flight: Flight, lane: str) -> bool:
    return flight.queued_in == lane and not (flight.landed or flight.flying)
