"""`look_up.lua` and the scripts around it, on the real server and a virtual clock.

Every result of a look-up, who may lease what, and the rule of validity.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager

import pytest
import redis
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.exceptions import OutOfMemoryError

from askonce_queue import Client, Job, answer_scripts, names
from askonce_queue.answer_scripts import GLOB_MARK, KEY_MARK, Release
from askonce_queue.connections import connect_sync
from askonce_queue.scripts import Call
from askonce_queue.store import Store
from askonce_worker.cache.globs import MOST_STARS
from askonce_worker.cache.stamps import Stamps
from askonce_worker.config import WorkerConfig
from askonce_worker.pool.worker import Worker
from tests.support.resolving import (
    ShiftedClock,
    StepModel,
    Waiter,
    all_keys,
    ask,
    assert_at_rest,
    make_task,
    resolver_on,
)
from tests.support.virtual_scripts import HEADER, TAG, Told, VirtualShard
from tests.support.waiting import eventually

_numbers = itertools.count(1)
X, Y, Z = (bytes([letter]) * 32 for letter in b"xyz")
LEASE_MS = 10_000


def new_token() -> bytes:
    return next(_numbers).to_bytes(16, "big")


@pytest.fixture
def shard(store_url: str) -> Iterator[VirtualShard]:
    client = connect_sync(store_url, role="commands")
    client.flushall()
    try:
        yield VirtualShard(client)
    finally:
        client.close()


def fill_new(shard: VirtualShard, digest: bytes, body: bytes = b"body", *, tags: str = "") -> float:
    """Lease and fill; return the stamp of the entry."""
    token = new_token()
    told = shard.look_up_one(digest, token=token, tags=tags)
    assert told.kind == "L"
    assert shard.fill(digest, token, body, tags=tags) == "f"
    return told.built


# --- each result -----------------------------------------------------------------------------


def test_a_new_question_is_leased(shard: VirtualShard) -> None:
    token = new_token()
    told = shard.look_up_one(X, token=token)
    now_us = shard.now_ms * 1000
    assert told == Told("L", built=now_us, attempt=1)
    assert shard.lease(X) == (token, shard.now_ms + LEASE_MS, now_us, 1)


def test_a_hit(shard: VirtualShard) -> None:
    shard.fill(X, b"", b"")  # nothing: it has no lease
    built = fill_new(shard, X, b"the answer", tags="a\nb")
    created = shard.now_ms
    shard.advance(5_000)
    told = shard.look_up_one(X, token=new_token())
    assert (told.kind, told.body) == ("+", b"the answer")
    header = HEADER.unpack_from(told.entry)
    assert header == (1, 0, created, built, created + 60_000, created + 60_000, 3)
    assert told.entry[36:39] == b"a\nb"
    assert shard.lease(X) is None


def test_a_leader_is_waited_for(shard: VirtualShard) -> None:
    leader = new_token()
    shard.look_up_one(X, token=leader)
    shard.advance(LEASE_MS)
    assert shard.look_up_one(X, token=new_token()) == Told("B", token=leader)


def test_without_slots_nothing_is_leased(shard: VirtualShard) -> None:
    assert shard.look_up(X, token=new_token(), max_new_leases=0) == [Told("F")]
    assert shard.lease(X) is None


def test_no_more_leases_than_asked_for(shard: VirtualShard) -> None:
    fill_new(shard, Z)
    leader = new_token()
    shard.look_up_one(Y, token=leader)
    digests = [bytes([number]) * 32 for number in range(10)]
    told = shard.look_up(Z, *digests, Y, token=new_token(), max_new_leases=4)
    assert [one.kind for one in told] == ["+", *"LLLL", *"FFFFFF", "B"]
    assert shard.client.hlen(names.leases(TAG).decode()) == 5


def test_a_stale_answer_with_the_right_to_refresh_it(shard: VirtualShard) -> None:
    token = new_token()
    shard.look_up_one(X, token=token)
    shard.fill(X, token, b"old", fresh_ms=1_000, keep_ms=60_000)
    shard.advance(999)
    assert shard.look_up_one(X, token=new_token()).kind == "+"
    assert shard.lease(X) is None
    shard.advance(1)
    refresher = new_token()
    told = shard.look_up_one(X, token=refresher)
    assert (told.kind, told.attempt, told.body) == ("S", 1, b"old")
    lease = shard.lease(X)
    assert lease is not None
    assert lease[0] == refresher
    # The others are served at once: nobody waits for a refresh.
    told = shard.look_up_one(X, token=new_token())
    assert (told.kind, told.body) == ("+", b"old")
    assert shard.fill(X, refresher, b"new") == "f"
    assert shard.look_up_one(X, token=new_token()).body == b"new"


@pytest.mark.parametrize("hindrance", ["no slots", "rejected"])
def test_a_stale_answer_is_served_whatever_hinders_its_refresh(
    shard: VirtualShard, hindrance: str
) -> None:
    token = new_token()
    shard.look_up_one(X, token=token)
    shard.fill(X, token, b"old", fresh_ms=1_000, keep_ms=600_000)
    shard.advance(1_000)
    most = 0 if hindrance == "no slots" else 1
    if hindrance == "rejected":
        token = new_token()
        shard.look_up_one(X, token=token)
        shard.release(Release(X, token, "R", 60_000, b"{}"))
    (told,) = shard.look_up(X, token=new_token(), max_new_leases=most)
    assert (told.kind, told.body) == ("+", b"old")


def test_past_its_time_an_answer_is_not_served(shard: VirtualShard) -> None:
    fill_new(shard, X)
    shard.advance(60_000)
    assert shard.client.exists(names.answer_prefix(TAG) + X)  # whatever the server's own clock says
    assert shard.look_up_one(X, token=new_token()).kind == "L"


@pytest.mark.parametrize(("kind", "error"), [("R", b'{"code":"refused"}'), ("U", b"")])
def test_what_was_remembered_of_a_question(shard: VirtualShard, kind: str, error: bytes) -> None:
    token = new_token()
    shard.look_up_one(X, token=token)
    remembered = Release(X, token, "R" if kind == "R" else "U", 1_000, error)
    assert shard.release(remembered) == "o"
    assert shard.lease(X) is None
    shard.advance(1_000)
    assert shard.look_up_one(X, token=new_token()) == Told(kind, error=error)
    assert shard.lease(X) is None
    shard.advance(1)
    told = shard.look_up_one(X, token=new_token())
    assert (told.kind, told.attempt) == ("L", 1)


def test_results_come_in_the_order_of_the_keys(shard: VirtualShard) -> None:
    """Over a thousand keys, so that every chunk of every command is crossed."""
    digests = [number.to_bytes(4, "big") * 8 for number in range(1, 2501)]
    for number in range(0, 2500, 10):
        fill_new(shard, digests[number], str(number).encode())
    leader = new_token()
    busy = digests[1::10]
    assert {told.kind for told in shard.look_up(*busy, token=leader, max_new_leases=250)} == {"L"}
    told = shard.look_up(*digests, token=new_token(), max_new_leases=1500)
    assert "".join(one.kind for one in told[:1880]) == "+BLLLLLLLL" * 187 + "+BLLLLFFFF"
    assert {one.kind for one in told if one.kind not in "+B"} == {"L", "F"}
    assert [one.body for one in told[::10]] == [str(n).encode() for n in range(0, 2500, 10)]
    assert {one.token for one in told[1::10]} == {leader}


# --- tokens, dead leaders, attempts ----------------------------------------------------------


def test_finding_your_own_token_means_that_you_own_it(shard: VirtualShard) -> None:
    """The reply was lost and the command sent again: the same lease, counted once."""
    token = new_token()
    first = shard.look_up(X, Y, token=token, max_new_leases=2)
    shard.advance(50)
    assert shard.look_up(X, Y, token=token, max_new_leases=0) == first
    lease = shard.lease(X)
    assert lease is not None
    assert lease[1] == shard.now_ms - 50 + LEASE_MS  # not longer than its holder believes


def test_your_own_token_is_found_beside_a_remembered_failure(shard: VirtualShard) -> None:
    token = new_token()
    shard.look_up_one(X, token=token)
    note = note_attempt(token, 1)
    assert shard.run(note) == 2
    told = shard.look_up_one(X, token=token)
    assert (told.kind, told.attempt) == ("L", 2)


def test_a_key_twice_in_one_look_up_is_leased_once(shard: VirtualShard) -> None:
    token = new_token()
    told = shard.look_up(X, Y, X, token=token, max_new_leases=2)
    assert [one.kind for one in told] == ["L", "L", "B"]
    assert told[2].token == token


@pytest.mark.parametrize("junk", [b"", b"\x01", b"L" * 60, b"\x02" + b"\x7e" * 60, b"B" * 35])
def test_what_is_no_entry_is_absent(shard: VirtualShard, junk: bytes) -> None:
    """Bytes of anyone: they stop nobody, and are replaced."""
    fill_new(shard, Y)
    shard.client.set(names.answer_prefix(TAG) + X, junk)
    token = new_token()
    assert [told.kind for told in shard.look_up(X, Y, Z, token=token)] == ["L", "+", "L"]
    assert shard.fill(X, token) == "f"
    assert shard.look_up_one(X, token=new_token()).kind == "+"


def test_a_dead_leader_is_replaced_and_counted(shard: VirtualShard) -> None:
    dead = new_token()
    shard.look_up_one(X, token=dead)
    shard.advance(LEASE_MS + 1)
    told = shard.look_up_one(X, token=new_token())
    assert (told.kind, told.attempt, told.taken_over) == ("L", 2, True)
    assert shard.fill(X, dead) == "x"
    assert shard.entry(X) is None


def test_a_takeover_is_told_again_when_its_reply_was_lost(shard: VirtualShard) -> None:
    """Else the call would count as a second fill of the same question."""
    shard.look_up_one(X, token=new_token())
    shard.advance(LEASE_MS + 1)
    token = new_token()
    first, again = shard.look_up_one(X, token=token), shard.look_up_one(X, token=token)
    assert first == again
    assert again.taken_over


def note_attempt(
    token: bytes, failed: int, *, digest: bytes = X, remember_ms: int = 60_000
) -> Call:
    return answer_scripts.note_attempt(
        TAG, digest=digest, token=token, attempt=failed, remember_ms=remember_ms
    )


def test_each_dead_leader_counts_as_an_attempt(shard: VirtualShard) -> None:
    for attempt in range(1, 300):
        told = shard.look_up(X, token=new_token())
        assert [(one.kind, one.attempt) for one in told] == [("L", min(attempt, 255))]
        shard.advance(LEASE_MS + 1)


def test_attempts_outlive_a_lease_that_was_given_back(shard: VirtualShard) -> None:
    token = new_token()
    shard.look_up_one(X, token=token)
    for failed in (1, 2):
        note = note_attempt(token, failed)
        assert shard.run(note) == failed + 1
        assert shard.run(note) == failed + 1  # sent again: its reply was lost
    assert shard.release(Release(X, token)) == "o"
    told = shard.look_up_one(X, token=new_token())
    assert (told.kind, told.attempt, told.taken_over) == ("L", 3, False)
    note = note_attempt(token, 1)
    assert shard.run(note) == 0  # no longer mine


def test_attempts_are_forgotten_in_time_and_by_success(shard: VirtualShard) -> None:
    for kind in ("time", "success"):
        digest = kind.encode().ljust(32)
        token = new_token()
        shard.look_up_one(digest, token=token)
        note = note_attempt(token, 1, digest=digest, remember_ms=5_000)
        shard.run(note)
        if kind == "time":
            shard.release(Release(digest, token))
            shard.advance(5_001)
        else:
            shard.fill(digest, token)
            assert shard.client.hlen(names.tries(TAG).decode()) == 1  # that of "time"
            shard.client.delete(names.answer_prefix(TAG) + digest)
        assert shard.look_up_one(digest, token=new_token()).attempt == 1


def test_a_lease_is_taken_over_by_compare_and_set(shard: VirtualShard) -> None:
    leader, taker, late = new_token(), new_token(), new_token()
    shard.look_up_one(X, token=leader)
    inv = shard.invalidate("some tag")
    shard.advance(1_000)

    def take(token: bytes, seen: bytes, *digests: bytes) -> list[object]:
        pairs = [(digest, seen) for digest in digests]
        call = answer_scripts.take_over(TAG, token=token, lease_ms=LEASE_MS, seen=pairs)
        return list(shard.run(call))

    won = [b"%.0f" % inv, 2]
    assert take(taker, leader, X, Y) == [won, 0]
    assert shard.lease(X) == (taker, shard.now_ms + LEASE_MS, inv, 2)
    assert take(taker, leader, X) == [won]  # sent again
    assert take(late, leader, X) == [0]  # it has moved on
    assert shard.fill(X, leader) == "x"
    assert shard.run(answer_scripts.renew(TAG, lease_ms=LEASE_MS, held=[(X, leader)])) == b"l"
    assert shard.release(Release(X, leader, "R", 1_000, b"{}")) == "x"
    assert shard.client.hlen(names.tries(TAG).decode()) == 0
    assert shard.fill(X, taker) == "f"
    assert take(late, taker, X) == [0]


def test_renewal_moves_the_deadline_and_nothing_else(shard: VirtualShard) -> None:
    mine, gone = new_token(), new_token()
    shard.look_up_one(X, token=mine)
    shard.look_up_one(Y, token=gone)
    before = shard.lease(X)
    assert before is not None
    shard.release(Release(Y, gone))
    shard.advance(LEASE_MS + 5_000)  # late, and nobody took it
    renew = answer_scripts.renew(TAG, lease_ms=LEASE_MS, held=[(X, mine), (Y, gone)])
    assert shard.run(renew) == b"rl"
    assert shard.lease(X) == (mine, shard.now_ms + LEASE_MS, *before[2:])


# --- validity --------------------------------------------------------------------------------


def shard_inv(shard: VirtualShard) -> float:
    stamp = shard.client.hget(names.stamps(TAG).decode(), "inv")
    assert isinstance(stamp, bytes)
    return float(stamp)


@pytest.mark.parametrize("asker", ["", "mine", "a"])
def test_what_was_built_before_everything_was_invalidated(shard: VirtualShard, asker: str) -> None:
    fill_new(shard, X, tags="a")
    shard.advance(10)
    shard.invalidate(everything=True)
    assert shard.look_up_one(X, token=new_token(), tags=asker).kind == "L"


def test_a_tag_of_the_entry(shard: VirtualShard) -> None:
    fill_new(shard, X, tags="a\nb")
    fill_new(shard, Y, tags="ab")
    shard.invalidate("b")
    assert [told.kind for told in shard.look_up(X, Y, token=new_token())] == ["L", "+"]


def test_a_tag_of_the_asker(shard: VirtualShard) -> None:
    fill_new(shard, X, tags="a")
    shard.invalidate("mine")
    assert shard.look_up_one(X, token=new_token(), tags="yours").kind == "+"
    token = new_token()
    assert shard.look_up_one(X, token=token, tags="yours\nmine").kind == "L"
    assert shard.fill(X, token, tags="a\nyours\nmine") == "f"
    assert shard.look_up_one(X, token=new_token(), tags="mine").kind == "+"


def test_the_tags_of_each_asker_are_its_own(shard: VirtualShard) -> None:
    for digest in (X, Y, Z):
        fill_new(shard, digest)
    shard.invalidate("mine")
    told = shard.look_up(X, Y, Z, token=new_token(), tags=["", "mine", "yours"])
    assert [one.kind for one in told] == ["+", "L", "+"]


def test_a_leader_whose_answer_is_invalid_for_the_asker_is_none(shard: VirtualShard) -> None:
    old, new = new_token(), new_token()
    shard.look_up_one(X, token=old)
    shard.advance(1)
    inv = shard.invalidate("mine")
    assert shard.look_up_one(X, token=new_token(), tags="yours") == Told("B", token=old)
    told = shard.look_up_one(X, token=new, tags="mine")
    assert told == Told("L", built=inv, attempt=1)
    assert shard.fill(X, old, tags="a") == "x"
    assert shard.fill(X, new, tags="mine") == "f"


def test_what_was_invalidated_while_it_was_computed_is_not_kept(shard: VirtualShard) -> None:
    for digest, tag, everything in ((X, "a", False), (Y, "unknown", True), (Z, "other", False)):
        token = new_token()
        shard.look_up_one(digest, token=token)
        shard.invalidate(tag, everything=everything)
        letter = shard.fill(digest, token, tags="a")
        assert letter == ("f" if digest is Z else "i")
        assert (shard.entry(digest) is None) == (letter == "i")
        assert shard.lease(digest) is None  # for the next one


def test_two_invalidations_at_one_moment_are_two(shard: VirtualShard) -> None:
    first = shard.invalidate("a")
    token = new_token()
    assert shard.look_up_one(X, token=token).built == first
    second = shard.invalidate("a")
    assert second == first + 1
    assert shard.fill(X, token, tags="a") == "i"


def test_the_servers_clock_may_go_back(shard: VirtualShard) -> None:
    first = shard.invalidate("a")
    shard.advance(-3_600_000)
    token = new_token()
    assert shard.look_up_one(X, token=token).built == first
    assert shard.invalidate("a") == first + 1
    assert shard.fill(X, token, tags="a") == "i"


def test_after_the_loss_of_its_stamps_nothing_older_is_served(shard: VirtualShard) -> None:
    fill_new(shard, X)
    token = new_token()
    shard.look_up_one(Y, token=token)
    shard.client.delete(names.stamps(TAG).decode(), names.last(TAG).decode())
    shard.advance(1)
    assert shard.fill(Y, token) == "x"
    assert [told.kind for told in shard.look_up(X, Y, token=new_token())] == ["L", "L"]
    assert shard_inv(shard) == shard.now_ms * 1000


def test_tags_are_pruned_when_nothing_older_than_them_can_live(shard: VirtualShard) -> None:
    fill_new(shard, X, tags="a")
    shard.invalidate("a", "b")
    sweep = answer_scripts.sweep_tags(TAG, count=10, most=100)
    shard.advance(3_600_000 + 59_000)  # the longest TTL so far is a minute
    shard.run(sweep)
    assert shard.client.zcard(names.last(TAG).decode()) == 2
    assert shard.look_up_one(X, token=new_token()).kind == "L"
    shard.advance(2_000)
    shard.run(sweep)
    assert shard.client.zcard(names.last(TAG).decode()) == 0


TAGS = st.lists(st.sampled_from(["a", "b", "aab", "*b"]), max_size=2, unique=True)
GLOBS = st.text("ab*?", min_size=1, max_size=5)
NUMBERS = st.lists(st.sampled_from("0123"), min_size=1, max_size=1)
"""Of the latest answers: which of them is invalidated."""
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("invalidate"), TAGS),
        st.tuples(st.just("globs"), st.lists(GLOBS, min_size=1, max_size=2)),
        st.tuples(st.just("key"), NUMBERS),
        st.tuples(st.just("everything"), st.just([])),
        st.tuples(st.just("build"), TAGS),
        st.tuples(st.just("lease"), TAGS),
        st.tuples(st.just("pass"), st.just([])),
        st.tuples(st.just("watch"), st.just([])),
    ),
    max_size=14,
)


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS, askers=st.lists(TAGS, min_size=1, max_size=3))
def test_scripts_and_stamps_agree_with_what_happened(
    shard: VirtualShard, steps: list[tuple[str, list[str]]], askers: list[list[str]]
) -> None:
    """Valid: built after the last invalidation of all that touches it.

    That is everything, its key, a tag of it or of its asker, a glob that matches such a tag.
    """
    shard.client.flushall()
    shard.advance(1_000)
    stamps = Stamps(Store("redis://127.0.0.1:1/0"), ShiftedClock(), 1.0)
    happened: list[tuple[str, list[bytes]]] = []
    built: dict[bytes, tuple[int, list[str], float]] = {}
    leased: list[tuple[bytes, int, list[str], bytes]] = []
    for kind, tags in steps:
        digest, token, text = new_token() * 2, new_token(), "\n".join(tags)
        if kind == "pass":
            shard.advance(1)
        elif kind == "watch":
            _watch(shard, stamps)
        elif kind == "build":
            built[digest] = (len(happened), tags, fill_new(shard, digest, tags=text))
        elif kind == "lease":
            shard.look_up_one(digest, token=token)
            leased.append((digest, len(happened), tags, token))
        else:
            members = members_of(kind, tags, [*built, *[one[0] for one in leased]])
            shard.invalidate(*members, everything=kind == "everything")
            happened.append((kind, members))

    def valid(since: int, tags: list[str], digest: bytes) -> bool:
        return not any(touched(*one, digest, tags) for one in happened[since:])

    for digest, since, tags, token in leased:
        letter = shard.fill(digest, token, tags="\n".join(tags))
        assert letter == ("f" if valid(since, tags, digest) else "i")
    _watch(shard, stamps)
    for asker in askers:
        for digest, (since, tags, stamp) in built.items():
            (told,) = shard.look_up(
                digest, token=new_token(), tags="\n".join(asker), max_new_leases=0
            )
            expected = valid(since, tags + asker, digest)
            assert told.kind == ("+" if expected else "F")
            assert stamps.valid(0, stamp, tags, asker, digest) == expected


def test_no_glob_holds_up_the_server(shard: VirtualShard) -> None:
    """One Lua pattern with `.*` for each star would be busy for longer than anybody lives."""
    fill_new(shard, X, tags="\n".join("a" * 190 + str(number) for number in range(16)))
    globs = [f"{'*a' * (MOST_STARS - 1)}*b{number}" for number in range(answer_scripts.MOST_GLOBS)]
    shard.invalidate(*[GLOB_MARK + glob.encode() for glob in globs])
    since = time.monotonic()
    assert shard.look_up_one(X, token=new_token()).kind == "+"
    assert time.monotonic() - since < 2.0


def members_of(kind: str, names: list[str], keys: list[bytes]) -> list[bytes]:
    """What the script is told to invalidate."""
    if kind == "key":
        return [KEY_MARK + keys[-1 - int(name) % len(keys)] for name in names if keys]
    mark = GLOB_MARK if kind == "globs" else b""
    return [mark + name.encode() for name in names]


def touched(kind: str, members: list[bytes], digest: bytes, tags: list[str]) -> bool:
    """Whether an invalidation takes an answer."""
    return kind == "everything" or any(
        member == KEY_MARK + digest
        or member.decode(errors="replace") in tags
        or (member[:1] == GLOB_MARK and any(matches(member[1:], tag) for tag in tags))
        for member in members
    )


def matches(glob: bytes, tag: str) -> bool:
    """What a glob means, by trying everything."""
    if not glob:
        return not tag
    rest = glob[1:]
    if glob[:1] == b"*":
        return any(matches(rest, tag[start:]) for start in range(len(tag) + 1))
    return bool(tag) and glob[:1] in (b"?", tag[:1].encode()) and matches(rest, tag[1:])


def _watch(shard: VirtualShard, stamps: Stamps) -> None:
    inv = stamps._inv[0]
    seen = 0 if inv == float("inf") else int(inv)
    stamps._note(0, shard.run(answer_scripts.read_stamps(TAG, seen_inv=seen, most_tags=100)))


# --- memory pressure -------------------------------------------------------------------------


@asynccontextmanager
async def out_of_memory(store: redis.asyncio.Redis) -> AsyncGenerator[None]:
    """A server that has reached its limit, with nothing left to evict."""
    before = str((await store.config_get("maxmemory"))["maxmemory"])
    await store.config_set("maxmemory", 1)
    try:
        with pytest.raises(OutOfMemoryError):
            await store.set("a:{0}:no room", "", ex=1)
        yield
    finally:
        await store.config_set("maxmemory", before)


async def test_without_memory_questions_are_answered_and_not_kept(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    model = StepModel()
    task = make_task(model)
    async with resolver_on(store_url, shards=2) as resolver:
        async with out_of_memory(store):
            waiters = [Waiter(task, f"text {number}") for number in range(10)]
            resolver.resolve(waiters)
            for waiter in waiters:
                assert (await waiter.outcome()).label == "a"
            assert resolver.counters.total("flights_unkept") == 10
            await assert_at_rest(store, resolver, task, shards=2)
        assert not await all_keys(store, "a:*")
        assert (await ask(resolver, task, "text 1")).source == "model"
        assert (await ask(resolver, task, "text 1")).source == "memory"


async def test_without_memory_jobs_are_settled(store: redis.asyncio.Redis, store_url: str) -> None:
    task = make_task(StepModel())
    worker = Worker(store_url, {"t": task}, WorkerConfig())
    async with worker.running(), Client(store_url) as client:
        assert (await client.ask(Job(task="t", text="before"))).source == "model"
        task.backend.in_flight = task.backend.slots  # hold the next one
        reply = asyncio.create_task(client.ask(Job(task="t", text="under pressure")))
        await eventually(lambda: len(worker.resolver.flights) == 1)
        async with out_of_memory(store):
            for _ in range(task.backend.slots):
                worker.resolver._room.slot_freed(task.backend)
            told = await reply
            assert told.error is None
            assert (told.source, told.answer and told.answer.label) == ("model", "a")
            assert await store.xlen(names.jobs("0", "default", "interactive").decode()) == 0


async def test_without_memory_a_worker_can_be_restarted(
    store: redis.asyncio.Redis, store_url: str
) -> None:
    task = make_task(StepModel())
    async with Worker(store_url, {"t": task}, WorkerConfig()).running():
        pass
    async with out_of_memory(store), Worker(store_url, {"t": task}, WorkerConfig()).running():
        pass
