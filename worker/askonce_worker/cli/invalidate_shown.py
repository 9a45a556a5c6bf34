"""What `askonce invalidate` has done, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import typer

from askonce_worker.cache.survey import Tally
from askonce_worker.cli.invalidate_target import safe
from askonce_worker.cli.loop import say

MOST_NAMED = 8


class Report(NamedTuple):
    """An invalidation, or a dry run of one."""

    what: Sequence[str]
    dry_run: bool
    shards: int
    confirmed: int
    failures: Mapping[str, str]
    tally: Tally | None
    bound_s: float


class ReportJson(msgspec.Struct, kw_only=True):
    """For programs. A stable interface: extend, don't rename.

    `count`: how many answers were taken, or would be; null if that is unknown, then there were
    `at_least` so many among the `seen`, and `unknown_because` says why it is no more.
    `workers_follow_within_s` is null unless something was invalidated.
    """

    what: list[str]
    dry_run: bool
    complete: bool
    shards: int
    confirmed: int
    failures: dict[str, str]
    workers_follow_within_s: float | None
    count: int | None
    at_least: int
    seen: int
    unknown_because: str


def show(report: Report, *, as_json: bool) -> None:
    """Say what was invalidated."""
    tally = report.tally or Tally(0, 0, "not counted")
    if as_json:
        follow_s = None if report.dry_run else report.bound_s
        _print_json(
            ReportJson(
                what=list(report.what),
                dry_run=report.dry_run,
                complete=not report.failures,
                shards=report.shards,
                confirmed=report.confirmed,
                failures=dict(report.failures),
                workers_follow_within_s=follow_s,
                count=tally.answers if tally.exact else None,
                at_least=tally.answers,
                seen=tally.seen,
                unknown_because=tally.unfinished,
            )
        )
        return
    named = [safe(one) for one in report.what[:MOST_NAMED]]
    if len(report.what) > MOST_NAMED:
        named.append(f"and {len(report.what) - MOST_NAMED} more")
    what = ", ".join(named)
    if report.dry_run:
        typer.echo(f"dry run: {what}; nothing was done")
        typer.echo(counted("it would take", tally))
        return
    confirmed = f"({report.confirmed} of {report.shards} shards confirmed)"
    if not report.failures:
        typer.echo(f"invalidated: {what} {confirmed}")
        typer.echo(f"running workers follow within {report.bound_s:g} s")
        if report.tally is not None:
            typer.echo(counted("it took", tally))
        return
    typer.echo(f"incomplete: {what} {confirmed}")
    for shard, reason in report.failures.items():
        say(f"shard {shard}: {reason}")
    say("run it again until it is complete; repeating it is harmless")


def show_purge(tasks: Sequence[str], tally: Tally, *, dry_run: bool, as_json: bool) -> None:
    """Say what old versions have left."""
    if as_json:
        _print_json(
            ReportJson(
                what=[f"old versions of {task}" for task in tasks],
                dry_run=dry_run,
                complete=tally.exact,
                shards=0,
                confirmed=0,
                failures={},
                workers_follow_within_s=None,
                count=tally.answers if tally.exact else None,
                at_least=tally.answers,
                seen=tally.seen,
                unknown_because=tally.unfinished,
            )
        )
        return
    named = ", ".join(map(safe, tasks[:MOST_NAMED]))
    if len(tasks) > MOST_NAMED:
        named += f" and {len(tasks) - MOST_NAMED} more"
    typer.echo(f"{'dry run: ' if dry_run else ''}old versions of {named}")
    typer.echo(counted("it would delete" if dry_run else "deleted", tally))


def counted(did: str, tally: Tally) -> str:
    """How many answers there were, and whether that is all."""
    seen = f"{tally.seen:,} stored"
    if tally.exact:
        return f"{did} {_answers(tally.answers)} (of {seen})"
    if not tally.seen:
        return f"how many answers {did} is unknown: {tally.unfinished}"
    return (
        f"{did} at least {_answers(tally.answers)} (of {seen} that were looked at); "
        f"how many in all is unknown: {tally.unfinished}"
    )


def _answers(count: int) -> str:
    return f"{count:,} answer{'' if count == 1 else 's'}"


def _print_json(report: ReportJson) -> None:
    typer.echo(msgspec.json.format(msgspec.json.encode(report)))
