"""Invariant 10: tenants do not see each other, by answer, source, error or time."""

from __future__ import annotations

import redis.asyncio

from askonce_worker.cache.key import KeyMaker
from askonce_worker.models.protocol import Rejection
from askonce_worker.tasks import Task
from tests.support.resolving import DIGEST, StepModel, Waiter, make_task, resolver_on
from tests.support.waiting import eventually


def asks(task: Task, *tenants: str, text: str = "x") -> list[Waiter]:
    waiters: list[Waiter] = []
    for tenant in tenants:
        waiter = Waiter(task, text, tenant=tenant)
        waiter.key = task.key_maker.text_key(text, tenant)
        waiters.append(waiter)
    return waiters


async def test_what_one_has_asked_is_new_for_another(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    """Whatever of it is there: in memory, in the store, or on its way."""
    del store
    model = StepModel(closed=True)
    task = make_task(model)
    async with resolver_on(store_url) as first, resolver_on(store_url) as second:
        one, other = asks(task, "one", "other")
        first.resolve([one, other])
        await eventually(lambda: model.in_flight == 2)  # neither waits for the other
        model.open()
        assert [(await waiter.outcome()).source for waiter in (one, other)] == ["model", "model"]
        for resolver, number in ((first, 3), (second, 4)):
            (third,) = asks(task, f"another {number}")
            resolver.resolve([third])
            assert (await third.outcome()).source == "model"
            assert model.total == number


async def test_what_failed_for_one_is_asked_for_another(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    del store

    async def behave(_text: str, number: int) -> None:
        if number == 1:
            raise Rejection("refused", "something about the first tenant's key")

    task = make_task(StepModel(behave=behave), remember_s=600)
    async with resolver_on(store_url) as resolver:
        one, again, other = asks(task, "one", "one", "other")
        for waiter in (one, again, other):
            resolver.resolve([waiter])
            await waiter.outcome()
        assert one.outcomes[0].error is not None
        assert again.outcomes[0].error is not None
        assert other.outcomes[0].label == "a"


async def test_a_task_may_say_that_they_share(store: redis.asyncio.Redis, store_url: str) -> None:
    del store
    task = make_task(StepModel())
    task.key_maker = KeyMaker(DIGEST, shared=True)
    async with resolver_on(store_url) as resolver:
        sources: list[str | None] = []
        for waiter in asks(task, "one", "other"):
            resolver.resolve([waiter])
            sources.append((await waiter.outcome()).source)
        assert sources == ["model", "memory"]


async def test_no_text_of_a_tenant_is_another_one(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    """Names of tenants and namespaces cannot be chosen so that they meet."""
    del store, store_url
    maker = make_task(StepModel()).key_maker
    keys = {
        maker.text_key("x", tenant, namespace)
        for tenant in ("", "a", "b", "ab", "shared", "tenant")
        for namespace in ("", "a", "b", "ab", "shared")
    }
    assert len(keys) == 30
