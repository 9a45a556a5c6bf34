"""The reference model of an answer shard: what the answer scripts promise, in the fewest words.

It knows no stamps. An answer is good as long as nothing has happened to its tags, or to those of
the asker, since the right to compute it was given; so the model keeps a list of what happened.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence
from typing import NamedTuple

from askonce_queue.answer_scripts import GLOB_MARK, KEY_MARK, Demand, Fill, Release
from tests.support.virtual_scripts import Told


class Happened(NamedTuple):
    """An invalidation, or a loss of the shard's stamps (which is one of everything).

    `members` are as `invalidate.lua` takes them: tags, keys and globs.
    """

    everything: bool
    members: frozenset[bytes]
    at_ms: float

    def touches(self, tags: Collection[str], digest: bytes) -> bool:
        """Whether it takes an answer with these tags under this key."""
        names = {tag.encode() for tag in tags}
        return (
            self.everything
            or KEY_MARK + digest in self.members
            or not names.isdisjoint(self.members)
            or any(
                fnmatch.fnmatchcase(tag, member[1:].decode())
                for member in self.members
                if member.startswith(GLOB_MARK)
                for tag in tags
            )
        )


class View(NamedTuple):
    """How much had happened at some time, and before which of it all counts as invalid."""

    moment: int
    floor: int


class Lease(NamedTuple):
    """The right to compute an answer. `moment`: how much had happened when it was given."""

    token: bytes
    deadline_ms: float
    moment: int
    attempt: int
    taken_over: bool = False
    """From a dead leader, by a look-up; known until it is renewed."""


class Kept(NamedTuple):
    """An answer in the store."""

    body: bytes
    moment: int
    tags: frozenset[str]
    created_ms: float
    fresh_until_ms: float
    over_ms: float

    def will_do(self, demand: Demand, now_ms: float) -> bool:
        """Whether it is what an asker demands."""
        return (
            not demand.anew
            and now_ms - self.created_ms <= demand.max_age_ms
            and self.fresh_until_ms - now_ms > demand.least_left_ms
        )


class Tries(NamedTuple):
    """What outlives a lease: attempts (`A`), a rejection (`R`), or that it cannot be kept (`U`)."""

    kind: str
    attempt: int
    until_ms: float
    error: bytes = b""


def tag_set(text: str) -> frozenset[str]:
    """Tags as the scripts take them: joined by line breaks."""
    return frozenset(text.split("\n")) if text else frozenset()


class AnswerModel:
    """One shard. Every script is a method that does, and returns, what the script does."""

    def __init__(self, now_ms: float) -> None:
        self.now_ms = now_ms
        self.happened: list[Happened] = []
        self.has_stamps = False
        self.last: dict[bytes, int] = {}
        """Of each tag and key that the shard remembers: the latest of what happened to it."""
        self.globs: dict[bytes, int] = {}
        """The same of globs."""
        self.max_ttl_ms = 0.0
        self._floor = 0
        self.answers: dict[bytes, Kept] = {}
        self.leases: dict[bytes, Lease] = {}
        self.tries: dict[bytes, Tries] = {}

    @property
    def moment(self) -> int:
        """Now, counted in what has happened."""
        return len(self.happened)

    @property
    def view(self) -> View:
        """What is known now."""
        return View(self.moment, self._floor)

    def good(
        self, since: int, tags: Collection[str], digest: bytes, view: View | None = None
    ) -> bool:
        """Whether, in a view (now), nothing has happened to key or tags since a moment."""
        moment, floor = view or self.view
        later = self.happened[since:moment]
        return since >= floor and not any(one.touches(tags, digest) for one in later)

    # What the scripts do

    def look_up(
        self,
        token: bytes,
        lease_ms: float,
        most: int,
        asked: Sequence[tuple[bytes, str, Demand]],
    ) -> list[Told]:
        """`asked`: a digest, the asker's tags, and what it demands."""
        self.has_stamps = True
        new: set[bytes] = set()
        results: list[Told] = []
        for digest, tags, demand in asked:
            may_lease = len(new) < most
            told = self._look_up(digest, token, tag_set(tags), demand, digest in new, may_lease)
            if told.kind in "LSX" and not self._is_holder(digest, token):
                deadline_ms = self.now_ms + lease_ms
                lease = Lease(token, deadline_ms, self.moment, told.attempt, told.taken_over)
                self.leases[digest] = lease
                new.add(digest)
            results.append(told)
        return results

    def _look_up(
        self,
        digest: bytes,
        token: bytes,
        asker: frozenset[str],
        demand: Demand,
        here: bool,
        may_lease: bool,
    ) -> Told:
        kept = self.answers.get(digest)
        if kept and not (
            self.now_ms < kept.over_ms and self.good(kept.moment, kept.tags | asker, digest)
        ):
            kept = None
        will_do = kept is not None and kept.will_do(demand, self.now_ms)
        if kept and will_do and self.now_ms < kept.fresh_until_ms:
            return Told("+", entry=kept.body)
        told = self._lead(digest, token, asker, demand, here, may_lease)
        if kept and will_do:  # and stale
            if told.kind == "L":
                return Told("S", attempt=told.attempt, entry=kept.body)
            return Told("+", entry=kept.body)
        if kept and demand.spare and told.kind in "LRF":
            kinds = {"L": "X", "R": "E", "F": "F"}
            return told._replace(kind=kinds[told.kind], entry=kept.body)
        return told

    def _lead(
        self,
        digest: bytes,
        token: bytes,
        asker: frozenset[str],
        demand: Demand,
        here: bool,
        may_lease: bool,
    ) -> Told:
        """Who computes it: we (`L`), another (`B`), nobody (`F`), or nobody is to (`R`, `U`)."""
        lease = self.leases.get(digest)
        if demand.cached_only:
            return Told("F")
        if here:
            busy, attempt, from_dead = True, 1, False
        elif lease and lease.token == token:
            return Told("L", attempt=lease.attempt, taken_over=lease.taken_over)
        else:
            from_dead = lease is not None and lease.deadline_ms < self.now_ms
            attempt = min(lease.attempt + 1, 255) if lease and from_dead else 1
            busy = (
                lease is not None
                and not (from_dead or demand.anew)
                and self.good(lease.moment, asker, digest)
            )
        tries = self.tries.get(digest)
        if tries and tries.until_ms >= self.now_ms and not demand.anew:
            if tries.kind != "A":
                return Told(tries.kind, error=tries.error)
            attempt = max(attempt, tries.attempt + 1)
        if busy:
            return Told("B", token=token if here or lease is None else lease.token)
        if not may_lease:
            return Told("F")
        return Told("L", attempt=attempt, taken_over=from_dead)

    def take_over(
        self, token: bytes, lease_ms: float, seen: Sequence[tuple[bytes, bytes]]
    ) -> list[int]:
        """The number of the attempt that is ours, or 0 when the lease has moved on."""
        attempts: list[int] = []
        for digest, leader in seen:
            lease = self.leases.get(digest)
            if lease is None or not self.has_stamps or lease.token not in (leader, token):
                attempts.append(0)
                continue
            if lease.token == leader != token:
                attempt = min(lease.attempt + 1, 255)
                lease = Lease(token, self.now_ms + lease_ms, self.moment, attempt)
                self.leases[digest] = lease
            attempts.append(lease.attempt)
        return attempts

    def renew(self, lease_ms: float, held: Sequence[tuple[bytes, bytes]]) -> str:
        letters = ""
        for digest, token in held:
            mine = self._is_holder(digest, token)
            if mine:
                deadline_ms = self.now_ms + lease_ms
                lease = self.leases[digest]
                self.leases[digest] = lease._replace(deadline_ms=deadline_ms, taken_over=False)
            letters += "r" if mine else "l"
        return letters

    def fill(self, fills: Sequence[Fill]) -> str:
        letters = ""
        for one in fills:
            if not self.has_stamps or not self._is_holder(one.digest, one.token):
                letters += "x"
                continue
            lease = self.leases.pop(one.digest)
            self.tries.pop(one.digest, None)
            tags = tag_set(one.tags)
            good = self.good(lease.moment, tags, one.digest)
            if good:
                now = self.now_ms
                self.answers[one.digest] = Kept(
                    one.body, lease.moment, tags, now, now + one.fresh_ms, now + one.keep_ms
                )
                self.max_ttl_ms = max(self.max_ttl_ms, one.keep_ms)
            letters += "f" if good else "i"
        return letters

    def release(self, releases: Sequence[Release]) -> str:
        letters = ""
        for one in releases:
            mine = self._is_holder(one.digest, one.token)
            if mine:
                del self.leases[one.digest]
                if one.kind:
                    until_ms = self.now_ms + one.remember_ms
                    self.tries[one.digest] = Tries(one.kind, 0, until_ms, one.error)
            letters += "o" if mine else "x"
        return letters

    def note_attempt(self, digest: bytes, token: bytes, attempt: int, remember_ms: float) -> int:
        if not self._is_holder(digest, token):
            return 0
        lease = self.leases[digest]
        if lease.attempt <= attempt:
            self.tries[digest] = Tries("A", attempt, self.now_ms + remember_ms)
            lease = lease._replace(attempt=min(attempt + 1, 255), taken_over=False)
            self.leases[digest] = lease
        return lease.attempt

    def invalidate(self, members: Sequence[bytes], *, everything: bool, most_globs: int) -> None:
        # Without stamps nobody knows what happened before.
        self._happen(everything or not self.has_stamps, members)
        self.has_stamps = True
        self._drop_globs(most_globs, oldest_ms=0.0)

    def _drop_globs(self, most: int, oldest_ms: float) -> int:
        """Of globs that are too long ago, or too many, one no longer knows what they took."""
        globs = sorted(self.globs, key=lambda glob: self.globs[glob])
        old = [glob for glob in globs if self.happened[self.globs[glob]].at_ms < oldest_ms]
        drop = globs[: max(len(old), len(globs) - most, 0)]
        for glob in drop:
            self._floor = max(self._floor, self.globs.pop(glob) + 1)
        return len(drop)

    def sweep_tags(self, count: int, most: int, most_globs: int) -> int:
        """Of what is too long ago, or too much, one no longer knows the tags: it counts for all."""
        oldest_ms = self.now_ms - self.max_ttl_ms - 3_600_000
        globs = self._drop_globs(most_globs, oldest_ms)
        tags = sorted(self.last, key=lambda tag: (self.last[tag], tag))
        old = [tag for tag in tags if self.happened[self.last[tag]].at_ms <= oldest_ms]
        drop = tags[: min(count, max(len(old), len(tags) - most, 0))]
        for tag in drop:
            self._floor = max(self._floor, self.last.pop(tag) + 1)
        return globs + len(drop)

    def sweep_leases(self, grace_ms: float) -> int:
        over = [d for d, one in self.leases.items() if one.deadline_ms + grace_ms < self.now_ms]
        for digest in over:
            del self.leases[digest]
        return len(over)

    def sweep_tries(self, grace_ms: float) -> int:
        over = [d for d, one in self.tries.items() if one.until_ms + grace_ms < self.now_ms]
        for digest in over:
            del self.tries[digest]
        return len(over)

    # What happens to the shard

    def lose_stamps(self) -> None:
        """Nobody knows any more what was invalidated: everything may have been."""
        self._happen(everything=True, members=())
        self.has_stamps = False
        self.last.clear()
        self.globs.clear()
        self.max_ttl_ms = 0.0

    def _happen(self, everything: bool, members: Collection[bytes]) -> None:
        # A clock that is behind does not reorder what happens.
        at_ms = max(self.now_ms, self.happened[-1].at_ms if self.happened else 0.0)
        for member in members:
            (self.globs if member.startswith(GLOB_MARK) else self.last)[member] = self.moment
        self.happened.append(Happened(everything, frozenset(members), at_ms))

    def _is_holder(self, digest: bytes, token: bytes) -> bool:
        lease = self.leases.get(digest)
        return lease is not None and lease.token == token
