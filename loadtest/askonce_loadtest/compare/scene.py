"""What a peer is measured on: its processes, a fresh store, and what these have used so far."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import anyio
import msgspec
import psutil

from askonce_loadtest.bench.child import Figures
from askonce_loadtest.bench.children import Child, ChildError, command
from askonce_loadtest.compare.catalogue import Peer
from askonce_loadtest.compare.peers import harness
from askonce_loadtest.compare.plan import LABELS, Plan
from askonce_loadtest.compare.venvs import Skipped, without_pythonpath
from askonce_loadtest.servers.node import Node
from askonce_queue import names
from askonce_queue.shards import shard_tags

PEERS_FOLDER = Path(harness.__file__).parent
PEER_END_S = 5.0
READY_POLL_S = 0.02
GUARD_END_S = 15.0
"""How long a worker's guard may take: it ends the worker, by force if need be."""
POOL = "default"
MAXMEMORY = ("maxmemory 1gb", "maxmemory-policy volatile-lfu")
"""As the embedded store has them."""
_READING = frozenset({"info", "client", "hello", "hlen"})
"""Commands that these figures themselves cost, beside those of connecting."""
_MIB = 1 << 20
_ERROR = re.compile(r"[\w.]+(Error|Exception)\b")


class PeerFailed(Exception):
    """A peer that did not do what it was asked, and why."""


class Used(NamedTuple):
    """What store and workers have used since they started, or the difference of two of these."""

    worker_cpu_s: float
    worker_rss_bytes: int
    store_cpu_s: float
    commands: int
    """All calls in the server's statistics, those inside scripts too."""
    reads: int
    """Reads from its clients' sockets: each brings a command or a pipeline."""
    store_bytes: int

    def since(self, before: Self) -> Used:
        """What was used between `before` and this one; of the workers' memory, what it is now."""
        return Used(
            self.worker_cpu_s - before.worker_cpu_s,
            self.worker_rss_bytes,
            self.store_cpu_s - before.store_cpu_s,
            self.commands - before.commands,
            self.reads - before.reads,
            self.store_bytes - before.store_bytes,
        )


class Scene(NamedTuple):
    """Where one peer plays: its environment, a fresh store, and a folder for what it prints."""

    peer: Peer
    python: str
    plan: Plan
    store: Node
    folder: Path
    order: dict[str, Any]

    @asynccontextmanager
    async def worker(self) -> AsyncGenerator[int]:
        """Run one worker process of a queue, with what it starts; yields the guard's pid."""
        words = [word.format(config=self.order["config"]) for word in self.peer.worker]
        guarded = [self.python, str(PEERS_FOLDER / "guard.py"), self.python, *words]
        async with self._run(guarded, "worker", GUARD_END_S) as guard:
            yield guard.pid

    @asynccontextmanager
    async def asker(self) -> AsyncGenerator[Child]:
        """Run the peer's script, ready for its steps: a producer, or a process with the cache."""
        script = [self.python, str(PEERS_FOLDER / self.peer.script), *self.peer.arguments]
        async with self._run(script, "asker", PEER_END_S) as child:
            with self._bounded(f"it was not ready within {self.plan.limit_s:g} s"):
                said: dict[str, str] = msgspec.json.decode(await child.read_line())
            if "skip" in said:
                raise Skipped(said["skip"])
            yield child

    @asynccontextmanager
    async def _run(self, words: list[str], what: str, end_s: float) -> AsyncGenerator[Child]:
        path = self.folder / f"{what}-{len(list(self.folder.iterdir()))}.log"
        environment = {
            **(without_pythonpath() if self.peer.requirements else os.environ),
            harness.VARIABLE: msgspec.json.encode(self.order).decode(),
            "PYTHONUNBUFFERED": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        with path.open("wb") as errors:
            try:
                async with command(
                    words,
                    f"{self.peer.name}'s {what}",
                    end_s=end_s,
                    folder=PEERS_FOLDER,
                    environment=environment,
                    errors=errors,
                ) as child:
                    yield child
            except ChildError as error:
                raise PeerFailed(f"{what} ended: {last_words(path) or 'without a word'}") from error

    async def ready(self, workers: int) -> None:
        """Wait until so many workers take jobs: askonce's have a heartbeat, others leave a file."""
        folder, beats = anyio.Path(self.order["ready_folder"]), names.beats(shard_tags(1)[0], POOL)
        with self._bounded(f"its worker took no jobs within {self.plan.limit_s:g} s"):
            while True:
                beating = int(await self.store.command("HLEN", beats))
                if beating + len([_ async for _ in folder.iterdir()]) >= workers:
                    return
                await anyio.sleep(READY_POLL_S)

    async def do(self, child: Child, step: str) -> Figures:
        """Have a process of the peer do a step. Raises `TimeoutError` when it takes too long."""
        with self._bounded(f"{step} took over {self.plan.limit_s:g} s, and was ended"):
            return await child.do(step)

    @contextmanager
    def _bounded(self, complaint: str) -> Generator[None]:
        """Raise `PeerFailed` with what the workers have said last, when it takes too long."""
        try:
            with anyio.fail_after(self.plan.limit_s):
                yield
        except TimeoutError as error:
            words = [last_words(path) for path in self.folder.glob("worker-*.log")]
            said = "".join(f"; its worker: {line}" for line in words if line)
            raise PeerFailed(complaint + said) from error

    async def used(self, *guards: int) -> Used:
        """What store and workers have used so far."""
        cpu, memory = await self.store.info("cpu"), await self.store.info("memory")
        stats = await self.store.info("commandstats")
        buffers = ("mem_clients_normal", "mem_aof_buffer")
        trees = [tree_use(guard) for guard in guards]
        return Used(
            sum(tree[0] for tree in trees),
            sum(tree[1] for tree in trees),
            float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"]),
            _calls(stats),
            int((await self.store.info("stats"))["total_reads_processed"]),
            int(memory["used_memory"]) - sum(int(memory.get(name, 0)) for name in buffers),
        )


def rss_bytes(child: Child) -> int:
    """Resident memory of a process of ours."""
    return psutil.Process(child.pid).memory_info().rss


def tree_use(guard: int) -> tuple[float, int]:
    """CPU seconds and resident bytes of all processes below `guard`, ended ones' CPU included."""
    cpu_s, rss_bytes = 0.0, 0
    for process in psutil.Process(guard).children(recursive=True):
        try:
            times = process.cpu_times()
            rss_bytes += process.memory_info().rss
        except psutil.NoSuchProcess:  # it has ended since; its parent has its time
            continue
        cpu_s += times.user + times.system + times.children_user + times.children_system
    return cpu_s, rss_bytes


def _calls(stats: dict[str, str]) -> int:
    total = 0
    for row, counts in stats.items():
        name = row.removeprefix("cmdstat_").partition("|")[0]
        if name not in _READING:
            total += int(dict(one.split("=") for one in counts.split(","))["calls"])
    return total


def last_words(path: Path) -> str:
    """The last line of a log that names an error, or else the last that says anything."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line.strip(" |+-") for line in lines]
    errors = [line for line in said if _ERROR.match(line)]
    return next(iter(reversed(errors or [line for line in said if line])), "")


@asynccontextmanager
async def scene(
    peer: Peer, python: str, plan: Plan, *, folder: Path, shared: dict[str, Any]
) -> AsyncGenerator[Scene]:
    """Start a fresh server for a peer, for the length of a block; `shared` is of every order."""
    logs, ready = folder / "logs", folder / "ready"
    for one in (logs, ready):
        one.mkdir(parents=True)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(Node(folder / "store", conf=MAXMEMORY))
        config = folder / "askonce.toml"
        config.write_text(_config(store.url, shared["model_url"]), encoding="utf-8")
        order = shared | {
            "store_url": store.url,
            "config": str(config),
            "ready_folder": str(ready),
            "labels": LABELS,
            "jobs": plan.jobs,
            "seconds": plan.seconds,
            "callers": plan.callers,
            "paced_per_s": plan.paced_per_s,
            "paced_jobs": plan.paced_jobs,
            "copies": plan.copies,
            "seed": plan.seed,
        }
        yield Scene(peer, python, plan, store, logs, order)


def _config(store_url: str, model_url: str) -> str:
    # JSON texts are TOML too.
    return (
        f'[redis]\nurl = "{store_url}"\n\n'
        f'[models.stand_in]\nkind = "predict"\nmodel = "stand-in-1"\n'
        f'base_url = "{model_url}"\n\n'
        f'[tasks.compare]\nmodel = "stand_in"\nlabels = {msgspec.json.encode(LABELS).decode()}\n'
    )


def per_job(used: Used, run: Figures) -> Figures:
    """The figures of a throughput run."""
    jobs = run["jobs"]
    return {
        "jobs_per_s": jobs / run["wall_s"],
        "store_cpu_us_per_job": used.store_cpu_s / jobs * 1e6,
        "store_commands_per_job": used.commands / jobs,
        "store_reads_per_job": used.reads / jobs,
        "store_bytes_left_per_job": used.store_bytes / jobs,
        "jobs": jobs,
    }


def mib(size_bytes: float) -> float:
    """Bytes in MiB."""
    return size_bytes / _MIB
