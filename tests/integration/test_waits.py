"""Who waited: asks that joined a question in progress, here or in another process."""

from __future__ import annotations

import redis.asyncio

from tests.support.resolving import StepModel, Waiter, make_task, resolvers_on
from tests.support.waiting import eventually


async def test_waits_are_counted_where_they_are_waited(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    del store  # empties the server
    model = StepModel(closed=True)
    task = make_task(model)
    async with resolvers_on(store_url, 2) as (leader, other):
        waiters = [Waiter(task, "x") for _ in range(3)]
        leader.resolve(waiters)
        await eventually(lambda: model.total == 1)
        late = [Waiter(task, "x") for _ in range(2)]
        other.resolve(late)
        await eventually(lambda: all(flight.busy_token for flight in other.flights))
        assert leader.counters.total("waits") == other.counters.total("waits") == 0
        model.open()
        for waiter in (*waiters, *late):
            await waiter.outcome()
        assert leader.counters.total("waits") == 2  # the first of them asked
        assert other.counters.total("waits") == 2
        other.resolve([again := Waiter(task, "x")])
        assert (await again.outcome()).source == "memory"
        assert other.counters.total("waits") == 2
