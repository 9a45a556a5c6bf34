"""`askonce hits review`: somebody judges what was reused, one question at a time."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import typer
from rich.console import Console
from rich.text import Text

from askonce_queue.store import Store
from askonce_worker.cli import hits_shown, loop
from askonce_worker.cli.answering import END, Person, person
from askonce_worker.cli.dead_choice import store_now_ms
from askonce_worker.cli.dead_shown import printable
from askonce_worker.cli.hits_look import failures_reported, find, nothing, write_anything
from askonce_worker.cli.hits_rules import FOLLOW
from askonce_worker.cli.hits_shown import VERDICT_WORDS
from askonce_worker.cli.loop import Signals, say
from askonce_worker.cli.opened import opened
from askonce_worker.config import Settings, load_settings
from askonce_worker.hits.review import NotTakenBack, judge
from askonce_worker.hits.reviews import RATE_DAYS, Verdict, read_reviews
from askonce_worker.hits.rulebook import TooManyRules
from askonce_worker.hits.rules import EVERYTHING, suggestion
from askonce_worker.hits.search import Hit

KEYS: dict[str, Verdict] = {"f": "fine", "n": "not_cacheable", "w": "wrong"}
SKIP, QUIT, PATTERN, TASK = "s", "q", "p", "t"
CHOICES = (
    "[bold]f[/] fine   [bold]n[/] should not have been cached   [bold]w[/] wrong   "
    "[bold]s[/] skip   [bold]q[/] quit"
)
RULES = (
    "  keep its like from the cache?   [bold]Enter[/] no   [bold]p[/] a pattern   "
    "[bold]t[/] the whole task"
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line, parsed."""

    config: Path
    task: str | None
    since: str | None
    limit: int


class Decision(NamedTuple):
    """What somebody says of a hit. `pattern`: inputs to be kept from the cache from now on."""

    verdict: Verdict
    pattern: str | None = None


def main(options: Options) -> int:
    """Run the command; return the exit code."""
    write_anything()
    return loop.run(functools.partial(_run, options))


async def _run(options: Options, _signals: Signals) -> int:
    settings = load_settings(options.config)
    console = Console(highlight=False)
    async with opened(settings) as store:
        now_ms = await store_now_ms(store)
        found = await find(settings, store, options.task, options.since, True, now_ms)
        if not found.hits:
            say(nothing(settings) if not found.reviews else "every hit has been reviewed")
        walk = _Walk(console, store, settings, found.hits, now_ms)
        try:
            with person() as who:
                await walk.through(who, options.limit)
        finally:
            walk.sum_up()
        if found.hits or found.reviews:
            totals = (await read_reviews(store)).totals()
            rate = hits_shown.rate_text(totals.total, RATE_DAYS)
            typer.echo(f"wrong hits, of all reviewed in {RATE_DAYS} days: {rate}")
    return max(failures_reported(found), loop.PARTLY if walk.failed else loop.OK)


class _Walk:
    """Goes through hits, the newest first, until the end or `q`."""

    def __init__(
        self,
        console: Console,
        store: Store,
        settings: Settings,
        hits: Sequence[Hit],
        now_ms: int,
    ) -> None:
        self.failed = False
        """Whether a decision could not be carried out."""
        self._console = console
        self._store = store
        self._bound_s = settings.worker.stamp_bound_s
        self._hits = hits
        self._now_ms = now_ms
        self._said: Counter[str] = Counter()

    async def through(self, who: Person, limit: int) -> None:
        """Ask about each hit."""
        hits = self._hits[:limit]
        for number, hit in enumerate(hits, 1):
            self._console.print()
            title = f"{number} of {len(hits)} · {printable(hit.task)}"
            self._console.rule(Text(title, style="bold"), align="left", style="dim")
            self._console.print(hits_shown.card(hit, self._now_ms))
            if not await self._one(who, hit):
                return

    async def _one(self, who: Person, hit: Hit) -> bool:
        """See to one hit; whether to go on."""
        if who.interactive:
            self._console.print(CHOICES)
        while True:
            choice = await who.choice()
            letter, _, more = choice.strip().partition(" ")
            if choice == END or letter == QUIT:
                return False
            if letter == SKIP:
                self._echo(who, "skipped")
                return True
            verdict = KEYS.get(letter)
            if verdict is None:
                if not who.interactive and letter:
                    say(f"{letter[:20]!r} is not one of f, n, w, s and q")
                    self.failed = True
                continue
            decision = await self._decision(who, verdict, hit, more.strip())
            if await self._carry_out(hit, decision):
                return True
            if not who.interactive:
                return True

    async def _decision(self, who: Person, verdict: Verdict, hit: Hit, more: str) -> Decision:
        """A verdict with the rule that goes with it."""
        self._echo(who, VERDICT_WORDS[verdict])
        if verdict == "fine":
            return Decision(verdict)
        choice, _, pattern = more.partition(" ")
        if who.interactive:
            self._console.print(RULES)
            choice = await who.choice()
            if choice == PATTERN:
                pattern = await self._pattern(who, hit)
        if choice == TASK:
            return Decision(verdict, EVERYTHING)
        if choice == PATTERN:
            return Decision(verdict, pattern.strip() or suggestion(hit.input) or None)
        return Decision(verdict)

    async def _pattern(self, who: Person, hit: Hit) -> str:
        offered = suggestion(hit.input)
        self._console.print("  pattern: * is any text, case does not matter", style="dim")
        shown = printable(offered) or "no rule"
        self._console.print(Text(f"  Enter for: {shown}", style="dim"))
        self._console.print("  > ", end="")
        return await who.line()

    def _echo(self, who: Person, word: str) -> None:
        """Show what a key was taken for."""
        if who.interactive:
            self._console.print(f"  → {word}", style="bold")

    async def _carry_out(self, hit: Hit, decision: Decision) -> bool:
        """Do what was decided; whether it is done."""
        try:
            await judge(self._store, hit, decision.verdict, decision.pattern)
        except (NotTakenBack, TooManyRules, ValueError) as error:
            say(f"not recorded: {error}")
            self.failed = True
            return False
        self._said[decision.verdict] += 1
        if decision.verdict == "fine":
            return True
        self._console.print(
            Text(f"  taken back: no worker serves it after {self._bound_s:g} s", style="yellow")
        )
        if decision.pattern is not None:
            what = printable(decision.pattern)
            text = f"  rule: {printable(hit.task)} keeps {what!r} from the cache, {FOLLOW}"
            self._console.print(Text(text, style="yellow"))
        return True

    def sum_up(self) -> None:
        """Say what was done."""
        if not self._hits:
            return
        done = sum(self._said[verdict] for verdict in VERDICT_WORDS)
        parts = [
            f"{self._said[verdict]:,} {words}"
            for verdict, words in VERDICT_WORDS.items()
            if self._said[verdict]
        ]
        counts = f": {', '.join(parts)}" if parts else ""
        left = len(self._hits) - done
        self._console.print()
        typer.echo(f"reviewed {done:,}{counts}; {left:,} left")
