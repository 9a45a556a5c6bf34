"""One run: everything is started, put under load and broken, given time to recover, and counted.

    start → load and faults → heal → producers finish → janitors sweep → workers drain → account

Every step is bounded in time; what is not done by then is found by the account.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import anyio

from askonce_loadtest.chaos import model, producer, proxy
from askonce_loadtest.chaos.config_file import write_config
from askonce_loadtest.chaos.evidence import Violation
from askonce_loadtest.chaos.faults import SOUND, Faults
from askonce_loadtest.chaos.fleet import DRAINED_S, Life, Producers, Workers
from askonce_loadtest.chaos.leftovers import Leftovers, sockets
from askonce_loadtest.chaos.links import Address
from askonce_loadtest.chaos.plan import Plan
from askonce_loadtest.chaos.processes import Commanded, until
from askonce_loadtest.chaos.schedule import LINKS, Fault
from askonce_loadtest.chaos.store import StoreUnderTest
from askonce_loadtest.chaos.tap import Settled, Tap
from askonce_queue.store_config import StoreConfig

SETTLE_S = 60.0
"""How long after the last fault all accepted jobs may take to be answered."""
CLOSE_S = 20.0
FAULTS_S = 60.0
"""How long after the load's end faults may take that were begun before."""
CLOCK_STEP_S = 0.05
"""Log lines carry wall time: a clock that is set makes nonsense of them."""
Tell = Callable[[str], None]


class Run(NamedTuple):
    """A run that is over: what happened, and where it is written down."""

    folder: Path
    load_began: float
    """In monotonic seconds."""
    wall_minus_monotonic_s: float
    faults: Faults
    worker_lives: list[Life]
    producer_lives: list[Life]
    settled: Mapping[str, Settled]
    violations: list[Violation]


class Fleet(NamedTuple):
    """Everything that runs."""

    store: StoreUnderTest
    proxy: Commanded
    model_server: Commanded
    workers: Workers
    producers: Producers
    faults: Faults
    load_began: float


async def run_chaos(
    plan: Plan, schedule: list[Fault], store: StoreUnderTest, folder: Path, tell: Tell
) -> Run:
    """Carry out `schedule` under load; `tell` hears what is going on.

    Raises `ChaosError` when the run itself fails. Whatever happens, no process is left.
    """
    offset = _wall_minus_monotonic_s()
    violations: list[Violation] = []
    async with _fleet(plan, store, folder) as fleet:
        tell(f"load and faults for {plan.load_s:g} s")
        tap = Tap(store, fleet.producers.names, offset)
        async with anyio.create_task_group() as watching:
            watching.start_soon(fleet.workers.watch)
            watching.start_soon(fleet.producers.watch)
            watching.start_soon(tap.run)
            await fleet.workers.until_ready()
            await _load(plan, schedule, fleet, tell)
            violations += await _recover(fleet, tell)
            watching.cancel_scope.cancel()
        if abs(_wall_minus_monotonic_s() - offset) > CLOCK_STEP_S:
            violations.append(Violation("clock", "the wall clock was set during the run"))
        return Run(
            folder,
            fleet.load_began,
            offset,
            fleet.faults,
            fleet.workers.lives,
            fleet.producers.lives,
            tap.settled,
            violations,
        )


def _wall_minus_monotonic_s() -> float:
    return time.time() - time.monotonic()


@asynccontextmanager
async def _fleet(plan: Plan, store: StoreUnderTest, folder: Path) -> AsyncGenerator[Fleet]:
    """Start everything; end everything, by its pid."""
    async with AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        await store.start()
        model_server = await Commanded.start(model.__name__, folder / "model.log")
        stack.push_async_callback(model_server.close)
        served = await model_server.ask(
            model.Order(behaviour=SOUND, journal=str(folder / "model.jsonl")), model.Served
        )
        links = await Commanded.start(proxy.__name__, folder / "proxy.log")
        stack.push_async_callback(links.close)
        behind = {"workers": store.servers, "clients": store.servers}
        behind["model"] = {"model": (served.host, served.port)}
        assert set(behind) == set(LINKS)
        order = proxy.Order(seed=plan.seed, links={n: dict(s) for n, s in behind.items()})
        ports = (await links.ask(order, proxy.Ports)).links
        config, direct = folder / "askonce.toml", folder / "direct.toml"
        model_url = _model_url(ports["model"]["model"])
        write_config(config, store.table(ports["workers"]), model_url)
        write_config(direct, store.table(), model_url)
        load_began = time.monotonic()

        def order_of(name: str) -> producer.Order:
            return producer.Order(
                name=name,
                seed=plan.seed,
                store=StoreConfig(**store.table(ports["clients"])),
                rate_per_s=plan.rate_per_s / plan.producers,
                began=load_began,
                journal=str(folder / f"{name}.jsonl"),
            )

        workers = Workers(plan.workers, folder, config)
        stack.callback(workers.close)
        producers = Producers(plan.producers, folder, order_of)
        stack.callback(producers.close)
        faults = Faults(
            seed=plan.seed,
            store=store,
            proxy=links,
            model_server=model_server,
            workers=workers,
            producers=producers,
            config=direct,
        )
        yield Fleet(store, links, model_server, workers, producers, faults, load_began)


def _model_url(address: Address) -> str:
    host, port = address
    return f"http://{host}:{port}/v1"


async def _load(plan: Plan, schedule: list[Fault], fleet: Fleet, tell: Tell) -> None:
    """Carry out the schedule, each fault at its time, and wait until the load's time is over."""
    began = time.monotonic()

    async def carry_out(fault: Fault) -> None:
        done = await fleet.faults.carry_out(fault)
        outcome = "FAILED: " if done.failed else ""
        tell(f"{fault}: {outcome}{done.note}")

    with anyio.move_on_after(plan.load_s + FAULTS_S):
        async with anyio.create_task_group() as tasks:
            for fault in schedule:
                await anyio.sleep(max(0.0, began + fault.at_s - time.monotonic()))
                tasks.start_soon(carry_out, fault)
            await anyio.sleep(max(0.0, began + plan.load_s - time.monotonic()))


async def _recover(fleet: Fleet, tell: Tell) -> list[Violation]:
    """Heal everything and let everybody finish; what is not as it should be then."""
    workers, producers = fleet.workers, fleet.producers
    leftovers = Leftovers(fleet.store)
    found: list[Violation] = []
    tell("all faults are over: jobs are finished")
    await fleet.faults.heal()
    await _finish(producers, leftovers)
    producers.closing = True
    producers.tell("close")
    await until(lambda: not producers.running, CLOSE_S)
    found += [Violation("exits", f"{name} does not end", name) for name in producers.running]
    for name in producers.names:
        producers.bury(name)
    tell("the janitors sweep")
    await workers.until_ready()
    await leftovers.until_swept(len(workers.names))
    found += sockets(workers.running, servers=len(await fleet.store.ask_all("PING")))
    tell("workers drain")
    found += [
        Violation("exits", f"{name} does not drain within {DRAINED_S:g} s", name)
        for name in await workers.drain_all()
    ]
    tell("what is left is counted")
    found += await fleet.faults.malformed.account()
    found += await leftovers.account()
    for life in (*workers.lives, *producers.lives):
        if life.how == "unexpected":
            what = f"{life.name} (pid {life.pid}) ended with exit code {life.returncode}"
            found.append(Violation("exits", what, str(life.log)))
    return found


async def _finish(producers: Producers, leftovers: Leftovers) -> None:
    """Wait until every job has its reply and every reply was handed over, or for `SETTLE_S`.

    Jobs that were enqueued twice, because nobody knew, are answered twice: the second reply is
    dropped by the client, which therefore must live until then.
    """
    told: set[int] = set()
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        for process in producers.running.values():
            if process.pid not in told:
                told.add(process.pid)
                process.say("finish")
        idle = all(_is_idle(path) for path in producers.journals().values())
        if idle and not await leftovers.work():
            return
        await anyio.sleep(0.1)


def _is_idle(journal: Path) -> bool:
    """Whether a producer has nothing to do any more: that is the last line it wrote."""
    with journal.open("rb") as lines:
        lines.seek(max(0, journal.stat().st_size - 200))
        return lines.read().rstrip().rpartition(b"\n")[2].startswith(b'["idle"')
