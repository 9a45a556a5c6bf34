"""One server process on loopback, in its own folder: started, killed, paused, started again.

    async with Node(folder) as node:
        client = redis.asyncio.Redis.from_url(node.url)
        node.kill()
        await node.start()  # the same port, folder and data

A node belongs to no event loop: it may be started in one and used in another.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, cast

from redis.asyncio import Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from askonce_loadtest.servers.formats import fields_of, quoted
from askonce_loadtest.servers.ports import HOST, free_port, give_back
from askonce_loadtest.servers.waiting import ServerFailed, logs, until
from askonce_queue.server_process import find_server_binary

Kind = Literal["store", "sentinel"]

START_S = 15.0
STOP_S = 15.0
COMMAND_S = 3.0
"""How long a server may take to answer a command of ours."""
PROBE_S = 0.5
PORT_TRIES = 5
LOG_LINES = 12
_STORE_CONF = (
    "appendonly yes",
    "appendfsync everysec",
    'save ""',
    # A replica would wait five seconds for others to join its first synchronisation.
    "repl-diskless-sync-delay 0",
)

_running: set[Node] = set()


class Node:
    """A server process with AOF, that listens on loopback only.

    `conf` are lines of its configuration file, in the server's notation; they override ours. The
    file is written once, at the first start: what the server rewrites in it, it finds at the next
    one. `password` is that of the default user, or of the ACL user `user`, whom `conf` must then
    define and allow everything. `port` is chosen free when it is None.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "",
        kind: Kind = "store",
        port: int | None = None,
        user: str = "",
        password: str = "",
        conf: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.name = name or folder.name
        self.port = port or free_port()
        self.user = user
        self.password = password
        self._kind: Kind = kind
        self._port_is_ours = port is None
        self._conf = list(conf)
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._paused = False

    def __repr__(self) -> str:
        return f"Node({self.name}, port={self.port})"

    # What it is

    @property
    def url(self) -> str:
        """The node's URL for redis-py."""
        return self.url_of(self.user, self.password)

    def url_of(self, user: str, password: str) -> str:
        """The node's URL for an ACL user, or with "" for the default one."""
        login = f"{user}:{urllib.parse.quote(password, safe='')}@" if password else ""
        return f"redis://{login}{HOST}:{self.port}/0"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return HOST, self.port

    @property
    def pid(self) -> int:
        """The process id; raises `RuntimeError` when it does not run."""
        return self._live().pid

    @property
    def running(self) -> bool:
        """Whether the process exists, paused or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def answering(self) -> bool:
        """Whether the process exists and is not paused."""
        return self.running and not self._paused

    def log_tail(self) -> str:
        """The last lines of its log."""
        try:
            text = (self.folder / "server.log").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return "(no log)"
        return "\n".join(text.splitlines()[-LOG_LINES:])

    def add_conf(self, lines: Sequence[str]) -> None:
        """Add lines to the configuration; before the first start only."""
        assert not (self.folder / "server.conf").exists(), f"{self.name} was started already"
        self._conf += lines

    # What happens to it

    def launch(self) -> None:
        """Start the process; it may not answer yet. Raises `StoreUnavailable` without a binary."""
        assert not self.running, f"{self.name} runs already"
        binary = find_server_binary()
        self.folder.mkdir(parents=True, exist_ok=True)
        conf = self.folder / "server.conf"
        if not conf.exists():
            conf.write_text(self._conf_text(), encoding="utf-8")
        sentinel = ["--sentinel"] if self._kind == "sentinel" else []
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 -- no shell, and all arguments are ours
                [binary, conf, *sentinel],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,  # Ctrl-C is for the user of this process, not for servers
            )
        self._paused = False
        self._owner = os.getpid()
        _running.add(self)

    async def start(self, timeout_s: float = START_S) -> None:
        """Start the process (again) and wait until it answers. Raises `ServerFailed`."""
        for _ in range(PORT_TRIES):
            self.launch()
            try:
                await self.wait_ready(timeout_s)
            except ServerFailed:
                if not self._port_was_taken():
                    raise
                self._choose_another_port()
            else:
                self._port_is_ours = False  # from now on others know it
                return
        raise ServerFailed(f"{self.name} found no free port{logs([self])}")

    async def wait_ready(self, timeout_s: float = START_S) -> None:
        """Wait until it answers and has loaded its data. Raises `ServerFailed`."""

        async def missing() -> str:
            if not self.running:
                code = self._process.returncode if self._process else "not started"
                raise ServerFailed(f"{self.name} has ended (exit code {code}){logs([self])}")
            try:
                await self.command("PING", timeout_s=PROBE_S)  # refused while it loads its data
                text = await self.command("INFO", "server", timeout_s=PROBE_S)
            except (RedisError, OSError) as error:
                return str(error)
            # On a port that was taken, somebody else answers until ours has noticed.
            found = fields_of(text)["process_id"]
            # Ours may have ended meanwhile, and so cannot be asked for its pid.
            ours = self._process is not None and found == str(self._process.pid)
            return "" if ours else f"process {found} answers in its place"

        await until(missing, what=f"{self.name} answers", timeout_s=timeout_s, servers=[self])

    def kill(self) -> None:
        """End it by SIGKILL, paused or not, and reap it."""
        process = self._live()
        process.kill()
        process.wait()

    async def terminate(self, timeout_s: float = STOP_S) -> None:
        """End it by SIGTERM, as an operator would, and reap it. Raises `ServerFailed`."""
        process = self._live()
        self.resume()
        process.terminate()

        async def missing() -> str:
            return "" if process.poll() is not None else "it still runs"

        await until(missing, what=f"{self.name} ends", timeout_s=timeout_s, servers=[self])

    async def restart(self, timeout_s: float = START_S) -> None:
        """Terminate it and start it again."""
        await self.terminate()
        await self.start(timeout_s)

    def pause(self) -> None:
        """Stop it in its tracks (SIGSTOP): connections stay open, nothing is answered."""
        self._live().send_signal(signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        """Let it go on (SIGCONT)."""
        self._live().send_signal(signal.SIGCONT)
        self._paused = False

    def close(self) -> None:
        """Kill and reap it if it runs. Only the process that started it does."""
        if self._owner == os.getpid() and self.running:
            self.kill()
        _running.discard(self)

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # What it says

    async def command(
        self, *words: str | bytes | int, timeout_s: float = COMMAND_S, decode: bool = True
    ) -> Any:
        """Send one command, on a connection of its own, and return its reply, decoded or as bytes.

        Raises redis-py's errors.
        """
        connection = Connection(
            host=HOST,
            port=self.port,
            username=self.user or None,
            password=self.password or None,
            protocol=2,
            decode_responses=decode,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            driver_info=None,
        )
        try:
            await connection.connect()
            await connection.send_command(*words)
            return cast("Any", await connection.read_response())
        finally:
            await connection.disconnect()

    async def info(self, section: str) -> dict[str, str]:
        """The fields of a section of INFO. Raises redis-py's errors."""
        return fields_of(await self.command("INFO", section))

    # Inside

    def _live(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"{self.name} does not run")
        return self._process

    def _conf_text(self) -> str:
        lines = [f"port {self.port}", f"bind {HOST}", f"dir {quoted(str(self.folder))}"]
        if self._kind == "store":
            lines += _STORE_CONF
            if self.password:
                lines.append(f"masterauth {quoted(self.password)}")
        if self.password and not self.user:
            lines.append(f"requirepass {quoted(self.password)}")
        return "\n".join([*lines, *self._conf, ""])

    def _port_was_taken(self) -> bool:
        return self._port_is_ours and not self.running and "already in use" in self.log_tail()

    def _choose_another_port(self) -> None:
        give_back(self.port)
        self.port = free_port()
        for left in ("server.conf", "server.log"):
            with contextlib.suppress(FileNotFoundError):
                (self.folder / left).unlink()


def known_nodes() -> set[Node]:
    """The nodes of this process that were started and not closed, dead or alive."""
    return set(_running)


@atexit.register
def _end_all() -> None:
    """Whatever a test or a run has left behind ends with this process."""
    for node in list(_running):
        node.close()
