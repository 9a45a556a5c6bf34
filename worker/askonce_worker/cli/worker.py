"""`askonce worker`: serve until told to stop. One process, or several under a supervisor."""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio

from askonce_queue.errors import ConfigError
from askonce_queue.store_config import StoreConfig
from askonce_worker.build import build_sources, build_tasks, open_models, open_store
from askonce_worker.cli import loop
from askonce_worker.cli.loop import Signals
from askonce_worker.config import Settings, load_settings
from askonce_worker.config_listen import MAX_PORT, ListenAddress
from askonce_worker.observe import log, notify
from askonce_worker.observe.observer import observed
from askonce_worker.observe.server import check_free, why_not
from askonce_worker.pool.supervise import PROCESS_INDEX, Supervisor
from askonce_worker.pool.worker import Worker


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line, parsed. `supervised`: stdin is a pipe that the supervisor holds open."""

    config: Path
    processes: int
    burst: bool
    log: log.Style | None
    supervised: bool


def main(options: Options) -> int:
    """Run the command; return the exit code."""
    return loop.run(functools.partial(_run, options))


async def _run(options: Options, signals: Signals) -> int:
    settings = load_settings(options.config)
    style = options.log or settings.worker.log
    log.configure(style, level=logging.getLevelNamesMapping()[settings.worker.log_level.upper()])
    if options.processes == 1:
        code = await _serve(options, settings, signals)
    else:
        code = await _supervise(options, settings, style, signals)
    return 128 + signal.SIGINT if signals.received == signal.SIGINT else code


async def _serve(options: Options, settings: Settings, signals: Signals) -> int:
    """Be the worker."""
    async with (
        open_store(settings) as location,
        open_models(settings) as backends,
        anyio.create_task_group() as tasks,
    ):
        task_table = build_tasks(settings, backends)
        worker = Worker(location, task_table, settings.worker, sources=build_sources(settings))
        models = {name: task.backend.name for name, task in task_table.items()}
        stopped = anyio.Event()

        def stop() -> None:
            notify.notify(notify.STOPPING)
            worker.stop()
            stopped.set()

        signals.stop, signals.hurry = stop, worker.stop
        if options.supervised:
            tasks.start_soon(_stop_with_supervisor, signals)
        tasks.start_soon(notify.show_life_forever)
        async with _observed(options, settings, worker, location, models):
            if options.burst:
                notify.notify(notify.READY)
                await worker.run(burst=True)
            else:
                async with worker.running():
                    notify.notify(notify.READY)
                    await stopped.wait()
        tasks.cancel_scope.cancel()
    return loop.OK


@asynccontextmanager
async def _observed(
    options: Options,
    settings: Settings,
    worker: Worker,
    location: StoreConfig,
    models: dict[str, str],
) -> AsyncGenerator[None]:
    """Serve health and metrics of `worker`, if configured; until it has drained, and beyond."""
    address = settings.worker.listen_address
    if address is None:
        yield
        return
    index = int(os.environ.get(PROCESS_INDEX, "0")) if options.supervised else 0
    observation = observed(
        address.of_process(index),
        vitals=worker.vitals,
        counters=worker.counters,
        store=location,
        config=settings.worker,
        models=models,
    )
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(observation)
        except OSError as error:
            raise _cannot_listen(settings, address.of_process(index), error) from error
        yield


def _cannot_listen(settings: Settings, address: ListenAddress, error: OSError) -> ConfigError:
    return settings.source.error(
        "worker.listen", f"expected an address that is free, got {address}: {why_not(error)}"
    )


def _check_ports(settings: Settings, processes: int) -> None:
    """Raise `ConfigError` unless every process can have its port.

    Later it would be the fault of one of several that run, and tried again for ever.
    """
    address = settings.worker.listen_address
    if address is None:
        return
    if address.port + processes - 1 > MAX_PORT:
        raise settings.source.error(
            "worker.listen",
            f"expected a port of at most {MAX_PORT - processes + 1}, because each of {processes} "
            f"processes has its own, got {address.port}",
        )
    for one in {address.of_process(index) for index in range(processes)}:
        try:
            check_free(one)
        except OSError as error:
            raise _cannot_listen(settings, one, error) from error


async def _stop_with_supervisor(signals: Signals) -> None:
    """Drain when the supervisor is gone, whatever became of it: its end of the pipe closes."""
    while True:
        await anyio.wait_readable(sys.stdin)
        if not os.read(sys.stdin.fileno(), 1):
            signals.stop()
            return


async def _supervise(
    options: Options, settings: Settings, style: log.Style, signals: Signals
) -> int:
    """Have others be the workers; hold the embedded store for them."""
    _check_ports(settings, options.processes)
    # -P: what lies in the working directory does not come before installed packages.
    command = [sys.executable, "-P", "-m", "askonce_worker", "worker"]
    command += [
        str(options.config.absolute()),
        "--log",
        style,
        "--supervised",
        *(["--burst"] if options.burst else []),
    ]
    supervisor = Supervisor(
        command,
        options.processes,
        burst=options.burst,
        silence_s=notify.watchdog_s(),
        on_ready=lambda: notify.notify(notify.READY),
    )

    def stop() -> None:
        notify.notify(notify.STOPPING)
        supervisor.stop()

    async with open_store(settings), anyio.create_task_group() as tasks:
        signals.stop, signals.hurry = stop, supervisor.stop
        tasks.start_soon(notify.show_life_forever)
        await supervisor.run()
        tasks.cancel_scope.cancel()
    return supervisor.exit_code
