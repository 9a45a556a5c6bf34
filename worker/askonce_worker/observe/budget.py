"""What tasks may spend in a day: known by every worker, shared through the store.

A day begins at 0:00 UTC, by the store's clock. A worker adds what it has spent once a second and
learns what all have spent; in between, and while the store is away, it goes by what it knows. So
all workers together pass a budget by at most

    (calls in flight + calls that begin within a second and a round trip) × the cost of a call

and while the store is away by what each of them had left. A flush whose reply was lost counts
twice: then the budget ends early.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

import anyio
import structlog
from redis.exceptions import RedisError

from askonce_queue import names, queue_scripts
from askonce_queue.scripts import CHUNK
from askonce_queue.store import Store
from askonce_worker.clock import Clock, SystemClock
from askonce_worker.observe.money import NANO

DAY_MS = 86_400_000
FLUSH_EVERY_S = 1.0
UNCANCELLED_S = 3.0
"""How long a flush under way may outlive the end of its process."""
LAST_S = 1.0
"""How long the end of a process waits for what it has spent to be written."""

log = structlog.get_logger("askonce.budget")


class Budget:
    """What one task may spend a day (`per_day`), and has spent as far as this process knows.

    Amounts are in `currency`. From `warn_at` on, a share of it, there is one warning a day.
    """

    def __init__(
        self,
        task: str,
        per_day: float,
        *,
        warn_at: float = 0.8,
        currency: str = "USD",
        clock: Clock | None = None,
    ) -> None:
        self.task = task
        self.per_day = per_day
        self.warn_at = warn_at
        self.currency = currency
        self._limit_nano = round(per_day * NANO)
        self._clock = clock or SystemClock()
        self._known = 0
        """What all have spent on this day, when the store was last asked."""
        self._unsent: Counter[int] = Counter()
        """Day → what was spent here since, in billionths."""
        self._sending: Counter[int] = Counter()
        self._warned = False
        self._begin_day(self._clock.wall_ms())  # until the store says what time it is

    def spend(self, nano: int) -> None:
        """Count what a call has cost, in billionths."""
        self._roll_over()
        self._unsent[self._day] += nano
        self._warn()

    @property
    def spent_nano(self) -> int:
        """What was spent today, in billionths."""
        self._roll_over()
        return self._known + self._sending[self._day] + self._unsent[self._day]

    @property
    def exceeded(self) -> bool:
        """Whether no more calls may be made today."""
        return self.spent_nano >= self._limit_nano

    @property
    def refusal(self) -> str:
        """What is said to who would need a call."""
        ends = dt.datetime.fromtimestamp((self._day + 1) * DAY_MS / 1000, dt.UTC)
        return (
            f"the budget of task {self.task!r} for today is used up: {self.spent_nano / NANO:.6g} "
            f"of {self.per_day:g} {self.currency} spent; it is renewed at "
            f"{ends:%Y-%m-%d %H:%M} UTC. Answers that are known are still served"
        )

    def take(self) -> dict[int, int]:
        """What the store is to be told: day since 1970 → billionths. It is on its way then."""
        self._sending, self._unsent = self._unsent, Counter()
        return dict(self._sending)

    def take_back(self) -> None:
        """It could not be told: tell it with the next."""
        self._unsent.update(self._sending)
        self._sending = Counter()

    def told(self, now_ms: float, spent_nano: int) -> None:
        """What all have spent on the day that it is at the store."""
        self._sending = Counter()
        if now_ms // DAY_MS != self._day:
            self._warned = False
        self._begin_day(now_ms)
        self._known = spent_nano
        self._warn()

    def _warn(self) -> None:
        """Say once a day that little is left, and nothing."""
        if self._warned or self.spent_nano < self.warn_at * self._limit_nano:
            return
        self._warned = True
        log.warning(
            "a budget is nearly used up",
            task=self.task,
            spent=round(self.spent_nano / NANO, 6),
            per_day=self.per_day,
            currency=self.currency,
        )

    def _begin_day(self, now_ms: float) -> None:
        self._day = int(now_ms // DAY_MS)
        self._ends = self._clock.monotonic() + (DAY_MS - now_ms % DAY_MS) / 1000

    def _roll_over(self) -> None:
        """Begin the next day when it is time, whether or not the store answers."""
        late_s = self._clock.monotonic() - self._ends
        if late_s < 0:
            return
        self._begin_day((self._day + 1) * DAY_MS + late_s * 1000)
        self._known = 0
        self._warned = False


class Budgets:
    """All budgets of one process, and the loop that keeps them on what the store knows."""

    def __init__(self, store: Store, budgets: Iterable[Budget]) -> None:
        self._store = store
        self._budgets = list(budgets)
        self._lock = anyio.Lock()

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._budgets)

    async def run(self) -> None:
        """Tell the store and ask it, each second, for ever."""
        while True:
            await anyio.sleep(FLUSH_EVERY_S)
            # Not cut off in the middle when the process ends: nobody would know what was counted.
            with suppress(RedisError, OSError), anyio.move_on_after(UNCANCELLED_S, shield=True):
                await self.flush()  # what fails is told with the next

    async def finish(self) -> None:
        """Tell what is left, within a bounded time."""
        with suppress(RedisError, OSError), anyio.move_on_after(LAST_S):
            await self.flush()

    async def flush(self) -> None:
        """Tell what was spent here, and learn what all have spent. Raises redis-py's errors."""
        async with self._lock:  # what is on its way is told once
            for start in range(0, len(self._budgets), CHUNK):
                await self._flush(self._budgets[start : start + CHUNK])

    async def _flush(self, budgets: list[Budget]) -> None:
        by_task = {budget.task: budget for budget in budgets}
        spent = [
            (day, task, nano) for task, own in by_task.items() for day, nano in own.take().items()
        ]
        call = queue_scripts.spend(self._store.tags[0], list(by_task), spent)
        try:
            now_ms, *totals = await self._store.run(call)
        except BaseException:
            for budget in budgets:
                budget.take_back()
            raise
        for budget, total in zip(by_task.values(), totals, strict=True):
            budget.told(float(now_ms), int(total))


async def read_spent(store: Store, now_ms: float) -> dict[str, float]:
    """Task → what it has spent on the day of `now_ms`. Raises redis-py's errors."""
    key = names.budgets(store.tags[0])
    flat: list[bytes] = await store.send(key, "HGETALL", key)
    found: dict[str, float] = {}
    for field, nano in zip(flat[::2], flat[1::2], strict=True):
        day, _, task = field.decode(errors="replace").partition("|")
        if day == str(int(now_ms // DAY_MS)):
            with suppress(ValueError):  # written by others
                found[task] = int(nano) / NANO
    return found
