"""How hits are shown: as JSON, as a line, as a table, as a card to be judged.

What stands in a hit was written by anybody. Nothing of it reaches a terminal unescaped.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from rich import box
from rich.table import Table
from rich.text import Text

from askonce_worker.cli.dead_shown import printable
from askonce_worker.cli.times import age, iso
from askonce_worker.hits.record import LoggedAnswer
from askonce_worker.hits.reviews import Rate, ReviewTotals, Verdict
from askonce_worker.hits.rules import Rule
from askonce_worker.hits.search import Hit

MOST_CARD_CHARS = 1_200
VERDICT_WORDS: dict[Verdict, str] = {
    "fine": "fine",
    "not_cacheable": "should not have been cached",
    "wrong": "wrong",
}


class HitJson(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A hit for programs. A stable interface: extend, don't rename.

    `age_s` is how old the answer was when it was reused, `at` when that was. `input` is redacted,
    and left out where a task keeps none. `verdict` is that of the latest review.
    """

    key: str
    task: str
    at: str | None
    source: str
    age_s: float
    answer: LoggedAnswer
    input: str = ""
    tenant: str = ""
    verdict: Verdict | None = None
    reviewed_at: str | None = None


def as_json(hit: Hit) -> bytes:
    """One JSON object, without line breaks; characters that no terminal shows are escaped."""
    encoded = msgspec.json.encode(
        HitJson(
            key=hit.key,
            task=hit.task,
            at=iso(hit.at_ms),
            source=hit.source,
            age_s=hit.age_s,
            answer=hit.answer,
            input=hit.input,
            tenant=hit.tenant,
            verdict=hit.review.verdict if hit.review else None,
            reviewed_at=iso(hit.review.at_ms) if hit.review else None,
        )
    ).decode()
    if encoded.isprintable():
        return encoded.encode()
    return "".join(c if c.isprintable() else _escaped(c) for c in encoded).encode()


def _escaped(char: str) -> str:
    """A character as JSON has it in a text."""
    units = char.encode("utf-16-be", errors="surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def as_line(hit: Hit, now_ms: int) -> str:
    """One line, its columns apart by tabs."""
    return "\t".join(_columns(hit, now_ms))


def as_table(hits: Sequence[Hit], now_ms: int) -> Table:
    """A table for a terminal; inputs are cut."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in ("key", "logged", "task", "from", "age", "answer", "review", "input"):
        table.add_column(name, no_wrap=name != "input", max_width=20)
    table.columns[-1].max_width = None
    for hit in hits:
        columns = _columns(hit, now_ms)
        columns[0] = columns[0][:8]
        table.add_row(*(Text(one, no_wrap=True, overflow="ellipsis") for one in columns))
    return table


def card(hit: Hit, now_ms: int) -> Table:
    """What somebody has to know to judge a hit."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    text = hit.input[:MOST_CARD_CHARS] + ("…" if len(hit.input) > MOST_CARD_CHARS else "")
    shown = "\n".join(printable(line) for line in text.split("\n"))
    grid.add_row("input", Text(shown, style="bold") if shown else Text("(not kept)", style="dim"))
    grid.add_row("answer", Text(_answer(hit.answer), style="bold cyan"))
    often = f", logged {hit.times} times" if hit.times > 1 else ""
    when = f"{age(max(0, now_ms - hit.at_ms) / 1000)} ago"
    reused = f"{when}, when it was {age(hit.age_s)} old, from {printable(hit.source)}{often}"
    grid.add_row("reused", Text(reused))
    if hit.tenant:
        grid.add_row("tenant", Text(printable(hit.tenant)))
    grid.add_row("key", Text(hit.key[:16], style="dim"))
    return grid


def rate_text(rate: Rate, days: int) -> str:
    """The measured wrong-hit rate in words."""
    if rate.rate is None or rate.low is None or rate.high is None:
        return f"no hits were reviewed in {days} days"
    return (
        f"{rate.rate:.1%} ({rate.low:.1%} to {rate.high:.1%}): {rate.flagged:,} of "
        f"{rate.reviewed:,} reviewed"
    )


def rates_table(totals: ReviewTotals) -> Table:
    """The wrong-hit rate of each task and of all, for `askonce stats`."""
    table = Table(
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        title=f"Wrong hits, by review ({totals.days} days)",
        title_justify="left",
    )
    table.add_column("task")
    for name in ("reviewed", "wrong", "not to cache", "flagged", "95 %"):
        table.add_column(name, justify="right")

    def row(name: str, rate: Rate, style: str = "") -> None:
        share = interval = "-"
        if rate.rate is not None and rate.low is not None and rate.high is not None:
            share, interval = f"{rate.rate:.1%}", f"{rate.low:.1%} to {rate.high:.1%}"
        counts = (rate.reviewed, rate.wrong, rate.not_cacheable)
        table.add_row(printable(name), *map("{:,}".format, counts), share, interval, style=style)

    for task, rate in totals.tasks.items():
        row(task, rate)
    row("all", totals.total, style="bold")
    return table


def rules_table(rules: Sequence[Rule], now_ms: int) -> Table:
    """The rules, for a terminal."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in ("id", "added", "task", "pattern"):
        table.add_column(name, no_wrap=name != "pattern", overflow="fold")
    for rule in rules:
        table.add_row(*map(Text, rule_columns(rule, now_ms)))
    return table


def rule_columns(rule: Rule, now_ms: int) -> list[str]:
    """Id, age, task and pattern."""
    added = age(max(0, now_ms - rule.at_ms) / 1000)
    return [rule.id, added, printable(rule.task), printable(rule.pattern)]


def _columns(hit: Hit, now_ms: int) -> list[str]:
    columns = (
        hit.key,
        age(max(0, now_ms - hit.at_ms) / 1000),
        hit.task,
        hit.source,
        age(hit.age_s),
        _answer(hit.answer),
        hit.review.verdict if hit.review else "",
        hit.input,
    )
    return [printable(column) or "-" for column in columns]


def _answer(answer: LoggedAnswer) -> str:
    """An answer in one line."""
    parts = [printable(answer.label)] if answer.label is not None else []
    if answer.value is not None:
        parts.append(printable(msgspec.json.encode(answer.value).decode()))
    if answer.score is not None:
        parts.append(f"{answer.score:.3g}")
    if answer.cut:
        parts.append("…")
    return " ".join(parts) or "(none)"
