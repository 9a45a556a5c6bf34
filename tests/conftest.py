"""Fixtures of all tests: one embedded server for the run, and checks for what tests leave."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import redis.asyncio

from askonce_queue.connections import connect
from askonce_queue.embedded import EmbeddedStore
from askonce_queue.store import Store
from tests.support.embedded_server import is_running, server_pid
from tests.support.leaks import ProcessState, left_on_server, other_tasks
from tests.support.waiting import eventually, eventually_sync


@pytest.fixture(scope="session")
def store_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real server that all tests share."""
    with EmbeddedStore(tmp_path_factory.mktemp("store"), maxmemory="256mb") as embedded:
        yield embedded.url


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which commands, told so by TMPDIR, make their temporary folders.

    Its path is shorter than that of `tmp_path`: sockets are to fit.
    """
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr("tempfile.tempdir", None)
        yield Path(folder)


@pytest.fixture
def state_folder(tmp_path: Path) -> Iterator[Path]:
    """A state folder whose server has ended when the test has."""
    folder = tmp_path / "state"
    yield folder
    if (folder / "socket").exists():
        with EmbeddedStore(folder) as embedded:
            pid = server_pid(embedded.url)
        eventually_sync(lambda: not is_running(pid))


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    """A `commands` client on the shared server, empty when the test begins."""
    client = connect(store_url, role="commands")
    try:
        await client.flushall()
        yield client
    finally:
        await client.aclose()


@pytest.fixture
async def askonce_store(store: redis.asyncio.Redis, store_url: str) -> AsyncIterator[Store]:
    """The shared server as the product sees it; `store` is how tests look behind its back."""
    del store  # it empties the server first
    client = Store(store_url)
    yield client
    await client.aclose()


@pytest.fixture
async def no_leaks_of_a_coroutine(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Fail a coroutine test that leaves anything behind. Its loop runs on while that is awaited."""
    left = what_is_left(request)
    yield
    try:
        await eventually(lambda: not (other_tasks() or left()), timeout_s=2)
    except AssertionError:
        pytest.fail(f"left behind: {[*other_tasks(), *left()]}")


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves anything behind: here, or on the server that all tests share."""
    if inspect.iscoroutinefunction(getattr(request.node, "obj", None)):
        request.getfixturevalue("no_leaks_of_a_coroutine")
        yield
        return
    left = what_is_left(request)
    yield
    try:
        eventually_sync(lambda: not left(), timeout_s=2)
    except AssertionError:
        pytest.fail(f"left behind: {left()}")


def what_is_left(request: pytest.FixtureRequest) -> Callable[[], list[str]]:
    """Tells what has been added since now, here and on the shared server if the test uses it."""
    url = request.getfixturevalue("store_url") if "store_url" in request.fixturenames else None
    before = ProcessState.now()
    return lambda: before.new() + (left_on_server(url) if url is not None else [])
