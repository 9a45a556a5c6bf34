"""The script behind shared limits: what is re-sent, late, damaged, or left behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from redis.exceptions import ResponseError

from askonce_queue import names, queue_scripts, quota_scripts
from askonce_queue.connections import connect_sync
from askonce_queue.quota_scripts import KEPT_MS, Grant, Rates, Request
from askonce_queue.shards import shard_of_model, shard_tags
from tests.support.virtual_scripts import TAG, VirtualShard

KEY = names.quota_prefix(TAG) + b"gpt"
TEN = Rates(most_calls=10.0, calls_per_s=1.0)
TOKENS = Rates(most_tokens=100.0, tokens_per_s=10.0, first_tokens=50)
TTL_MS = 10_000


class Shard(VirtualShard):
    def take(self, holder: str, number: int, rates: Rates = TEN, **request: int) -> Grant:
        call = quota_scripts.take_quota(
            *(TAG, "gpt", holder, Request(number, **request), rates),
            ttl_ms=TTL_MS,
            valid_us=400_000,
        )
        return Grant.of(self.run(call))


@pytest.fixture
def shard(store_url: str) -> Iterator[Shard]:
    with connect_sync(store_url, role="commands") as client:
        client.flushall()
        yield Shard(client)


def test_a_request_that_is_sent_again_takes_nothing_twice(shard: Shard) -> None:
    first = shard.take("a", 1, calls_wanted=4)
    shard.advance(300)
    again = shard.take("a", 1, calls_wanted=4)
    assert (first.calls, first.age_us) == (4, 0)
    assert (again.calls, again.granted_us) == (4, first.granted_us)
    assert again.age_us == 300_000
    assert shard.take("b", 1, calls_wanted=100).calls == 6 // 2  # as much is left for the other


def test_nor_does_it_give_back_twice(shard: Shard) -> None:
    stamp = shard.take("a", 1, calls_wanted=10).granted_us
    for _ in range(2):
        shard.take("a", 2, calls_back=3, granted_us=stamp)
    assert shard.take("b", 8, calls_wanted=100).calls <= 3 + 1


def test_calls_that_are_no_longer_valid_cannot_be_given_back(shard: Shard) -> None:
    """Or a minute would see them that had not had them before."""
    stamp = shard.take("a", 1, calls_wanted=10).granted_us
    shard.advance(500)
    shard.take("a", 2, calls_back=9, granted_us=stamp)
    assert shard.take("a", 3, calls_wanted=10).calls == 0
    stamp = shard.take("a", 4, calls_wanted=10).granted_us
    shard.advance(500)
    assert shard.take("a", 5, calls_wanted=10).calls == 1  # a second has passed


def test_it_says_when_there_will_be_a_call(shard: Shard) -> None:
    assert shard.take("a", 1, calls_wanted=10).wait_ms == 1000
    shard.advance(999)
    assert shard.take("a", 2, calls_wanted=1).calls == 0
    shard.advance(1)
    assert shard.take("a", 3, calls_wanted=1).calls == 1


def test_the_first_call_teaches_what_a_call_takes(shard: Shard) -> None:
    first = shard.take("a", 1, TOKENS, calls_wanted=9)
    assert (first.calls, first.tokens_each) == (1, 50)
    told = shard.take("a", 2, TOKENS, calls_wanted=9, reported=1, tokens=20, charged=50)
    assert (told.calls, told.tokens_each) == (6, 20)  # of 100 + 20
    assert shard.take("b", 1, TOKENS, calls_wanted=1).tokens_each == 20


def test_no_debt_is_larger_than_a_minute(shard: Shard) -> None:
    """However much an API claims to have used."""
    shard.take("a", 1, TOKENS, calls_wanted=1)
    told = shard.take("a", 2, TOKENS, calls_wanted=1, reported=1, tokens=10**15, charged=50)
    assert told.calls == 0
    shard.advance(60_000)
    told = shard.take("a", 3, TOKENS, reported=400, tokens=400 * 20, charged=400 * 20)
    assert told.wait_ms <= 60 * 60_000


def test_a_silent_holders_slots_are_free_after_its_ttl(shard: Shard) -> None:
    rates = Rates(slots=3)
    assert shard.take("a", 1, rates, slots_wanted=3).slots == 3
    for number in range(1, 6):
        shard.advance(TTL_MS / 5)
        held = shard.take("b", number, rates, slots_wanted=3)
        assert held.slots == 0
        assert held.contended
    shard.advance(1)
    assert shard.take("b", 6, rates, slots_wanted=3).slots == 3


def test_what_is_kept_is_never_taken_away(shard: Shard) -> None:
    rates = Rates(slots=4)
    shard.take("a", 1, rates, slots_wanted=4)
    shard.take("b", 1, rates, slots_wanted=4)
    kept = shard.take("a", 2, rates, slots_kept=3, slots_wanted=4)
    assert (kept.slots, kept.share) == (3, 2)
    assert shard.take("b", 2, rates, slots_wanted=4).slots == 1


def test_time_that_goes_back_takes_nothing_away(shard: Shard) -> None:
    """The clock of a server that takes over may be behind."""
    shard.take("a", 1, calls_wanted=5)
    shard.advance(-60_000)
    assert shard.take("a", 2, calls_wanted=9).calls == 5
    shard.advance(1000)
    assert shard.take("a", 3, calls_wanted=9).calls == 1


@pytest.mark.parametrize("field", [".", "b"])
def test_what_cannot_be_read_is_dropped(shard: Shard, field: str) -> None:
    shard.take("a", 1, calls_wanted=1)
    shard.client.hset(KEY.decode(), field, "no record")
    assert shard.take("a", 2, calls_wanted=1).calls == 1
    assert shard.client.hget(KEY.decode(), "b") is None


def test_a_quota_that_nobody_asks_for_is_swept(shard: Shard, client: redis.Redis) -> None:
    shard.take("a", 1, slots_wanted=1, rates=Rates(slots=1))
    shard.advance(KEPT_MS - 1)
    assert shard.run(queue_scripts.sweep_quotas(TAG, count=9)) == [0, 0]
    shard.advance(2)
    assert shard.run(queue_scripts.sweep_quotas(TAG, count=9)) == [0, 1]
    assert not client.exists(KEY, names.quotas(TAG))


@pytest.fixture
def client(shard: Shard) -> redis.Redis:
    return shard.client


def test_a_key_of_another_kind_is_an_error(shard: Shard) -> None:
    shard.client.set(KEY.decode(), "somebody else's")
    with pytest.raises(ResponseError):
        shard.take("a", 1, calls_wanted=1)


def test_all_workers_agree_on_the_shard_of_a_model() -> None:
    assert [shard_of_model("gpt", count) for count in (1, 2, 4, 16)] == [0, 0, 0, 4]
    assert len({shard_of_model(f"m{n}", 8) for n in range(100)}) == len(shard_tags(8))
