from __future__ import annotations

import itertools
from collections import Counter

import pytest

from askonce_queue.shards import (
    MAX_SHARDS,
    SLOTS,
    shard_of_digest,
    shard_of_job,
    shard_tags,
    slot_of,
)


def test_slots_are_those_of_the_cluster_specification() -> None:
    assert slot_of("123456789") == 0x31C3


@pytest.mark.parametrize("count", [3, 6, 12, 48])
def test_shards_spread_evenly_over_three_primaries(count: int) -> None:
    # redis-cli --cluster create gives the primaries 0-5460, 5461-10922 and 10923-16383.
    bounds = (5461, 10923, SLOTS)
    primaries = Counter(
        next(i for i, bound in enumerate(bounds) if slot_of(tag) < bound)
        for tag in shard_tags(count)
    )
    assert set(primaries.values()) == {count // 3}


@pytest.mark.parametrize("count", range(1, MAX_SHARDS + 1, 17))
def test_every_shard_has_a_slot_of_its_own(count: int) -> None:
    slots = [slot_of(tag) for tag in shard_tags(count)]
    assert len(set(slots)) == count
    assert slots == sorted(slots)


def test_tags_never_change() -> None:
    # Stores in use hold keys with these tags.
    assert shard_tags(1) == ("0",)
    assert shard_tags(3) == ("3", "1", "0")
    assert shard_tags(6) == ("3", "11", "2", "1", "13", "0")


@pytest.mark.parametrize("count", [0, -1, MAX_SHARDS + 1])
def test_an_impossible_number_of_shards_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"from 1 to {MAX_SHARDS}"):
        shard_tags(count)


def test_a_job_id_that_carries_its_shard_goes_there() -> None:
    assert shard_of_job("s3-abc", 6) == 3
    assert shard_of_job("s3-abc", 1) == 0


@pytest.mark.parametrize("job_id", ["s9-abc", "s-abc", "sx-abc", "s²-abc", "abc", "", "3-abc"])
def test_any_other_job_id_is_hashed(job_id: str) -> None:
    assert shard_of_job(job_id, 6) == shard_of_job(job_id, 6)
    assert 0 <= shard_of_job(job_id, 6) < 6


def test_job_ids_and_digests_spread_over_all_shards() -> None:
    jobs = Counter(shard_of_job(f"job {i}", 12) for i in range(12_000))
    digests = Counter(
        shard_of_digest(bytes(pair) + bytes(28), 12)
        for pair in itertools.product(range(0, 256, 5), repeat=4)
        if pair[0] < 10
    )
    for counts in (jobs, digests):
        assert len(counts) == 12
        assert max(counts.values()) < 1.3 * min(counts.values())


def test_one_shard_takes_everything() -> None:
    assert shard_of_digest(b"\xff" * 32, 1) == 0
    assert shard_of_job("anything", 1) == 0
