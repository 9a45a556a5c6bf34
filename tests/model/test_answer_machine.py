"""Answer shards against their model: invariants 2, 3 and 9, whatever happens in whatever order.

Workers look up, lease, take over, renew, fill, give up, and die with what they know; zombies act on
rights they lost long ago; replies are lost, requests arrive twice or late; tags, keys and globs are
invalidated, leases expire, the shard loses its answers, its leases, its stamps, or all of it.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, cast

import pytest
import redis
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from askonce_queue import answer_scripts, names
from askonce_queue.answer_scripts import GLOB_MARK, KEY_MARK, Demand, Fill, Release
from askonce_queue.connections import connect_sync
from tests.model.effort import TIMEOUT, effort
from tests.model.model_answers import AnswerModel, Lease, Tries, tag_set
from tests.model.watchers import Watcher
from tests.model.wire import FATES, Fate, Wire
from tests.support.virtual_scripts import (
    ANY,
    HEADER,
    LEASE,
    TAG,
    TRIES,
    Told,
    VirtualShard,
    read_result,
)

pytestmark = TIMEOUT

KEYS = tuple(bytes([letter]) * 32 for letter in b"xy")
TAG_TEXTS = ("", "a", "b", "a\nb")
GLOBS = ("*", "a*", "*b", "?")
MOST_GLOBS = 2
"""Few, so that globs are given up."""
LEASE_MS = 10_000
GRACE_MS = 60_000
MINUTE_MS = 60_000
"""TTLs are of minutes: the server expires answers by its own clock, which no test moves."""
PAUSES_MS = (1, 500, 1_000, LEASE_MS, LEASE_MS + 1, 5 * MINUTE_MS, 90 * MINUTE_MS, -2_000)

keys = st.sampled_from(KEYS)
tag_texts = st.sampled_from(TAG_TEXTS)
DEMANDS = (
    ANY,
    Demand(),
    Demand(spare=True),
    Demand(cached_only=True),
    Demand(anew=True),
    Demand(anew=True, spare=True),
    Demand(max_age_ms=MINUTE_MS, spare=True),
    Demand(least_left_ms=2 * MINUTE_MS),
)
Asked = tuple[bytes, str, Demand]
asked_most = st.lists(st.tuples(keys, tag_texts, st.sampled_from(DEMANDS)), min_size=1, max_size=4)
picks = st.integers(0, 999)
"""Picks one of however many there are, so that what is drawn never depends on the server."""


class Flight(NamedTuple):
    """What a worker was told when it got the right to compute an answer; it never forgets."""

    digest: bytes
    token: bytes
    built: float
    moment: int
    attempt: int


class AnswerMachine(RuleBasedStateMachine):
    def __init__(self, client: redis.Redis) -> None:
        super().__init__()
        client.flushall()
        self.client = client
        self.shard = VirtualShard(client)
        self.model = AnswerModel(self.shard.now_ms)
        self.wire = Wire(self.shard.run)
        self.latest_ms = self.shard.now_ms
        self.earliest_ms = 0.0
        self.numbers = itertools.count(1)
        self.flights: list[Flight] = []
        self.busy: list[tuple[bytes, bytes]] = []
        self.stamp_of: dict[int, float] = {}
        self.attentive = Watcher(self.shard, self.model)
        self.watchers = [
            self.attentive,
            Watcher(self.shard, self.model),
            Watcher(self.shard, self.model, most_tags=1),
        ]

    def new_token(self) -> bytes:
        return next(self.numbers).to_bytes(16, "big")

    def pick(self, number: int) -> Flight:
        """One whose lease is still its own, most of the time, or any zombie; the newest first."""
        leases = self.model.leases
        alive = [
            f for f in self.flights if f.digest in leases and leases[f.digest].token == f.token
        ]
        among = alive if alive and number % 4 else self.flights
        return among[-1 - number // 4 % len(among)]

    # Workers

    @rule(digest=keys, tags=tag_texts)
    def compute(self, digest: bytes, tags: str) -> None:
        """All as it should be."""
        self.look_up_most([(digest, tags, ANY)], 1, Fate.FINE)
        if self.flights and self.flights[-1].digest == digest:
            self.fill([(1, tags)], 5 * MINUTE_MS, 0, Fate.FINE)

    @rule(asked=st.lists(st.tuples(keys, tag_texts), min_size=1, max_size=4), fate=FATES)
    def look_up(self, asked: list[tuple[bytes, str]], fate: Fate) -> None:
        self.look_up_most([(*one, ANY) for one in asked], len(asked), fate)

    @rule(asked=asked_most, most=st.integers(0, 2), fate=FATES)
    def look_up_most(self, asked: list[Asked], most: int, fate: Fate) -> None:
        token = self.new_token()
        raws: list[Sequence[bytes]] = []

        def read(raw: Sequence[bytes]) -> list[Told]:
            raws.append(raw)
            return self.read(raw)

        call = answer_scripts.look_up(
            TAG,
            token=token,
            lease_ms=LEASE_MS,
            max_new_leases=most,
            digests=[digest for digest, _, _ in asked],
            asker_tags=[tags for _, tags, _ in asked],
            demands={number: demand.pack() for number, (_, _, demand) in enumerate(asked)},
        )
        told = self.wire.send(
            call, lambda: self.model.look_up(token, LEASE_MS, most, asked), read, fate
        )
        for one in raws:
            self.note_stamps(asked, one)
        if told is None:
            return
        for (digest, _, _), raw, result in zip(asked, raws[-1][2:], told, strict=True):
            if result.kind in "LSX":
                lease = self.model.leases[digest]
                built = read_result(raw).built
                self.fly(Flight(digest, token, built, lease.moment, result.attempt))
            elif result.kind == "B":
                self.busy.append((digest, result.token))
            elif result.kind == "+":
                moment = self.model.answers[digest].moment
                self.remember(digest, HEADER.unpack_from(raw)[3], moment)

    def fly(self, flight: Flight) -> None:
        if flight not in self.flights:
            self.flights.append(flight)

    @precondition(lambda self: self.busy)
    @rule(number=picks, fate=FATES)
    def take_over(self, number: int, fate: Fate) -> None:
        token = self.new_token()
        digest, leader = self.busy[-1 - number % len(self.busy)]
        told_built: list[float] = []

        def read(raw: list[Any]) -> list[int]:
            told_built[:] = [float(one[0]) for one in raw if one]
            return [int(one[1]) if one else 0 for one in raw]

        seen = [(digest, leader)]
        call = answer_scripts.take_over(TAG, token=token, lease_ms=LEASE_MS, seen=seen)
        told = self.wire.send(call, lambda: self.model.take_over(token, LEASE_MS, seen), read, fate)
        if told and told[0]:
            moment = self.model.leases[digest].moment
            self.fly(Flight(digest, token, told_built[0], moment, told[0]))

    @precondition(lambda self: self.flights)
    @rule(numbers=st.lists(picks, min_size=1, max_size=3), fate=FATES)
    def renew(self, numbers: list[int], fate: Fate) -> None:
        held = [(flight.digest, flight.token) for flight in map(self.pick, numbers)]
        call = answer_scripts.renew(TAG, lease_ms=LEASE_MS, held=held)
        self.wire.send(call, lambda: self.model.renew(LEASE_MS, held), text, fate)

    @precondition(lambda self: self.flights)
    @rule(
        chosen=st.lists(st.tuples(picks, tag_texts), min_size=1, max_size=3),
        fresh_ms=st.sampled_from([MINUTE_MS * 5, MINUTE_MS * 10]),
        stale_ms=st.sampled_from([0, 0, MINUTE_MS]),
        fate=FATES,
    )
    def fill(self, chosen: list[tuple[int, str]], fresh_ms: int, stale_ms: int, fate: Fate) -> None:
        flights = [self.pick(number) for number, _ in chosen]
        fills = [
            Fill(one.digest, one.token, fresh_ms, fresh_ms + stale_ms, tags, b"by " + one.token)
            for one, (_, tags) in zip(flights, chosen, strict=True)
        ]
        told = self.wire.send(
            answer_scripts.fill(TAG, fills),
            lambda: self.model.fill(fills),
            lambda raw: text(raw[1]),
            fate,
        )
        for flight, letter in zip(flights, told or (), strict=False):
            if letter == "f":
                # What it was told of the right to compute it; an echo may have got it a newer one.
                self.remember(flight.digest, flight.built, flight.moment)

    def remember(self, digest: bytes, built: float, moment: int) -> None:
        """A worker has seen the answer that the store has now."""
        kept = self.model.answers[digest]
        ttl_ms = kept.fresh_until_ms - self.model.now_ms
        for watcher in self.watchers if ttl_ms > 0 else ():
            watcher.remember(digest, built, moment, kept.tags, ttl_ms)

    @precondition(lambda self: self.flights)
    @rule(
        number=picks,
        kind=st.sampled_from(["", "R", "U"]),
        remember_ms=st.sampled_from([1_000, 60_000]),
        fate=FATES,
    )
    def give_up(
        self, number: int, kind: Literal["", "R", "U"], remember_ms: int, fate: Fate
    ) -> None:
        flight = self.pick(number)
        releases = [
            Release(flight.digest, flight.token, kind, remember_ms, b"why" if kind == "R" else b"")
        ]
        call = answer_scripts.release(TAG, releases)
        self.wire.send(call, lambda: self.model.release(releases), text, fate)

    @precondition(lambda self: self.flights)
    @rule(number=picks, remember_ms=st.sampled_from([1_000, 60_000]), fate=FATES)
    def attempt_again(self, number: int, remember_ms: int, fate: Fate) -> None:
        flight = self.pick(number)
        digest, token, attempt = flight.digest, flight.token, flight.attempt
        call = answer_scripts.note_attempt(
            TAG, digest=digest, token=token, attempt=attempt, remember_ms=remember_ms
        )
        told = self.wire.send(
            call, lambda: self.model.note_attempt(digest, token, attempt, remember_ms), int, fate
        )
        if told:
            self.flights[self.flights.index(flight)] = flight._replace(attempt=told)

    @rule(fate=FATES)
    def sweep_leases(self, fate: Fate) -> None:
        call = answer_scripts.sweep_leases(TAG, cursor=0, count=500, grace_ms=GRACE_MS)
        self.wire.send(call, lambda: self.model.sweep_leases(GRACE_MS), second, fate)

    @rule(fate=FATES)
    def sweep_tries(self, fate: Fate) -> None:
        call = answer_scripts.sweep_tries(TAG, cursor=0, count=500, grace_ms=0)
        self.wire.send(call, lambda: self.model.sweep_tries(0), second, fate)

    @rule(count=st.sampled_from([1, 500]), most=st.sampled_from([1, 500]), fate=FATES)
    def sweep_tags(self, count: int, most: int, fate: Fate) -> None:
        call = answer_scripts.sweep_tags(TAG, count=count, most=most)
        self.wire.send(call, lambda: self.model.sweep_tags(count, most, MOST_GLOBS), second, fate)

    @rule(number=picks, heard=st.booleans())
    def watch(self, number: int, heard: bool) -> None:
        self.watchers[number % len(self.watchers)].watch(heard=heard)

    # The world

    @rule(tags=tag_texts, everything=st.booleans(), fate=FATES)
    def invalidate(self, tags: str, everything: bool, fate: Fate) -> None:
        self.invalidate_members([tag.encode() for tag in sorted(tag_set(tags))], everything, fate)

    @rule(tags=tag_texts, some=st.lists(keys, min_size=1, unique=True), fate=FATES)
    def invalidate_keys(self, tags: str, some: list[bytes], fate: Fate) -> None:
        members = [tag.encode() for tag in sorted(tag_set(tags))]
        self.invalidate_members([*members, *(KEY_MARK + key for key in some)], False, fate)

    @rule(glob=st.sampled_from(GLOBS), fate=FATES)
    def invalidate_glob(self, glob: str, fate: Fate) -> None:
        self.invalidate_members([GLOB_MARK + glob.encode()], False, fate)

    def invalidate_members(self, some: list[bytes], everything: bool, fate: Fate) -> None:
        call = answer_scripts.invalidate(TAG, everything=everything, tags=some)
        self.wire.send(
            call,
            lambda: self.model.invalidate(some, everything=everything, most_globs=MOST_GLOBS),
            lambda _: None,
            fate,
        )

    @precondition(lambda self: self.wire.echoes)
    @rule(number=picks)
    def echo_arrives(self, number: int) -> None:
        self.wire.execute(self.wire.echoes.pop(number % len(self.wire.echoes)))

    @rule(ms=st.sampled_from(PAUSES_MS))
    def pass_time(self, ms: int) -> None:
        ms = max(ms, int(self.earliest_ms - self.shard.now_ms))
        self.shard.advance(ms)
        self.latest_ms = max(self.latest_ms, self.shard.now_ms)
        self.model.now_ms = self.shard.now_ms
        for watcher in self.watchers:
            watcher.pass_time(max(0, ms))

    @rule(digest=keys)
    def evict(self, digest: bytes) -> None:
        self.client.delete(names.answer_prefix(TAG) + digest)
        self.model.answers.pop(digest, None)

    @rule(what=st.sampled_from(["answers", "leases", "stamps", "all"]))
    def lose(self, what: str) -> None:
        """A restart takes a moment. Who has lost everything must not have an earlier clock, too."""
        self.pass_time(int(self.latest_ms - self.shard.now_ms) + 1)
        if what in {"stamps", "all"}:
            self.earliest_ms = self.shard.now_ms
        if what in {"answers", "all"}:
            self.client.delete(*[names.answer_prefix(TAG) + digest for digest in KEYS])
            self.model.answers.clear()
        if what in {"leases", "all"}:
            self.client.delete(names.leases(TAG), names.tries(TAG))
            self.model.leases.clear()
            self.model.tries.clear()
        if what in {"stamps", "all"}:
            self.client.delete(names.stamps(TAG), names.last(TAG))
            self.model.lose_stamps()

    # What holds after every step

    @invariant()
    def all_is_as_it_should_be(self) -> None:
        self.check_leases()
        if self.model.has_stamps:  # looking makes them
            self.check_what_is_served()
            self.attentive.watch(heard=True)
        for watcher in self.watchers:
            watcher.check(TAG_TEXTS)

    def check_leases(self) -> None:
        leases = self.leases()
        assert leases.keys() == self.model.leases.keys()
        for digest, (lease, built) in leases.items():
            expected = self.model.leases[digest]
            assert lease == expected._replace(moment=-1)
            self.note_stamp(expected.moment, built)
        assert self.tries() == self.model.tries

    def check_what_is_served(self) -> None:
        """To every asker, at any moment. Looking with no room for a lease changes nothing."""
        asked = [(digest, tags, ANY) for digest in KEYS for tags in TAG_TEXTS]
        token = self.new_token()
        call = answer_scripts.look_up(
            TAG,
            token=token,
            lease_ms=LEASE_MS,
            max_new_leases=0,
            digests=[digest for digest, _, _ in asked],
            asker_tags=[tags for _, tags, _ in asked],
            demands=dict.fromkeys(range(len(asked)), ANY.pack()),
        )
        told = self.read(self.shard.run(call))
        assert told == self.model.look_up(token, LEASE_MS, 0, asked)

    # Reading the server

    def read(self, raw: Sequence[bytes]) -> list[Told]:
        """The results of a look-up without their stamps, which the model does not know."""
        assert float(raw[0]) == self.shard.now_ms // 1
        results = [read_result(one) for one in raw[2:]]
        return [
            told._replace(built=0.0, entry=told.body if told.entry else b"") for told in results
        ]

    def note_stamps(self, asked: Sequence[Asked], raw: Sequence[bytes]) -> None:
        """An entry carries the stamp of the moment when the right to compute it was given."""
        for (digest, _, _), one in zip(asked, raw[2:], strict=True):
            told, kept = read_result(one), self.model.answers.get(digest)
            if told.entry and kept:
                self.note_stamp(kept.moment, HEADER.unpack_from(told.entry)[3])

    def note_stamp(self, moment: int, stamp: float) -> None:
        assert self.stamp_of.setdefault(moment, stamp) == stamp

    def leases(self) -> dict[bytes, tuple[Lease, float]]:
        found: dict[bytes, tuple[Lease, float]] = {}
        rows = cast("dict[bytes, bytes]", self.client.hgetall(names.leases(TAG).decode()))
        for digest, data in rows.items():
            token, deadline_ms, built, attempt = LEASE.unpack_from(data)
            taken_over = data[LEASE.size :] == b"\1"
            found[digest] = (Lease(token, deadline_ms, -1, attempt, taken_over), built)
        return found

    def tries(self) -> dict[bytes, Tries]:
        rows = cast("dict[bytes, bytes]", self.client.hgetall(names.tries(TAG).decode()))
        found: dict[bytes, Tries] = {}
        for digest, data in rows.items():
            kind, attempt, until_ms = TRIES.unpack_from(data)
            found[digest] = Tries(kind.decode(), attempt, until_ms, data[TRIES.size :])
        return found


def text(raw: bytes) -> str:
    return raw.decode()


def second(raw: Sequence[bytes]) -> int:
    """What a sweep dropped."""
    return int(raw[1])


@pytest.fixture
def client(store_url: str) -> Iterator[redis.Redis]:
    client = connect_sync(store_url, role="commands")
    yield client
    client.close()


def test_an_answer_shard_does_what_its_model_does(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_scripts, "MOST_GLOBS", MOST_GLOBS)

    class Machine(AnswerMachine):
        def __init__(self) -> None:
            super().__init__(client)

    run_state_machine_as_test(Machine, settings=effort(examples=200, steps=50))
