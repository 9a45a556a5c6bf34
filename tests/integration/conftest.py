"""What several files of integration tests share."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import contextmanager

import pytest
import redis.asyncio

from tests.support.virtual_time import VirtualTime, virtual_scripts


@pytest.fixture
async def time(store: redis.asyncio.Redis, store_url: str) -> AsyncGenerator[VirtualTime]:
    """A clock that a test advances; every script asks it for the time."""
    with contextmanager(virtual_scripts)():
        time = VirtualTime(store, store_url)
        await time.advance(0)
        yield time
