"""What `askonce stats` says of shadow checks."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from askonce_worker.cache.policy import Policy
from askonce_worker.shadow.guard import age_limit
from askonce_worker.shadow.verdicts import (
    AGES,
    Bands,
    Rate,
    VerdictReader,
    cumulative,
    of_all_labels,
)

_TENTH_OF_A_PERCENT = 0.001


class AgeChecks(msgspec.Struct):
    """Checks of hits that were at most `max_age_s` old (None: of any age).

    `disagreement` is the share that differed from a fresh answer, `low` and `high` the ends of its
    95 % interval; None with fewer than 30 checks.
    """

    max_age_s: float | None
    checks: int
    differ: int
    disagreement: float | None
    low: float | None
    high: float | None


class TaskChecks(msgspec.Struct):
    """Shadow checks of one task, by age (cumulative), altogether and by label of the stored answer.

    `age_limit_s` is what follows from `max_disagreement`: older answers are not served (0: none
    are); None without a limit.
    """

    by_age: list[AgeChecks]
    by_label: dict[str, list[AgeChecks]]
    max_disagreement: float | None
    age_limit_s: float | None


async def read_checks(
    reader: VerdictReader, policies: Mapping[str, Policy]
) -> dict[str, TaskChecks]:
    """Read the fleet's checks by task, of those that have any. Raises redis-py's errors.

    `policies` are those of the configured tasks.
    """
    found: dict[str, TaskChecks] = {}
    for task, verdicts in sorted((await reader.read()).items()):
        policy = policies.get(task, Policy())
        limit_s = age_limit(policy, verdicts)
        found[task] = TaskChecks(
            by_age=_by_age(of_all_labels(verdicts)),
            by_label={label: _by_age(bands) for label, bands in verdicts.items()},
            max_disagreement=policy.max_disagreement,
            age_limit_s=limit_s if math.isfinite(limit_s) else None,
        )
    return found


def _by_age(bands: Bands) -> list[AgeChecks]:
    """One line a band in which there are any; those above would only repeat it."""
    filled = [bool(band.checks) for band in bands]
    return [
        _age_checks(most_s, rate)
        for (_, most_s), rate, any_here in zip(AGES, cumulative(bands), filled, strict=True)
        if any_here
    ]


def _age_checks(most_s: float, rate: Rate) -> AgeChecks:
    low, high = rate.interval
    known = rate.is_known
    return AgeChecks(
        max_age_s=most_s if math.isfinite(most_s) else None,
        checks=rate.checks,
        differ=rate.differ,
        disagreement=round(rate.share, 6) if known else None,
        low=round(low, 6) if known else None,
        high=round(high, 6) if known else None,
    )


def describe(checks: TaskChecks) -> list[str]:
    """Say it in sentences, what matters most first; none is longer than 72 characters."""
    lines: list[str] = []
    if checks.age_limit_s is not None:
        most = _percent(checks.max_disagreement or 0.0)
        lines.append(f"{_limit(checks.age_limit_s)} (max_disagreement {most})")
    lines += [_sentence(one) for one in reversed(checks.by_age)]
    lines.append(f"{checks.by_age[-1].checks:,} hits checked")
    return lines


def _sentence(one: AgeChecks) -> str:
    which = f"hits {_up_to(one.max_age_s)}"
    if one.disagreement is None or one.low is None or one.high is None:
        few = f"{one.differ} of {one.checks} differ, too few checks for a rate"
        return f"{which}: {few}"
    share = f"{_percent(one.disagreement)} ({_percent(one.low)} to {_percent(one.high)})"
    return f"{which}: {share} differ from a fresh answer"


def _up_to(max_age_s: float | None) -> str:
    if max_age_s is None:
        return "of any age"
    return f"up to {_age(max_age_s)} old"


def _limit(age_limit_s: float) -> str:
    if not age_limit_s:
        return "THE CACHE IS OFF"
    return f"ONLY ANSWERS UP TO {_age(age_limit_s)} OLD ARE SERVED"


def _percent(share: float) -> str:
    return f"{share:.1%}" if share == 0 or share >= _TENTH_OF_A_PERCENT else f"{share:.2%}"


def _age(seconds: float) -> str:
    return next(name for name, most_s in AGES if most_s == seconds)
