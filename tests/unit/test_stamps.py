"""What a worker knows of invalidations: never more is valid than what really is."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from askonce_queue.reply import Answer
from askonce_queue.store import Store
from askonce_worker.cache import stamps as stamps_module
from askonce_worker.cache.entry import Entry, encode_json
from askonce_worker.cache.stamps import Stamps
from askonce_worker.clock import SystemClock

TAGS = "abc"
BOUND_S = 0.5


class Shard:
    """A server's stamps, in the fewest words: DESIGN, "Invalidation by stamps"."""

    def __init__(self, now: int) -> None:
        self.inv = self.base = now
        self.last: dict[str, int] = {}

    def invalidate(self, tags: Sequence[str], now: int, *, everything: bool) -> None:
        self.inv = max(self.inv + 1, now)
        if everything:
            self.base = self.inv
        self.last |= dict.fromkeys(tags, self.inv)

    def read(self, seen_inv: float, most_tags: int) -> list[bytes]:
        """What `read_stamps.lua` returns."""
        changed = sorted((at, tag) for tag, at in self.last.items() if at > seen_inv)
        if len(changed) > most_tags:
            return [b"%d" % self.inv, b"%d" % self.inv]
        flat = [part for at, tag in changed for part in (tag.encode(), b"%d" % at)]
        return [b"%d" % self.inv, b"%d" % self.base, *flat]


class World:
    """A shard, who watches it, and the plain truth: everything that happened, in order."""

    def __init__(self, most_tags: int = 100) -> None:
        self.now = 1_000_000
        self.shard = Shard(self.now)
        self.stamps = new_stamps()
        self.most_tags = most_tags
        self.happened: list[tuple[bool, frozenset[str]]] = []
        self.entries: list[tuple[int, int, frozenset[str]]] = []

    def invalidate(self, tags: Sequence[str], *, everything: bool = False) -> None:
        self.shard.invalidate(tags, self.now, everything=everything)
        self.happened.append((everything, frozenset(tags)))

    def lose(self) -> None:
        """The shard is emptied, and comes back at the next look-up: later by its clock."""
        self.now = max(self.now, self.shard.inv) + 1
        self.shard = Shard(self.now)
        self.happened.append((True, frozenset()))

    def build(self, tags: Sequence[str]) -> None:
        self.entries.append((len(self.happened), self.shard.inv, frozenset(tags)))

    def watch(self) -> None:
        inv = self.stamps._inv[0]
        seen = inv if math.isfinite(inv) else 0
        self.stamps._note(0, self.shard.read(seen, self.most_tags))

    def is_valid(self, since: int, tags: frozenset[str]) -> bool:
        later = self.happened[since:]
        return not any(everything or tags & hit for everything, hit in later)


def new_stamps(shards: int = 1) -> Stamps:
    return Stamps(Store("redis://127.0.0.1:1/0", shards=shards), SystemClock(), BOUND_S)


KEY = b"k" * 32

some_tags = st.lists(st.sampled_from(TAGS), max_size=3, unique=True)
steps = st.lists(
    st.tuples(st.sampled_from(["tags", "all", "build", "pass", "watch", "lose"]), some_tags),
    max_size=25,
)


def play(world: World, happening: list[tuple[str, list[str]]]) -> None:
    for kind, tags in happening:
        match kind:
            case "tags":
                world.invalidate(tags)
            case "all":
                world.invalidate(tags, everything=True)
            case "build":
                world.build(tags)
            case "pass":
                world.now += 1
            case "lose":
                world.lose()
            case _:
                world.watch()
    world.watch()


@settings(max_examples=400, deadline=None)
@given(steps, some_tags)
def test_an_entry_is_valid_unless_something_of_it_or_its_asker_was_invalidated_since(
    happening: list[tuple[str, list[str]]], asker: list[str]
) -> None:
    world = World()
    play(world, happening)
    for since, built, tags in world.entries:
        expected = world.is_valid(since, tags | set(asker))
        assert world.stamps.valid(0, built, tuple(tags), asker, KEY) == expected


@settings(max_examples=400, deadline=None)
@given(steps, some_tags, st.integers(1, 3))
def test_with_too_little_room_it_errs_to_the_safe_side(
    happening: list[tuple[str, list[str]]], asker: list[str], most_tags: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stamps_module, "MOST_TAGS", most_tags)
        world = World(most_tags)
        play(world, happening)
        for since, built, tags in world.entries:
            if world.stamps.valid(0, built, tuple(tags), asker, KEY):
                assert world.is_valid(since, tags | set(asker))
        world.build(["a"])
        assert world.stamps.valid(0, world.shard.inv, ("a",), asker, KEY)  # what is new is good


def test_before_anything_was_read_nothing_is_valid() -> None:
    stamps = new_stamps()
    assert not stamps.valid(0, 1e18, (), (), KEY)
    assert not stamps.usable(entry_of(1e18), (), KEY, 0.0)


def test_it_remembers_no_more_tags_than_its_bound() -> None:
    world = World()
    world.watch()
    for burst in range(3):
        world.now += 1
        for number in range(stamps_module.MOST_TAGS // 2):
            world.shard.last[f"{burst}, {number}"] = world.now
        world.shard.inv = world.now
        world.most_tags = stamps_module.MOST_TAGS
        world.watch()
        assert len(world.stamps._last[0]) <= stamps_module.MOST_TAGS


def entry_of(built: float, shard: int = 0) -> Entry:
    answer = Answer(label="a")
    json = encode_json(answer)
    return Entry(
        answer,
        json,
        born=0.0,
        built=built,
        kept=9e9,
        tags=("a",),
        shard=shard,
        fresh_until=9e9,
    )


def test_memory_is_usable_while_the_shard_was_seen() -> None:
    stamps = new_stamps(2)
    stamps._note(0, [b"100", b"50"])
    stamps._seen_at[0] = 10.0
    for built, usable in ((100.0, True), (60.0, True), (49.0, False)):
        assert stamps.usable(entry_of(built), (), KEY, 10.0 + BOUND_S) is usable
    assert not stamps.usable(entry_of(100.0), (), KEY, 10.001 + BOUND_S)
    assert not stamps.usable(entry_of(100.0, shard=1), (), KEY, 10.0)


def test_shards_are_apart() -> None:
    stamps = new_stamps(2)
    stamps._note(0, [b"100", b"100"])
    stamps._note(1, [b"100", b"50", b"a", b"90"])
    assert not stamps.valid(0, 80.0, (), (), KEY)
    assert stamps.valid(1, 80.0, (), (), KEY)
    assert not stamps.valid(1, 80.0, (), ("a",), KEY)


def test_a_key_is_invalidated_by_itself() -> None:
    stamps = new_stamps()
    stamps._note(0, [b"100", b"50", b"\0" + KEY, b"90"])
    assert not stamps.valid(0, 80.0, (), (), KEY)
    assert stamps.valid(0, 90.0, (), (), KEY)
    assert stamps.valid(0, 80.0, (), (), b"o" * 32)


@pytest.mark.parametrize(
    ("glob", "tag", "matches"),
    [
        ("user:*", "user:7", True),
        ("user:*", "a user:7", False),
        ("*:eu:*", "shop:eu:7", True),
        ("user:?", "user:7", True),
        ("user:?", "user:77", False),
        ("user:?", "user:\u00e4", False),  # two bytes
        ("a.c", "abc", False),
        ("a[b]%c", "a[b]%c", True),
        ("*", "", True),
    ],
)
def test_globs(glob: str, tag: str, matches: bool) -> None:
    """The same as in the scripts, see test_look_up.py."""
    stamps = new_stamps()
    stamps._note(0, [b"100", b"50", b"\1" + glob.encode(), b"90"])
    assert stamps.valid(0, 80.0, (tag,), (), KEY) is not matches
    assert stamps.valid(0, 80.0, (), (tag,), KEY) is not matches
    assert stamps.valid(0, 90.0, (tag,), (), KEY)
    # The next change brings all globs there are.
    stamps._note(0, [b"110", b"50", b"other", b"110"])
    assert stamps.valid(0, 80.0, (tag,), (), KEY)
