"""Which server holds which shard, by what servers and sentinels say of it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from askonce_queue import names
from askonce_queue.shards import SLOTS, shard_tags, slot_of
from askonce_queue.store import whole
from askonce_queue.store_config import Address, StoreConfig
from askonce_queue.topology import (
    SINGLE,
    ClusterMap,
    NotKnown,
    OneServer,
    SentinelPrimary,
    hash_tag,
    topology_of,
)

ASKED: Address = ("10.0.0.9", 7009)
A, B, C = ("10.0.0.1", 7001), ("10.0.0.2", 7002), ("10.0.0.3", 7003)
TAGS = shard_tags(6)


def row(first: int, last: int, address: tuple[str | None, int], *rest: Any) -> list[Any]:
    """One row of CLUSTER SLOTS, as RESP2 gives it."""
    host = None if address[0] is None else address[0].encode()
    return [first, last, [host, address[1], b"node id", []], *rest]


def thirds(a: Address, b: Address, c: Address) -> list[Any]:
    replica: list[Any] = [b"10.0.0.7", 7007, b"replica id", []]
    return [row(0, 5460, a, replica), row(5461, 10922, b, replica), row(10923, SLOTS - 1, c)]


@pytest.fixture
def cluster() -> ClusterMap:
    known = ClusterMap([ASKED])
    known.learn(thirds(A, B, C), ASKED)
    return known


class TestCluster:
    def test_nothing_is_known_before_it_is_asked(self) -> None:
        unknown = ClusterMap([ASKED, A])
        assert unknown.question == ("CLUSTER", "SLOTS")
        assert unknown.seeds == [ASKED, A]
        assert unknown.primaries == []
        assert unknown.address(TAGS[0]) is None

    def test_each_shard_is_where_its_slot_is(self, cluster: ClusterMap) -> None:
        assert [cluster.address(tag) for tag in TAGS] == [A, A, B, B, C, C]
        assert cluster.primaries == [A, B, C]
        assert cluster.address(cluster.group(names.META)) in (A, B, C)

    def test_a_shard_is_a_group(self, cluster: ClusterMap) -> None:
        assert cluster.group(names.jobs("17", "default", "bulk")) == "17"
        assert cluster.group(names.answer_prefix("17") + b"\xff}{\x00") == "17"
        assert cluster.group(names.META) == "askonce:meta"

    def test_rows_may_come_in_any_order(self) -> None:
        known = ClusterMap([])
        known.learn([*reversed(thirds(A, B, C))], ASKED)
        assert [known.address(tag) for tag in TAGS] == [A, A, B, B, C, C]

    @pytest.mark.parametrize("host", ["", None])
    def test_a_row_without_a_host_means_the_host_that_was_asked(self, host: str | None) -> None:
        known = ClusterMap([])
        known.learn([row(0, SLOTS - 1, (host, 7001))], ASKED)
        assert known.address(TAGS[0]) == (ASKED[0], 7001)

    def test_a_host_that_is_not_announced_is_taken_from_beside_it(self) -> None:
        """`cluster-preferred-endpoint-type hostname`, on a node that has none."""
        known = ClusterMap([])
        known.learn([[0, SLOTS - 1, [b"?", 7001, b"id", [b"ip", b"10.0.0.1"]]]], ASKED)
        assert known.address(TAGS[0]) == A
        known.learn([[0, SLOTS - 1, [b"?", 7001, b"id"]]], ASKED)
        assert known.address(TAGS[0]) == (ASKED[0], 7001)

    def test_hosts_may_be_names_and_ipv6(self) -> None:
        known = ClusterMap([])
        known.learn([row(0, 8000, ("::1", 7001)), row(8001, SLOTS - 1, ("n-2.example", 7002))], A)
        assert known.primaries == [("::1", 7001), ("n-2.example", 7002)]

    def test_a_slot_that_nobody_covers_is_nowhere(self) -> None:
        known = ClusterMap([ASKED])
        known.learn([row(5461, 10922, B), row(12000, 12000, C)], ASKED)
        assert [known.address(tag) for tag in TAGS] == [None, None, B, B, None, None]
        assert known.primaries == [B, C]

    def test_a_node_that_knows_of_no_slots_teaches_nothing(self, cluster: ClusterMap) -> None:
        with pytest.raises(NotKnown, match=r"10\.0\.0\.9:7009 knows of no slots"):
            cluster.learn([], ASKED)
        assert cluster.address(TAGS[0]) == A

    def test_moved_corrects_one_group_until_the_map_is_read_again(
        self, cluster: ClusterMap
    ) -> None:
        cluster.moved(TAGS[0], C)
        assert [cluster.address(tag) for tag in TAGS] == [C, A, B, B, C, C]
        cluster.learn(thirds(A, B, C), ASKED)
        assert cluster.address(TAGS[0]) == A

    @pytest.mark.parametrize("bad", ["17", b"", b"{}"])
    def test_a_key_without_a_tag_is_its_own(self, cluster: ClusterMap, bad: str | bytes) -> None:
        key = bad.encode() if isinstance(bad, str) else bad
        assert cluster.group(key) == key.decode()


@settings(deadline=None)
@given(st.lists(st.integers(1, SLOTS - 1), max_size=8, unique=True), st.randoms())
def test_every_slot_is_found_wherever_it_is_cut(cuts: list[int], rng: Any) -> None:
    edges = [0, *sorted(cuts), SLOTS]
    owners = {first: ("host", 1 + number) for number, first in enumerate(edges[:-1])}
    rows = [row(a, b - 1, owners[a]) for a, b in itertools.pairwise(edges)]
    rng.shuffle(rows)
    known = ClusterMap([])
    known.learn(rows, ASKED)
    for tag in shard_tags(64):
        slot = slot_of(tag)
        owner = max(first for first in owners if first <= slot)
        assert known.address(tag) == owners[owner]


class TestSentinel:
    def test_the_primary_is_the_one_they_name(self) -> None:
        known = SentinelPrimary("mymaster", [A, B])
        assert known.question == ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")
        assert known.seeds == [A, B]
        assert known.address(SINGLE) is None
        assert known.primaries == []
        known.learn([b"10.0.0.3", b"7003"], A)
        assert known.address(known.group(b"any key")) == C
        known.learn([b"::1", b"7003"], A)
        assert known.primaries == [("::1", 7003)]

    @pytest.mark.parametrize("reply", [None, []])
    def test_a_sentinel_that_knows_no_such_name_teaches_nothing(self, reply: Any) -> None:
        known = SentinelPrimary("mymaster", [A])
        known.learn([b"10.0.0.3", b"7003"], A)
        with pytest.raises(NotKnown, match=r"the sentinel at 10\.0\.0\.1:7001 knows no 'mymaster'"):
            known.learn(reply, A)
        assert known.address(SINGLE) == C


class TestOneServer:
    def test_all_is_where_it_was_put(self) -> None:
        only = OneServer(A)
        assert only.question == ()
        assert {only.group(names.stats(tag)) for tag in TAGS} == {SINGLE}
        assert only.address(SINGLE) == A
        only.moved(SINGLE, B)
        assert only.primaries == [A]


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"url": "redis://h"}, OneServer),
        ({"url": "unix:///s"}, OneServer),
        ({"url": "redis://h", "cluster": True}, ClusterMap),
        ({"url": "redis://h", "sentinel": "mymaster"}, SentinelPrimary),
    ],
)
def test_the_configuration_says_which(options: dict[str, Any], kind: type) -> None:
    assert type(topology_of(StoreConfig(**options))) is kind


def test_the_nodes_to_ask_first_are_those_of_the_configuration() -> None:
    config = StoreConfig(
        url="redis://:p%40ss@[::1]:7000/0", cluster=True, nodes=("h:7001", "[2001:db8::2]:7002")
    )
    assert topology_of(config).seeds == [("::1", 7000), ("h", 7001), ("2001:db8::2", 7002)]
    assert StoreConfig(url="redis://").addresses == [("localhost", 6379)]
    assert StoreConfig(url="unix:///run/s").addresses == [("/run/s", 0)]


@pytest.mark.parametrize(
    ("key", "tag"),
    [
        (b"a:{17}:x", "17"),
        (b"{17}", "17"),
        (b"a{1}{2}", "1"),
        (b"a{{1}}", "{1"),
        (b"a{}{1}", "a{}{1}"),
        (b"a{1", "a{1"),
        (b"a}1{", "a}1{"),
        (b"", ""),
    ],
)
def test_hash_tags_are_those_of_the_specification(key: bytes, tag: str) -> None:
    """Redis Cluster specification, "Hash tags"."""
    assert hash_tag(key) == tag


def test_a_redirection_without_a_host_means_the_one_that_said_it() -> None:
    assert whole(("", 7002), "10.0.0.1") == ("10.0.0.1", 7002)
    assert whole(("?", 7002), "10.0.0.1") == ("10.0.0.1", 7002)
    assert whole(("10.0.0.2", 7002), "10.0.0.1") == ("10.0.0.2", 7002)
