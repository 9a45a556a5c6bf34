"""`askonce run`: a whole file, from its first line to the summary."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import msgspec
from redis.exceptions import RedisError
from rich.console import Console

from askonce_queue.client import Client
from askonce_queue.errors import ClientNameInUse
from askonce_queue.ledger import NAME_TTL_MS
from askonce_queue.store import Store
from askonce_queue.store_config import StoreConfig
from askonce_worker.build import build_sources, build_tasks, open_models, open_store
from askonce_worker.cli import loop, progress, summary
from askonce_worker.cli.asking import Asking
from askonce_worker.cli.inputs import known_task, limits_of, reader_of
from askonce_worker.cli.loop import Failed, Signals, say
from askonce_worker.cli.output import Output
from askonce_worker.cli.records import Format, Line, Record
from askonce_worker.cli.source import Source
from askonce_worker.cli.summary import Summary, Tally
from askonce_worker.config import Settings, load_settings
from askonce_worker.observe import log
from askonce_worker.observe.totals import read_fleet
from askonce_worker.pool.worker import Worker

NAME_WAIT_S = NAME_TTL_MS / 1000 + 5


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line, parsed."""

    config: Path
    input: Path
    task: str
    out: Path
    format: Format | None
    column: str | None
    window: int
    deadline_s: float | None
    worker: bool
    resume: bool
    summary: Path | None
    verbose: bool


def main(options: Options) -> int:
    """Run the command; return the exit code."""
    log.configure("console", level=logging.INFO if options.verbose else logging.ERROR)
    return loop.run(functools.partial(_run, options))


async def _run(options: Options, signals: Signals) -> int:
    settings = load_settings(options.config)
    known_task(settings, options.task)
    _check_writable(options.summary)
    _check_distinct(options.input, options.out)
    read = reader_of(
        options.input, options.format, options.column, options.task, options.deadline_s
    )
    output = Output(options.out, resume=options.resume)

    def read_rest(lines: Iterator[Line]) -> Iterator[Record]:
        return output.after_resumed(read(lines))

    try:
        source = Source(options.input, read_rest, batch=options.window)
        if output.discarded:
            say(f"starting over; {output.partial} could have been continued with --resume")
        result = await _ask(options, settings, source, output, signals)
    except BaseException:
        output.close()
        if output.partial is not None and (kept := output.resumed + output.written):
            say(f"{kept:,} lines are in {output.partial}: --resume goes on from there")
        raise
    output.close()
    if options.summary is not None:
        _write_summary(options.summary, result)
    Console(stderr=True).print(summary.table(result))
    return loop.OK if result.complete else loop.PARTLY


async def _ask(
    options: Options, settings: Settings, source: Source, output: Output, signals: Signals
) -> Summary:
    async with AsyncExitStack() as stack:
        location = await stack.enter_async_context(open_store(settings))
        worker = None
        if options.worker:
            worker = await stack.enter_async_context(_worker(settings, location, signals))
        client = await _open_client(stack, settings, location, output.client_name)
        tally = Tally()
        store = Store(location, max_connections=1)
        stack.push_async_callback(store.aclose)
        if worker is None:
            await _look_for_workers(store, settings)
        asking = Asking(client, store, source, output, tally, window=options.window, warn=say)
        async with progress.shown(Console(stderr=True), tally, source.size):
            await asking.run()
        output.finish()
        if worker is not None:
            signals.stop = worker.stop  # all is written: let nothing cancel the drain
        return tally.summary(
            model_calls=worker.counters.total("model_calls") if worker else 0,
            resumed=output.resumed,
            resumed_errors=output.resumed_errors,
        )


@asynccontextmanager
async def _worker(
    settings: Settings, location: StoreConfig, signals: Signals
) -> AsyncGenerator[Worker]:
    """A worker in this process and on this event loop."""
    cancel, drain_s = signals.stop, settings.worker.drain_s

    def stop() -> None:
        say(f"stopping; jobs under way have {drain_s:g} s to finish; again to stop now")
        cancel()

    def hurry() -> None:
        worker.stop()
        worker.stop()

    async with open_models(settings) as backends:
        worker = Worker(
            location,
            build_tasks(settings, backends),
            settings.worker,
            sources=build_sources(settings),
        )
        signals.stop, signals.hurry = stop, hurry
        async with worker.running():
            yield worker


async def _open_client(
    stack: AsyncExitStack, settings: Settings, location: StoreConfig, name: str | None
) -> Client:
    """The client of this output; waits for the name if a killed run still holds it."""
    limits = limits_of(settings.worker)
    give_up_at = anyio.current_time() + NAME_WAIT_S
    told = False
    while True:
        client = Client(location, name=name, pool=settings.worker.pool, limits=limits)
        try:
            return await stack.enter_async_context(client)
        except ClientNameInUse:
            # The output's lock is ours, so whoever held the name here is gone.
            if anyio.current_time() > give_up_at:
                raise
            if not told:
                say(
                    f"waiting up to {NAME_WAIT_S:.0f} s for the run before this one to be forgotten"
                )
                told = True
            await anyio.sleep(0.25)


async def _look_for_workers(store: Store, settings: Settings) -> None:
    """Say so when nobody would answer."""
    pool = settings.worker.pool
    try:
        fleet = await read_fleet(store, pool)
    except (RedisError, OSError):
        return  # a producer's user may not look, and it is only a hint
    if not fleet.workers:
        say(f"no worker is alive in pool {pool!r}: waiting for one ('askonce worker')")


def _check_distinct(source: Path, out: Path) -> None:
    """Refuse to replace the input by the output."""
    if source.exists() and out.exists() and out.samefile(source):
        raise Failed(f"{out} is the input: name another file with --out")


def _check_writable(path: Path | None) -> None:
    """Raise `Failed` now for a summary that could not be written at the end."""
    if path is None:
        return
    folder = path.absolute().parent
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise Failed(f"cannot write {path}: expected a file in a folder you can write to")


def _write_summary(path: Path, result: Summary) -> None:
    text = msgspec.json.format(msgspec.json.encode(result)) + b"\n"
    try:
        path.write_bytes(text)
    except OSError as error:
        raise Failed(f"cannot write {path}: {error.strerror}") from error
