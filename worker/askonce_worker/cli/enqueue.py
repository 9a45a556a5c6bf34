"""`askonce enqueue`: hand a file to the workers; the replies go to a named reply stream."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import typer

from askonce_queue.client import Client
from askonce_queue.envelope import NAMED
from askonce_queue.errors import IdConflict, QueueFull
from askonce_queue.job import MAX_ID_CHARS, Job, valid_name
from askonce_queue.names import replies
from askonce_queue.shards import shard_tags
from askonce_worker.build import open_store
from askonce_worker.cli import loop
from askonce_worker.cli.inputs import known_task, limits_of, reader_of
from askonce_worker.cli.loop import Signals, say
from askonce_worker.cli.records import Format, Record
from askonce_worker.cli.source import Batch, Source
from askonce_worker.config import Settings, load_settings

FULL_RETRY_S = (0.05, 2.0)
MOST_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line, parsed."""

    config: Path
    input: Path
    task: str
    reply_to: str | None
    lane: str
    deadline_s: float | None
    format: Format | None
    column: str | None
    wait: bool


@dataclass
class Progress:
    """What has become of the lines so far."""

    enqueued: int = 0
    refused: list[str] = field(default_factory=list[str])
    full: QueueFull | None = None
    waited: bool = False

    def refuse(self, line: str) -> None:
        """Count a line that was not enqueued; the first few are shown."""
        self.refused.append(line)
        if len(self.refused) <= MOST_SHOWN:
            say(line)


def main(options: Options) -> int:
    """Run the command; return the exit code."""
    return loop.run(functools.partial(_run, options))


async def _run(options: Options, _signals: Signals) -> int:
    settings = load_settings(options.config)
    known_task(settings, options.task)
    read = reader_of(
        options.input, options.format, options.column, options.task, options.deadline_s
    )
    source = Source(options.input, read)
    stream = options.reply_to or options.task
    progress = Progress()
    limits = limits_of(settings.worker)
    async with open_store(settings) as location:
        pool = settings.worker.pool
        try:
            async with Client(location, pool=pool, limits=limits) as client:
                async for batch in source:
                    await _enqueue(client, batch, stream, options, progress)
                    if progress.full is not None:
                        break
        finally:
            _report(settings, stream, progress)
    return loop.PARTLY if progress.refused or progress.full else loop.OK


async def _enqueue(
    client: Client, batch: Batch, stream: str, options: Options, progress: Progress
) -> None:
    """Enqueue what can be enqueued of a batch; wait where the queue is full, if wanted."""
    left: dict[str, Job] = {}
    for record in batch.records:
        job = _job(record, left, progress)
        if job is not None and job.id is not None:
            left[job.id] = job
    rng = random.Random()
    pause_s, longest_s = FULL_RETRY_S
    while left:
        jobs = list(left.values())
        try:
            ids = await client.enqueue_many(jobs, lane=options.lane, reply_to=stream)
        except QueueFull as full:
            progress.enqueued += len(left) - len(full.job_ids)
            left = {job_id: left[job_id] for job_id in full.job_ids}
            if not options.wait:
                progress.full = full
                return
            if not progress.waited:
                say(f"the queue is full: {full.reason}; waiting")
                progress.waited = True
            await anyio.sleep(pause_s * rng.uniform(0.5, 1.0))
            pause_s = min(longest_s, 2 * pause_s)
        except IdConflict as conflict:
            progress.enqueued += len(left) - len(conflict.job_ids)
            for job_id in conflict.conflicting:
                progress.refuse(f"id {job_id!r}: in use by another job that is not answered yet")
            refused = set(conflict.job_ids).difference(conflict.conflicting)
            left = {job_id: left[job_id] for job_id in refused}
        else:
            progress.enqueued += len(ids)
            return


def _job(record: Record, batch: dict[str, Job], progress: Progress) -> Job | None:
    """The job of a line, under the producer's own id; None for a line that is refused."""
    if record.job is None:
        assert record.error is not None, "a record has a job or an error"
        progress.refuse(f"{record.error.message} ({record.error.code})")
        return None
    job_id = str(record.id)
    if not valid_name(job_id, MAX_ID_CHARS):
        progress.refuse(
            f"line {record.line}: ids are 1 to {MAX_ID_CHARS} printable characters, "
            f"not {job_id[:40]!r}"
        )
        return None
    if job_id in batch:
        progress.refuse(f"line {record.line}: id {job_id!r} again")
        return None
    record.job.id = job_id
    return record.job


def _report(settings: Settings, stream: str, progress: Progress) -> None:
    if (more := len(progress.refused) - MOST_SHOWN) > 0:
        say(f"… and {more:,} more")
    if progress.refused:
        say(f"{len(progress.refused):,} lines refused")
    if progress.full is not None:
        say(f"the queue is full: {progress.full.reason}; the rest was not enqueued")
    typer.echo(f"{progress.enqueued:,} jobs enqueued")
    for tag in shard_tags(settings.shards):
        typer.echo(f"replies: {replies(tag, NAMED + stream).decode()}")
