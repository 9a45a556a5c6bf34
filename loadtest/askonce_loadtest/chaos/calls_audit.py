"""The account of model calls, from the workers' logs: whether every question was asked once.

Invariant 2: per key and TTL window, fills ≤ 1 + takeovers + lost leases. What a window is, is taken
as narrowly as the store's scripts allow. A lease with the reason `fill` is granted only for a key
that has neither a valid answer, nor a lease (live or expired), nor a remembered failure. A key that
once had a lease gets there again by

- an answer that is gone: it was unlinked with all others (`lose-answers`), evicted
  (`memory-pressure`), or has reached its TTL since the earlier lease was granted;
- an answer or a lease that is not valid any more: its group, its task or everything was
  invalidated, or the stamps were lost;
- a lease given back: by a drain, after the last attempt (`exhausted`), or because the store did not
  take the answer (`unkept`). These need a reason of their own: a worker that was told to drain, a
  model or a store that was out of order at the time;
- a dead leader's lease that the sweep removed, six TTLs after its end.

So every `fill` but a key's first needs one of these between the previous lease of that key (of
either reason, `fill` or `takeover`) and itself. A live leader, a leader that died, was stopped or
cut off, and a fenced answer are no excuses: who follows those is a `takeover`, or waits.

A `takeover` of a lease needs a leader that may have lost it: some worker had died, stopped, drained
or was cut off from the store since the lease before was granted, or a little earlier.

Each call is logged before it is made, with the time before which its lease was not granted
(`granted_until` less the TTL); the time of the line is the time after which it was not. Two leases
whose times overlap may have been granted in either order.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from askonce_loadtest.chaos.evidence import Invalidation, Span, Violation
from askonce_loadtest.chaos.journal import ModelCall
from askonce_loadtest.chaos.plan import ANSWER_TTL_S, LEASE_TTL_S
from askonce_loadtest.chaos.worker_logs import Call, End
from askonce_loadtest.chaos.workload import Asked
from askonce_worker.pool.sweep import LEASE_GRACE

SWEPT_AFTER_S = (1 + LEASE_GRACE) * LEASE_TTL_S
"""How long after its grant a lease may be swept, when its leader has died at once."""
LEASED = ("fill", "takeover")
_SHOWN_CHARS = 16


class _Lease(msgspec.Struct):
    """One lease under which a model was called: granted between `earliest` and `latest`."""

    worker: str
    reason: str
    earliest: float
    latest: float
    end: End | None = None

    def __str__(self) -> str:
        end = self.end.end if self.end else "no end"
        return f"{self.reason} by {self.worker} at {self.latest:.3f} ({end})"


class Circumstances(NamedTuple):
    """What may excuse another fill. `losses` are when all answers, or their stamps, were lost."""

    losses: Sequence[Span]
    invalidations: Sequence[Invalidation]
    store_trouble: Sequence[Span]
    model_trouble: Sequence[Span]
    worker_trouble: Sequence[Span]
    drains: Mapping[str, float]
    """When a worker was told to drain, by its name."""


class CallsAccount(NamedTuple):
    """What models were asked, and why."""

    by_reason: dict[str, int]
    ends: dict[str, int]
    keys: int
    violations: list[Violation]


def audit_calls(
    calls: Iterable[Call],
    ends: Iterable[End],
    texts: Mapping[str, Asked],
    circumstances: Circumstances,
    received: Iterable[ModelCall],
) -> CallsAccount:
    """Go through all calls. `texts` says what each key asks, `received` what the model has seen."""
    calls, ends = list(calls), list(ends)
    violations: list[Violation] = []
    for key, leases in _leases(calls, ends).items():
        asked = texts.get(key)
        if asked is None:
            what = f"key {key[:_SHOWN_CHARS]}…: a call for a question that nobody asked"
            violations.append(Violation("unrecorded_calls", what, leases[0].worker))
            continue
        violations += _judge(key, asked, leases, circumstances)
    violations += _unrecorded(calls, texts, received)
    return CallsAccount(
        dict(Counter(call.reason for call in calls)),
        dict(Counter(end.end for end in ends)),
        len({call.key for call in calls}),
        violations,
    )


def _leases(calls: Iterable[Call], ends: Iterable[End]) -> dict[str, list[_Lease]]:
    """The leases of each key under which something was asked, with how their flights ended."""
    by_key: defaultdict[str, list[_Lease]] = defaultdict(list)
    newest: dict[tuple[str, str, float], _Lease] = {}
    for call in sorted(calls, key=lambda call: call.at):
        if call.reason in LEASED:
            lease = _Lease(call.worker, call.reason, call.granted_until - LEASE_TTL_S, call.at)
            by_key[call.key].append(lease)
            # A flight that lost one lease may get another: the end belongs to its last.
            newest[call.worker, call.key, call.began] = lease
    for end in ends:
        found = newest.get((end.worker, end.key, end.began))
        if found is not None:
            found.end = end
    return by_key


def _judge(
    key: str, asked: Asked, leases: list[_Lease], circumstances: Circumstances
) -> Iterable[Violation]:
    leases = sorted(leases, key=lambda lease: lease.earliest)
    for at in range(1, len(leases)):
        before, lease = leases[at - 1], leases[at]
        if lease.reason == "fill":
            kind, excused = "fills_above", _excused(asked, before, lease, circumstances)
        else:
            kind, excused = "takeovers", _lost(before, lease, circumstances)
        if not excused:
            what = f"key {key[:_SHOWN_CHARS]}… ({asked.text!r}): {lease}, after {before}"
            yield Violation(kind, what, f"{before.worker}, {lease.worker}")


def _lost(before: _Lease, lease: _Lease, circumstances: Circumstances) -> bool:
    """Whether the leader before may have lost its lease."""
    since, until = before.earliest, max(before.latest, lease.latest)
    troubles = (*circumstances.worker_trouble, *circumstances.store_trouble)
    return any(span.touches(since, until) for span in troubles)


def _excused(asked: Asked, before: _Lease, lease: _Lease, circumstances: Circumstances) -> bool:
    """Whether the key was free again between two of its leases."""
    since, until = before.earliest, max(before.latest, lease.latest)
    if until - since >= ANSWER_TTL_S:
        return True
    if any(loss.touches(since, until) for loss in circumstances.losses):
        return True
    for one in circumstances.invalidations:
        ended = one.confirmed if one.confirmed is not None else float("inf")
        if one.concerns(asked) and Span(one.began, ended).touches(since, until):
            return True
    return _given_back(before, until, circumstances)


def _given_back(before: _Lease, until: float, circumstances: Circumstances) -> bool:
    """Whether a lease was given back, or is so old that it was swept."""
    if before.end is None:
        drained = circumstances.drains.get(before.worker, float("inf"))
        return drained < until or until - before.earliest >= SWEPT_AFTER_S
    over = before.end.at
    if before.end.end == "unkept":
        return any(span.touches(before.earliest, over) for span in circumstances.store_trouble)
    if before.end.end == "exhausted":
        return any(span.touches(before.earliest, over) for span in circumstances.model_trouble)
    return before.end.end != "filled" and until - before.earliest >= SWEPT_AFTER_S


def _unrecorded(
    calls: Iterable[Call], texts: Mapping[str, Asked], received: Iterable[ModelCall]
) -> Iterable[Violation]:
    """Calls that reached the model although no worker has said that it makes them."""
    recorded: Counter[str] = Counter()
    for call in calls:
        asked = texts.get(call.key)
        if asked is not None:
            recorded[asked.text] += 1
    for text, times in Counter(call.text for call in received).items():
        if times > recorded[text]:
            what = f"{text!r}: the model got {times} calls, workers logged {recorded[text]}"
            yield Violation("unrecorded_calls", what, "model.jsonl")
