"""`askonce dead retry` and `askonce dead drop`: clearing dead letters away."""

from __future__ import annotations

import functools
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import typer

from askonce_queue.ledger import CLIENT_NAME
from askonce_queue.store import Store
from askonce_worker.cli import loop
from askonce_worker.cli.counting import counting
from askonce_worker.cli.dead_choice import Choice, store_now_ms
from askonce_worker.cli.dead_look import report_failures
from askonce_worker.cli.loop import Failed, Signals, say
from askonce_worker.cli.opened import opened
from askonce_worker.config import Settings, load_settings
from askonce_worker.dead_letters import BATCH, DeadLetter, DeadLetters, LetterId, Retry

MOST_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class RetryOptions:
    """The command line of `retry`, parsed."""

    config: Path
    choice: Choice
    reply_to: str | None
    lane: str | None
    dry_run: bool


@dataclass(frozen=True, kw_only=True)
class DropOptions:
    """The command line of `drop`, parsed."""

    config: Path
    choice: Choice
    dry_run: bool
    yes: bool


@dataclass
class Tally:
    """What has become of the letters so far."""

    done: int = 0
    gone: int = 0
    refused: int = 0
    streams: set[bytes] = field(default_factory=set[bytes])

    @property
    def all(self) -> int:
        """The letters that were seen to."""
        return self.done + self.gone + self.refused

    def refuse(self, letter: LetterId, reason: str) -> None:
        """Count a letter that stays as it is, or is not there; the first few are shown."""
        self.refused += 1
        if self.refused <= MOST_SHOWN:
            say(f"{letter}: {reason}")

    def retried(self, result: Retry) -> None:
        """Count a letter by what became of it."""
        if result.gone:
            self.gone += 1
        elif result.refusal:
            self.refuse(result.letter.id, result.refusal)
        else:
            self.done += 1
            self.streams.add(result.stream)

    def report(self, what: str) -> None:
        """Say what was done. `what`: "retried" or "dropped", or that it would be."""
        if (more := self.refused - MOST_SHOWN) > 0:
            say(f"… and {more:,} more")
        rest = [f"{self.refused:,} not"] if self.refused else []
        rest += [f"{self.gone:,} gone meanwhile"] if self.gone else []
        typer.echo(", ".join([f"{_letters(self.done)} {what}", *rest]))


def main_retry(options: RetryOptions) -> int:
    """Run `retry`; return the exit code."""
    return loop.run(functools.partial(_retry, options))


def main_drop(options: DropOptions) -> int:
    """Run `drop`; return the exit code."""
    return loop.run(functools.partial(_drop, options))


class _Chosen:
    """The letters that a command is about; iterate it with `async for`, as often as needed."""

    def __init__(
        self, store: Store, letters: DeadLetters, choice: Choice, tally: Tally, now_ms: int
    ) -> None:
        self._store = store
        self._letters = letters
        self._tally = tally
        self._ids = choice.letter_ids()
        wanted = choice.filters.wanted(now_ms)
        self._search = None if self._ids else letters.search(wanted)

    def __aiter__(self) -> AsyncIterator[DeadLetter]:
        return self._named() if self._search is None else aiter(self._search)

    async def _named(self) -> AsyncGenerator[DeadLetter]:
        """The letters of ids; those that are not there are refused."""
        for start in range(0, len(self._ids), BATCH):
            part = self._ids[start : start + BATCH]
            for one, letter in zip(part, await self._letters.get(part), strict=True):
                if letter is None:
                    self._tally.refuse(one, "there is no such dead letter")
                else:
                    yield letter

    async def batches(self) -> AsyncGenerator[list[DeadLetter]]:
        """The letters, so many as can be seen to at once."""
        batch: list[DeadLetter] = []
        async for letter in self:
            batch.append(letter)
            if len(batch) == BATCH:
                yield batch
                batch = []
        if batch:
            yield batch

    @asynccontextmanager
    async def progress(self, what: str) -> AsyncGenerator[None]:
        """Show how far it is, if it takes long."""
        search = self._search
        total = len(self._ids) if search is None else await self._letters.total()
        done = (lambda: self._tally.all) if search is None else (lambda: search.looked_at)
        async with counting(what, done, total):
            yield

    def exit_code(self) -> int:
        """Whether all that was looked for could be found. Raises `StoreUnavailable`."""
        return loop.OK if self._search is None else report_failures(self._search, self._store)


async def _retry(options: RetryOptions, _signals: Signals) -> int:
    settings = load_settings(options.config)
    options.choice.check()
    if options.reply_to is not None and not CLIENT_NAME.fullmatch(options.reply_to):
        raise Failed(f"--reply-to: names match {CLIENT_NAME.pattern}, not {options.reply_to!r}")
    tally = Tally()
    async with opened(settings) as store:
        letters = DeadLetters(store, settings.worker.pool)
        chosen = _Chosen(store, letters, options.choice, tally, await store_now_ms(store))
        try:
            async with chosen.progress("retrying"):
                async for batch in chosen.batches():
                    for result in await _retry_batch(letters, batch, options, settings):
                        tally.retried(result)
        finally:
            tally.report("would be retried" if options.dry_run else "retried")
            for stream in sorted(tally.streams)[:MOST_SHOWN]:
                typer.echo(f"replies: {stream.decode()}")
        return max(chosen.exit_code(), loop.PARTLY if tally.refused else loop.OK)


async def _retry_batch(
    letters: DeadLetters, batch: list[DeadLetter], options: RetryOptions, settings: Settings
) -> list[Retry]:
    return await letters.retry(
        batch,
        reply_to=options.reply_to,
        lane=options.lane,
        max_backlog=settings.worker.max_backlog,
        max_unread=settings.worker.max_unread,
        dry_run=options.dry_run,
    )


async def _drop(options: DropOptions, _signals: Signals) -> int:
    settings = load_settings(options.config)
    options.choice.check()
    ask = not (options.choice.ids or options.yes or options.dry_run)
    if ask and not sys.stdin.isatty():
        raise Failed("nobody can be asked here: add --yes to drop them, or --dry-run to count them")
    tally = Tally()
    async with opened(settings) as store:
        letters = DeadLetters(store, settings.worker.pool)
        chosen = _Chosen(store, letters, options.choice, tally, await store_now_ms(store))
        if ask and not await _agreed(chosen, options.choice):
            say("nothing was dropped")
            return loop.PARTLY
        try:
            async with chosen.progress("dropping"):
                async for batch in chosen.batches():
                    ids = [letter.id for letter in batch]
                    dropped = len(ids) if options.dry_run else await letters.drop(ids)
                    tally.done += dropped
                    tally.gone += len(ids) - dropped
        finally:
            tally.report("would be dropped" if options.dry_run else "dropped")
        return max(chosen.exit_code(), loop.PARTLY if tally.refused else loop.OK)


async def _agreed(chosen: _Chosen, choice: Choice) -> bool:
    """Count what would be dropped, and ask; nothing to drop needs no question."""
    count = 0
    async with chosen.progress("counting"):
        async for _ in chosen:
            count += 1
    if not count:
        return True
    which = "" if choice.everything else f" ({choice.filters})"
    sys.stderr.write(f"Drop {_letters(count)}{which} for good? [y/N] ")
    sys.stderr.flush()
    await anyio.wait_readable(sys.stdin)  # so that Ctrl-C is heard
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _letters(count: int) -> str:
    return f"{count:,} dead letter{'' if count == 1 else 's'}"
