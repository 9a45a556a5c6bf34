"""A virtual environment for each peer: built once by venv and pip, kept in the user's cache folder.

The folder's name carries a hash of what is installed, so new pins make a new one; a file that is
written last says that it is whole, and a lock lets one process build it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import anyio
from anyio import to_thread

from askonce_loadtest.compare.catalogue import Peer

INSTALL_LIMIT_S = 600.0
LOCK_POLL_S = 0.2
_WHOLE = "askonce-versions.json"
_LIST = (
    "import importlib.metadata as m, json; "
    "print(json.dumps({d.name.lower(): d.version for d in m.distributions()}))"
)


class Skipped(Exception):
    """A peer that cannot be measured here, and why."""


class Venv(NamedTuple):
    """An environment that is ready."""

    python: str
    versions: dict[str, str]
    """Package → version, of everything that is installed."""


def default_folder() -> Path:
    """Where environments are kept: `askonce/compare` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "askonce" / "compare"


def folder_of(peer: Peer, base: Path) -> Path:
    """The folder of a peer's environment: its name, and a hash of all that makes it."""
    made_of = [*sorted(peer.requirements), platform.python_version(), platform.machine()]
    digest = hashlib.sha256("\n".join(made_of).encode()).hexdigest()[:12]
    return base / f"{peer.name.replace(' ', '-')}-{digest}"


async def environment(peer: Peer, base: Path) -> Venv:
    """The peer's environment, built if it is not there. Raises `Skipped` when that fails."""
    if not peer.requirements:
        return Venv(sys.executable, await _versions(sys.executable))
    folder = folder_of(peer, base)
    try:
        await anyio.Path(base).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Skipped(f"cannot write to {base}: {error}; choose another folder: --venvs") from error
    python = str(folder / ("Scripts" if os.name == "nt" else "bin") / "python")
    async with _locked(base / f"{folder.name}.lock"):
        whole = anyio.Path(folder / _WHOLE)
        if not await whole.exists():
            await _build(peer, folder, python)
            versions = await _versions(python)
            await whole.write_text(json.dumps(versions, indent=1), encoding="utf-8")
        return Venv(python, json.loads(await whole.read_text(encoding="utf-8")))


def without_pythonpath() -> dict[str, str]:
    """The variables for programs of a peer's environment, which has nothing to do with ours."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


async def _build(peer: Peer, folder: Path, python: str) -> None:
    await to_thread.run_sync(shutil.rmtree, folder, True)  # what an interrupted build has left
    try:
        with anyio.fail_after(INSTALL_LIMIT_S):
            await _run([sys.executable, "-m", "venv", str(folder)])
            quiet = ("--quiet", "--disable-pip-version-check", "--no-input")
            await _run([python, "-m", "pip", "install", *quiet, *peer.requirements])
    except TimeoutError as error:
        raise Skipped(f"not installed within {INSTALL_LIMIT_S:g} s") from error


async def _versions(python: str) -> dict[str, str]:
    versions: dict[str, str] = json.loads(await _run([python, "-c", _LIST]))
    return dict(sorted(versions.items()))


async def _run(command: Sequence[str]) -> str:
    """Run a command and return what it prints. Raises `Skipped` with the reason when it fails."""
    try:
        done = await anyio.run_process(command, check=False, env=without_pythonpath())
    except OSError as error:
        raise Skipped(f"cannot run {command[0]}: {error}") from error
    if done.returncode != 0:
        raise Skipped(f"cannot be installed: {_reason(done.stderr.decode(errors='replace'))}")
    return done.stdout.decode()


def _reason(output: str) -> str:
    """The line of pip's output that says why: its first error, or else its last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return errors[0] if errors else (lines or ["no reason was given"])[-1]


@asynccontextmanager
async def _locked(path: Path) -> AsyncGenerator[None]:
    """Hold the lock of a folder; the kernel drops it when its holder dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await anyio.sleep(LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)
