"""The embedded store: a real Valkey server on a private unix socket, shared by all its users.

Three lock files in the state folder decide who starts and who stops it. They are flocks, which the
kernel drops when their holder dies: a `kill -9` of anyone leaves nothing to repair.

| file | held | by |
| --- | --- | --- |
| `start.lock` | exclusively, while starting or stopping | one user |
| `users.lock` | shared, while using the store | every user |
| `server.lock` | exclusively, while it lives | the server itself, through an inherited descriptor |

Two servers on one folder would append to one log and lose acknowledged writes; `server.lock` rules
that out even when whoever started the first server is gone. Without users the server is stopped by
the last one out, or, if that one was killed, found alive and used by the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import time
import urllib.parse
from collections.abc import Callable, Generator
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio

from askonce_queue.errors import StoreUnavailable
from askonce_queue.server_process import (
    answers,
    ask,
    choose_socket,
    last_log_lines,
    launch,
    recorded_socket,
)

KEEP_ALIVE_S = 1.0
"""How often an asyncio user looks whether the server still runs."""
POLL_S = 0.01

_log = logging.getLogger("askonce.store")


class EmbeddedStore:
    """Starts or joins the server of `folder` on entry; on exit the last user stops it.

    `async with EmbeddedStore(folder) as store` and `with EmbeddedStore(folder) as store` do the
    same; `store.url` is a `unix://` URL for redis-py. An instance is one user: open another one for
    every process, also after a fork. `maxmemory` is in the server's notation ("1gb"), or in bytes;
    the user that starts the server decides it. Raises `StoreUnavailable` when the server cannot be
    found, started or reached within `start_timeout_s` seconds.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        maxmemory: str | int = "1gb",
        start_timeout_s: float = 60.0,
        stop_timeout_s: float = 30.0,
    ) -> None:
        self.folder = Path(folder).absolute()
        self._maxmemory = maxmemory
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._socket_path: Path | None = None
        self._users_lock: int | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """The URL of the running server; raises `RuntimeError` before entry and after exit."""
        if self._socket_path is None:
            raise RuntimeError("the embedded store is not open: use 'with' or 'async with'")
        return f"unix://{urllib.parse.quote(str(self._socket_path))}"

    def __enter__(self) -> Self:
        if self._users_lock is not None:
            raise RuntimeError("the embedded store is open already: one instance is one user")
        deadline = time.monotonic() + self._start_timeout_s
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _exclusive(self.folder / "start.lock", deadline):
                users_lock = _open_lock(self.folder / "users.lock")
                try:
                    fcntl.flock(users_lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    self._socket_path = self._ensure_running(deadline)
                except BaseException:
                    os.close(users_lock)
                    raise
                self._users_lock = users_lock
        except OSError as error:
            raise StoreUnavailable(
                f"the embedded store cannot use its folder {self.folder}: {error}. "
                "Make it a folder you can write to, or choose another one"
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        users_lock, socket_path = self._users_lock, self._socket_path
        self._users_lock = self._socket_path = None
        if users_lock is None or socket_path is None:
            return
        deadline = time.monotonic() + self._stop_timeout_s
        try:
            with _exclusive(self.folder / "start.lock", deadline):
                if _try_lock(users_lock):
                    _stop(self.folder, socket_path, deadline)
        except (OSError, StoreUnavailable) as failure:
            # A server that cannot be stopped loses nothing: the next user finds it alive.
            _log.warning("the embedded store was left running: %s", failure)
        finally:
            os.close(users_lock)

    async def __aenter__(self) -> Self:
        try:
            await _in_thread(self.__enter__)
        except asyncio.CancelledError:
            await _in_thread(lambda: self.__exit__(None, None, None))
            raise
        self._keeper = asyncio.create_task(self._keep_alive())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        await _in_thread(lambda: self.__exit__(kind, error, traceback))

    async def _keep_alive(self) -> None:
        """Start the server again when it dies: with the append-only file, accepted jobs survive."""
        while True:
            await asyncio.sleep(KEEP_ALIVE_S)
            if self.is_alive():
                continue
            _log.warning("the embedded store has died; it is started again")
            try:
                await _in_thread(self.revive)
            except StoreUnavailable as failure:
                _log.warning("the embedded store cannot be started again: %s", failure)

    def is_alive(self) -> bool:
        """Whether a server runs on the folder: it holds a lock for as long as it lives."""
        server_lock = _open_lock(self.folder / "server.lock")
        try:
            return not _try_lock(server_lock)
        finally:
            os.close(server_lock)

    def revive(self) -> None:
        """Start the server again if it has died (the system was out of memory, say). Blocks.

        The URL stays the same. Raises `StoreUnavailable`, and `RuntimeError` when not open.
        """
        if self._socket_path is None:
            raise RuntimeError("the embedded store is not open: use 'with' or 'async with'")
        deadline = time.monotonic() + self._start_timeout_s
        with _exclusive(self.folder / "start.lock", deadline):
            self._ensure_running(deadline)

    def _ensure_running(self, deadline: float) -> Path:
        """Return the socket of a server that answers; start one if none is alive."""
        server_lock = _open_lock(self.folder / "server.lock")
        try:
            while not _try_lock(server_lock):
                socket_path = recorded_socket(self.folder)
                if socket_path is not None and answers(socket_path):
                    return socket_path
                if time.monotonic() > deadline:
                    raise StoreUnavailable(
                        f"the server of the embedded store in {self.folder} is alive but did not "
                        f"answer for {self._start_timeout_s:g} s{last_log_lines(self.folder)}"
                    )
                time.sleep(POLL_S)
            return self._spawn(server_lock, deadline)
        finally:
            os.close(server_lock)

    def _spawn(self, server_lock: int, deadline: float) -> Path:
        """Start a server that inherits `server_lock`; return its socket once it answers."""
        # After a revival, all users still hold the old URL.
        socket_path = self._socket_path or choose_socket(self.folder)
        process = launch(self.folder, socket_path, self._maxmemory, server_lock)
        while not answers(socket_path):
            if process.poll() is not None:
                raise StoreUnavailable(
                    f"the server of the embedded store ended at once (exit code "
                    f"{process.returncode}){last_log_lines(self.folder)}"
                )
            if time.monotonic() > deadline:
                process.terminate()
                raise StoreUnavailable(
                    f"the server of the embedded store in {self.folder} was not ready within "
                    f"{self._start_timeout_s:g} s{last_log_lines(self.folder)}"
                )
            time.sleep(POLL_S)
        return socket_path


def _stop(folder: Path, socket_path: Path, deadline: float) -> None:
    """Shut the server down and wait until its process is gone. Raises `StoreUnavailable`."""
    server_lock = _open_lock(folder / "server.lock")
    try:
        refusal = b""
        if not _try_lock(server_lock):
            refusal = ask(socket_path, b"SHUTDOWN")
        _wait_for_lock(server_lock, deadline, f"it did not stop in time {refusal.decode()}")
    finally:
        os.close(server_lock)


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try_lock(lock: int) -> bool:
    """Take `lock` exclusively if nobody else has it. Whatever it held before is lost if not."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_for_lock(lock: int, deadline: float, complaint: str) -> None:
    while not _try_lock(lock):
        if time.monotonic() > deadline:
            raise StoreUnavailable(complaint)
        time.sleep(POLL_S)


@contextlib.contextmanager
def _exclusive(path: Path, deadline: float) -> Generator[None]:
    lock = _open_lock(path)
    try:
        _wait_for_lock(lock, deadline, f"another process holds {path} for too long")
        yield
    finally:
        os.close(lock)


async def _in_thread(function: Callable[[], object]) -> None:
    """Run `function` in a thread, and wait for its end even when cancelled."""
    future = asyncio.get_running_loop().run_in_executor(None, function)
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):  # shields from anyio's cancellation, not from asyncio's
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                cancelled = error
    failure = future.exception()
    if cancelled is not None:
        raise cancelled
    if failure is not None:
        raise failure
