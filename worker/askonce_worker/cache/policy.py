"""What may be kept, for how long, and what an asker accepts: decisions without I/O.

A task has a `Policy`; one job may ask for more or less with HTTP's cache directives (RFC 9111 for
requests, RFC 5861 for `stale_if_error`), which become its `Control`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from askonce_queue.answer_scripts import NO_LIMIT_MS, Demand
from askonce_queue.job import CacheControl
from askonce_queue.reply import Answer
from askonce_worker.cache.entry import Entry

LEAST_TTL_S = 0.001
MOST_TTL_S = 10 * 365 * 86_400.0
"""Bounds of a TTL: the store counts in ms, and a slip of the unit should not pass for for-ever."""


class Control(msgspec.Struct, frozen=True, kw_only=True):
    """What one asker accepts and allows, its task's policy included. Times in seconds.

    `refresh`: nothing that was begun before the ask (no-cache). `least_left_s`: more freshness than
    that must be left; below 0, it may be stale by less. `stale_if_error_s`: how stale an answer may
    be that stands in for an error. `ttl_s`: an answer that this ask leads to is kept no longer.
    """

    refresh: bool = False
    only_if_cached: bool = False
    no_store: bool = False
    max_age_s: float = math.inf
    least_left_s: float = 0.0
    stale_if_error_s: float = 0.0
    ttl_s: float = math.inf

    def accepts(self, entry: Entry, now: float) -> bool:
        """Whether a valid answer will do at monotonic time `now`."""
        return (
            not self.refresh
            and now - entry.born <= self.max_age_s
            and entry.fresh_until - now > self.least_left_s
        )


class Lifetime(NamedTuple):
    """How long an answer is fresh and kept by the store, and kept in memory."""

    fresh_ms: int
    keep_ms: int
    memory_s: float


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What a task allows. Times in seconds.

    `jitter` is the share of a TTL by which it may be shortened, so that answers which came together
    do not expire together; nothing lengthens one. For `stale_while_revalidate_s` after its TTL an
    answer is still served while one worker refreshes it; for `stale_if_error_s` it stands in when
    that fails. `hit_for_miss_s`: how long it is remembered that an answer was not admitted, so that
    nobody waits for others to get one that can be kept. `verify_share` of the hits are checked
    against a fresh answer; where more than `max_disagreement` differ, `max_age_s` is lowered.
    """

    cacheable: bool = True
    deterministic: bool = False
    """Whether answers are worth keeping although a request samples (temperature is not 0)."""
    ttl_s: float = 86_400.0
    memory_ttl_s: float = 300.0
    ttl_by_label_s: Mapping[str, float] = {}
    jitter: float = 0.0
    stale_while_revalidate_s: float = 0.0
    stale_if_error_s: float = 0.0
    min_confidence: float = 0.0
    never_cache_labels: frozenset[str] = frozenset()
    hit_for_miss_s: float = 10.0
    verify_share: float = 0.0
    max_disagreement: float | None = None
    max_age_s: float = math.inf
    """An older answer will not do, whoever asks; at 0 none will, and nothing is shared."""

    def __post_init__(self) -> None:
        lifetimes = {"ttl_s": self.ttl_s, "memory_ttl_s": self.memory_ttl_s}
        lifetimes |= {f"ttl_by_label_s[{name}]": ttl for name, ttl in self.ttl_by_label_s.items()}
        for what, seconds in lifetimes.items():
            if not LEAST_TTL_S <= seconds <= MOST_TTL_S:
                raise ValueError(
                    f"{what} must be from {LEAST_TTL_S} to {MOST_TTL_S:.0f} s, not {seconds}"
                )

    @property
    def plain(self) -> Control:
        """What an ask without wishes of its own accepts."""
        return Control(
            max_age_s=self.max_age_s,
            least_left_s=-self.stale_while_revalidate_s,
            stale_if_error_s=self.stale_if_error_s,
        )

    def control(self, asked: CacheControl) -> Control:
        """What an ask with wishes accepts: HTTP's meanings, under what the task allows."""
        asked_age_s = min(_or(asked.max_age_s, math.inf), _or(asked.ttl_s, math.inf))
        least_left_s = -_or(asked.max_stale_s, self.stale_while_revalidate_s)
        if asked.min_fresh_s is not None:
            least_left_s = asked.min_fresh_s
        return Control(
            refresh=asked.no_cache,
            only_if_cached=asked.only_if_cached,
            no_store=asked.no_store,
            max_age_s=min(asked_age_s, self.max_age_s),
            least_left_s=least_left_s,
            stale_if_error_s=_or(asked.stale_if_error_s, self.stale_if_error_s),
            ttl_s=_or(asked.ttl_s, math.inf),
        )

    def why_not_cacheable(
        self, asked: CacheControl | None, params: Mapping[str, Any] | None
    ) -> str | None:
        """Why an ask is answered for itself alone; `None` when its answer may be shared and kept.

        The caller's word counts; but sampled answers are kept only where the task says that they
        are as good as any.
        """
        if not self.max_age_s:
            return "max_disagreement: too many of the answers differ from fresh ones"
        said = self.cacheable if asked is None or asked.cacheable is None else asked.cacheable
        if not said:
            return "cacheable: the caller says that it is not"
        temperature = (params or {}).get("temperature")
        if temperature not in (None, 0) and not self.deterministic:
            return f"temperature: {temperature!r} samples, and the task is not deterministic"
        return None

    def admits(self, answer: Answer) -> bool:
        """Whether an answer is good enough to be kept. One without a score is not judged by it."""
        if answer.label in self.never_cache_labels:
            return False
        return answer.score is None or answer.score >= self.min_confidence

    def lifetime(self, answer: Answer, most_s: float, rng: random.Random) -> Lifetime:
        """How long to keep a new answer; `most_s` is the least of its askers' `ttl_s`."""
        ttl_s = self.ttl_by_label_s.get(answer.label or "", self.ttl_s)
        ttl_s = max(
            LEAST_TTL_S, min(ttl_s, most_s, self.max_age_s) * (1 - self.jitter * rng.random())
        )
        stale_s = max(self.stale_while_revalidate_s, self.stale_if_error_s)
        return Lifetime(
            max(1, int(ttl_s * 1000)),
            max(1, int((ttl_s + stale_s) * 1000)),
            min(self.memory_ttl_s, ttl_s),
        )


def demand_of(controls: Iterable[Control]) -> Demand | None:
    """What the look-up of a question demands for all who ask it; `None`: nothing special."""
    refresh = only_if_cached = spare = False
    max_age_s, least_left_s = math.inf, -math.inf
    for one in controls:
        refresh |= one.refresh
        only_if_cached |= one.only_if_cached
        # Also to know that there was one: then the call is a refresh.
        spare |= one.stale_if_error_s > 0 or one.max_age_s < math.inf or one.least_left_s > 0
        max_age_s = min(max_age_s, one.max_age_s)
        least_left_s = max(least_left_s, one.least_left_s)
    demand = Demand(
        cached_only=only_if_cached,
        anew=refresh,
        spare=spare,
        max_age_ms=min(NO_LIMIT_MS, max_age_s * 1000),
        least_left_ms=least_left_s * 1000,
    )
    return None if demand == _PLAIN else demand


_PLAIN = Demand()


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
