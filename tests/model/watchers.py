"""A worker's knowledge of invalidations (`Stamps`), on a wire that loses replies."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from typing import Any, NamedTuple, TypeVar, cast

import msgspec
import pytest
from redis.exceptions import ConnectionError as StoreDown

from askonce_queue.reply import Answer
from askonce_queue.scripts import Call
from askonce_queue.store import Store
from askonce_worker.cache import stamps as stamps_module
from askonce_worker.cache.entry import Entry
from askonce_worker.cache.stamps import Stamps
from tests.model.model_answers import AnswerModel, View, tag_set
from tests.support.virtual_scripts import TAG, VirtualShard

T = TypeVar("T")
BOUND_S = 0.5


class Remembered(NamedTuple):
    """An answer that a worker has in memory, and when the right to compute it was given."""

    key: bytes
    entry: Entry
    moment: int


class _Seen(NamedTuple):
    """What was known at a look, and when that was."""

    view: View
    at_s: float


class _WatcherClock:
    """A worker's own clock, which never goes back."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def monotonic(self) -> float:
        return self.now_s

    def wall_ms(self) -> float:
        return self.now_s * 1000


class _Instant:
    """A `Store` whose calls are done at once; the reply may be lost."""

    tags = (TAG,)

    def __init__(self, shard: VirtualShard) -> None:
        self._shard = shard
        self.heard = True

    async def run(self, call: Call) -> Any:
        result = self._shard.run(call)
        if not self.heard:
            raise StoreDown("the reply is lost")
        return result


class Watcher:
    """A worker that looks now and then at what was invalidated.

    With room for fewer tags it may forget more than it must, but never serve more than it may.
    """

    def __init__(
        self, shard: VirtualShard, model: AnswerModel, most_tags: int = stamps_module.MOST_TAGS
    ) -> None:
        self._most_tags = most_tags
        self._model = model
        self._clock = _WatcherClock()
        self._store = _Instant(shard)
        self._stamps = Stamps(cast("Store", self._store), self._clock, BOUND_S)
        self._seen: _Seen | None = None
        self._remembered: list[Remembered] = []

    def pass_time(self, ms: float) -> None:
        self._clock.now_s += ms / 1000
        now_s = self._clock.now_s
        self._remembered = [one for one in self._remembered if one.entry.kept > now_s]

    def remember(
        self, key: bytes, built: float, moment: int, tags: frozenset[str], ttl_ms: float
    ) -> None:
        entry = Entry(
            Answer(label="a"),
            msgspec.Raw(b"{}"),
            born=0.0,
            built=built,
            kept=self._clock.now_s + ttl_ms / 1000,
            tags=tuple(tags),
            shard=0,
            fresh_until=self._clock.now_s + ttl_ms / 1000,
        )
        self._remembered.append(Remembered(key, entry, moment))

    def watch(self, *, heard: bool) -> None:
        self._store.heard = heard
        self._model.has_stamps = True
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(stamps_module, "MOST_TAGS", self._most_tags)
                at_once(self._stamps.read(0))
        except StoreDown:
            return
        self._seen = _Seen(self._model.view, self._clock.now_s)

    def check(self, askers: Iterable[str]) -> None:
        """It serves what was good when it looked last, for a while, and nothing else."""
        for key, entry, moment in self._remembered:
            for asker in map(tag_set, askers):
                serves = self._stamps.usable(entry, sorted(asker), key, self._clock.now_s)
                may_serve = self._may_serve(moment, {*entry.tags, *asker}, key)
                is_exact = self._most_tags == stamps_module.MOST_TAGS
                assert serves == may_serve if is_exact else serves <= may_serve

    def _may_serve(self, moment: int, tags: set[str], key: bytes) -> bool:
        if self._seen is None:
            return False
        view, at_s = self._seen
        return self._clock.now_s - at_s <= BOUND_S and self._model.good(moment, tags, key, view)


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that has nothing to wait for."""
    try:
        work.send(None)
    except StopIteration as done:
        return cast("T", done.value)
    raise AssertionError("it waits for something")
