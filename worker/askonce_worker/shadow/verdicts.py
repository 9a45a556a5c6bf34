"""Verdicts of shadow checks: counted by label and by the age of the answer, for the whole fleet.

They travel as counters, `verify_agree:AGE:LABEL` and `verify_differ:AGE:LABEL`. Only labels of the
configuration are told apart, so their number is bounded.
"""

from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Self

from askonce_queue import names
from askonce_queue.store import Store
from askonce_worker.observe.wilson import wilson
from askonce_worker.observe.windows import WINDOWS, WindowReader

AGES = (
    ("1 m", 60.0),
    ("5 m", 300.0),
    ("1 h", 3600.0),
    ("6 h", 21_600.0),
    ("24 h", 86_400.0),
    ("7 d", 604_800.0),
    ("any age", math.inf),
)
"""Bands of ages: their name, and how old an answer in it is at most, in seconds."""
LEAST_CHECKS = 30
"""Fewer say nothing: there is no rate, and the guard does nothing."""
MOST_LABELS = 200
"""Labels of a task that are told apart."""

WINDOW = next(window for window in WINDOWS if window.name == "24h")
"""How long a verdict counts."""

_UPPER = [most_s for _, most_s in AGES]
_BAND = {name.replace(" ", ""): band for band, (name, _) in enumerate(AGES)}
_BANDS = list(_BAND)
AGREE, DIFFER = "agree", "differ"
_KINDS = {f"verify_{verdict}": verdict for verdict in (AGREE, DIFFER)}


class Rate(NamedTuple):
    """How many checked hits differed from a fresh answer."""

    checks: int = 0
    differ: int = 0

    def __add__(self, other: object) -> Self:
        """Both together."""
        assert isinstance(other, Rate)
        return type(self)(self.checks + other.checks, self.differ + other.differ)

    @property
    def is_known(self) -> bool:
        """Whether there are enough checks to speak of a rate."""
        return self.checks >= LEAST_CHECKS

    @property
    def share(self) -> float:
        """The share that differed; 0 without checks."""
        return self.differ / self.checks if self.checks else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Between which the true share is, with 95 % confidence."""
        return wilson(self.differ, self.checks)


Bands = tuple[Rate, ...]
"""One rate an age band, of that band alone."""
Verdicts = Mapping[str, Bands]
"""Of one task, by label of the stored answer; `""` is all that have none of the task's labels."""

NONE: Bands = (Rate(),) * len(AGES)


def place(age_s: float, label: str | None, labels: Sequence[str]) -> str:
    """Where a verdict is counted: `AGE:LABEL`. `labels` are those of the task."""
    told = label if label is not None and label in labels[:MOST_LABELS] else ""
    band = _BANDS[bisect.bisect_left(_UPPER, age_s)]
    return f"{band}:{told}"


def tally(counts: Iterable[tuple[str, str, int]]) -> dict[str, Verdicts]:
    """Verdicts by task, from counters: task, name, amount. Other counters are passed over."""
    found: defaultdict[str, dict[str, list[Rate]]] = defaultdict(dict)
    for task, name, amount in counts:
        kind, _, rest = name.partition(":")
        band_name, _, label = rest.partition(":")
        band = _BAND.get(band_name)
        if kind not in _KINDS or band is None or amount <= 0:  # negative: written by others
            continue
        rates = found[task].setdefault(label, list(NONE))
        rates[band] += Rate(amount, amount if _KINDS[kind] == DIFFER else 0)
    return {
        task: {label: tuple(rates) for label, rates in sorted(labels.items())}
        for task, labels in found.items()
    }


def of_all_labels(verdicts: Verdicts) -> Bands:
    """One rate an age band, whatever the label."""
    rates = list(NONE)
    for bands in verdicts.values():
        rates = [one + other for one, other in zip(rates, bands, strict=True)]
    return tuple(rates)


def cumulative(bands: Bands) -> Bands:
    """One rate an age band, of all answers that are at most so old."""
    total, rates = Rate(), list[Rate]()
    for rate in bands:
        total += rate
        rates.append(total)
    return tuple(rates)


class VerdictReader:
    """Reads the fleet's verdicts, again and again: the one place that says how long they count."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._windows = WindowReader(store)

    async def read(self) -> dict[str, Verdicts]:
        """The verdicts of the last 24 hours, by task. Raises redis-py's errors."""
        now_s, micros = await self._store.send(names.META, "TIME")
        timeline = await self._windows.timeline(int(now_s) * 1000 + int(micros) // 1000)
        counts = timeline.counts(WINDOW)
        return tally((task, name, amount) for (task, name), amount in counts.items())
