"""Every Lua file is documented, bound once by a stub that agrees with its header, and runs."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import os
import re
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import redis
import redis.asyncio
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from askonce_queue import answer_scripts, names, queue_scripts, quota_scripts, scripts
from askonce_queue.answer_scripts import Fill, Release
from askonce_queue.connections import connect, connect_sync
from askonce_queue.embedded import EmbeddedStore
from askonce_queue.queue_scripts import Lane, LoggedHit, SettleGroup
from askonce_queue.quota_scripts import Rates, Request
from askonce_queue.scripts import Call, Script, run, run_many, run_sync
from askonce_queue.store_config import StoreConfig
from tests.support.embedded_server import server_pid
from tests.support.resolving import all_keys

LUA = files("askonce_queue") / "lua"
PRELUDES = {"now", "pressure", "validity", "globs"}
NAMES = sorted(
    path.name.removesuffix(".lua") for path in LUA.iterdir() if path.name.endswith(".lua")
)
SCRIPTS = [name for name in NAMES if name not in PRELUDES]
REFUSED_WITHOUT_MEMORY = {"fill", "retry_dead", "log_hits"}
"""Enqueue keeps a bound of its own; everything else keeps the system alive without memory."""

LANE = Lane("0", "default", "interactive")
BULK = Lane("0", "default", "bulk")
X, Y = b"x" * 32, b"y" * 32
HOLDER = "t"
HIT = LoggedHit("00", "task", "store", 1, b"{}", "input", "")
TOKEN, OTHER = b"0123456789abcdef", b"fedcba9876543210"


def fill_of(digest: bytes) -> Fill:
    return Fill(digest, TOKEN, 1000, 1000, "a\nb", b"body")


def enqueue_of(count: int) -> Call:
    return queue_scripts.enqueue(
        LANE,
        client="c",
        token=HOLDER,
        reply_to="",
        max_backlog=9,
        max_unread=9,
        max_memory_share=0.85,
        stride=2,
        jobs=[arg for number in range(count) for arg in (f"id {number}", b"{}")],
    )


def settle_of(count: int) -> Call:
    group = SettleGroup("c", b'{"id":"1"}\n', [(b"1-1", "c/1")])
    return queue_scripts.settle(LANE, [group] * count)


def bury_of(count: int) -> Call:
    return queue_scripts.bury(
        LANE,
        address="c",
        entry_id=b"1-1",
        record="c/1",
        reply=b"{}\n",
        max_dead=5,
        code="poison",
        message="it",
        fields=[b"name", b"value"] * count,
    )


def look_up_of(count: int) -> Call:
    return answer_scripts.look_up(
        "0",
        token=TOKEN,
        lease_ms=1000,
        max_new_leases=9,
        digests=[X, Y][:count],
        asker_tags=["", "a\nb"][:count],
    )


def sweep_records_of(count: int) -> Call:
    return queue_scripts.sweep_records(
        LANE.ids, [LANE, BULK][:count], cursor=0, count=10, where="value", grace_ms=5
    )


def take_quota_of(_: int) -> Call:
    rates = Rates(slots=9, most_calls=2.0, calls_per_s=1.0, most_tokens=9.0, tokens_per_s=5.0)
    request = Request(1, slots_wanted=1, calls_wanted=1)
    return quota_scripts.take_quota("0", "m", "w", request, rates, ttl_ms=5, valid_us=5)


@dataclass(frozen=True)
class Stub:
    """A stub called with one repetition of what its header ends in, and with two."""

    keys: int
    args: int
    keys_more: int
    args_more: int
    call: Callable[[int], Call]


STUBS: dict[str, list[Stub]] = {
    "add_rule": [Stub(1, 3, 0, 0, lambda _: queue_scripts.add_rule("0", "id", b"{}", 5))],
    "beat": [Stub(1, 2, 0, 0, lambda _: queue_scripts.beat("0", "default", "w", 5))],
    "bury": [Stub(5, 10, 0, 2, bury_of)],
    "claim": [Stub(2, 4, 0, 0, lambda _: queue_scripts.claim(LANE, "w", 5))],
    "claim_name": [Stub(1, 3, 0, 0, lambda _: queue_scripts.claim_name("0", "c", "t", 5))],
    "defer": [Stub(4, 5, 0, 2, lambda n: queue_scripts.defer(LANE, 5, [(b"1-1", "c/j")] * n))],
    "take_overdue": [Stub(2, 3, 0, 0, lambda _: queue_scripts.take_overdue(LANE.deferred, "w", 5))],
    "ensure_group": [Stub(1, 1, 0, 0, lambda _: queue_scripts.ensure_group(LANE))],
    "record_shards": [Stub(1, 1, 0, 0, lambda _: queue_scripts.record_shards(1))],
    "count": [Stub(1, 8, 0, 2, lambda n: queue_scripts.count("0", {str(i): 1 for i in range(n)}))],
    "count_solo": [Stub(1, 2, 0, 0, lambda _: queue_scripts.count_solo(LANE, b"1-1", "t"))],
    "enqueue": [Stub(6, 10, 0, 2, enqueue_of)],
    "fill": [Stub(6, 6, 1, 5, lambda n: answer_scripts.fill("0", [fill_of(X), fill_of(Y)][:n]))],
    "give_back": [Stub(1, 4, 0, 1, lambda n: queue_scripts.give_back(LANE, "w", [b"1-1"] * n))],
    "hand_over": [Stub(2, 3, 0, 2, lambda n: queue_scripts.hand_over("0", "c", [(b"1-1", 1)] * n))],
    "invalidate": [
        Stub(2, 3, 0, 1, lambda n: answer_scripts.invalidate("0", everything=False, tags=["a"] * n))
    ],
    "leave": [
        Stub(2, 3, 1, 0, lambda n: queue_scripts.leave([LANE, BULK][:n], "w", only_if_dead=True))
    ],
    "log_hits": [Stub(1, 8, 0, 7, lambda n: queue_scripts.log_hits("0", 5, [HIT] * n))],
    "look_up": [Stub(5, 4, 1, 1, look_up_of)],
    "mark_read": [Stub(1, 1, 1, 1, lambda n: answer_scripts.mark_read("0", [(X, 1.0)] * n))],
    "measure": [Stub(1, 0, 0, 0, lambda _: queue_scripts.measure("0"))],
    "note_attempt": [
        Stub(
            2,
            4,
            0,
            0,
            lambda _: answer_scripts.note_attempt(
                "0", digest=X, token=TOKEN, attempt=1, remember_ms=5
            ),
        )
    ],
    "read_stamps": [
        Stub(2, 2, 0, 0, lambda _: answer_scripts.read_stamps("0", seen_inv=0, most_tags=5))
    ],
    "peek_stamps": [Stub(2, 1, 0, 1, lambda n: answer_scripts.peek_stamps("0", ["a", "b"][:n]))],
    "release": [Stub(2, 5, 0, 5, lambda n: answer_scripts.release("0", [Release(X, TOKEN)] * n))],
    "release_name": [Stub(3, 2, 0, 0, lambda _: queue_scripts.release_name("0", "c", "t"))],
    "renew": [
        Stub(1, 3, 0, 2, lambda n: answer_scripts.renew("0", lease_ms=5, held=[(X, TOKEN)] * n))
    ],
    "retry_dead": [
        Stub(
            4,
            6,
            0,
            0,
            lambda _: queue_scripts.retry_dead(
                LANE, b"1-1", record="c/1", address="@r", max_backlog=5, max_unread=5
            ),
        )
    ],
    "settle": [Stub(4, 6, 1, 5, settle_of)],
    "survey": [
        Stub(3, 3, 1, 2, lambda n: answer_scripts.survey("0", [X] * n, before=[("a", b"1")] * n))
    ],
    "spend": [
        Stub(1, 5, 0, 3, lambda n: queue_scripts.spend("0", ["t"], [(0, "t", 5)] * n)),
    ],
    "sweep_budgets": [
        Stub(1, 2, 0, 0, lambda _: queue_scripts.sweep_budgets("0", cursor=0, count=9))
    ],
    "sweep_hits": [Stub(1, 1, 0, 0, lambda _: queue_scripts.sweep_hits("0", 5))],
    "sweep_clients": [
        Stub(
            2,
            4,
            0,
            0,
            lambda _: queue_scripts.sweep_clients("0", cursor=0, count=10, retain_ms=5),
        )
    ],
    "sweep_fills": [
        Stub(1, 4, 0, 0, lambda _: answer_scripts.sweep_leases("0", cursor=0, count=9, grace_ms=5)),
        Stub(1, 4, 0, 0, lambda _: answer_scripts.sweep_tries("0", cursor=0, count=9, grace_ms=5)),
    ],
    "sweep_owed": [Stub(2, 3, 0, 0, lambda _: queue_scripts.sweep_owed("0", cursor=0, count=9))],
    "sweep_records": [Stub(2, 5, 1, 1, sweep_records_of)],
    "sweep_stats": [
        Stub(
            1,
            4,
            0,
            0,
            lambda _: queue_scripts.sweep_stats("0", cursor=0, count=9, most=5, others="x"),
        )
    ],
    "sweep_tags": [Stub(2, 3, 0, 0, lambda _: answer_scripts.sweep_tags("0", count=9, most=5))],
    "sweep_windows": [Stub(1, 2, 0, 0, lambda _: queue_scripts.sweep_windows("0", count=9))],
    "take_quota": [Stub(2, 21, 0, 0, take_quota_of)],
    "take_over": [
        Stub(
            2,
            4,
            0,
            2,
            lambda n: answer_scripts.take_over("0", token=TOKEN, lease_ms=5, seen=[(X, OTHER)] * n),
        )
    ],
}
ALL_STUBS = [(name, stub) for name, stubs in STUBS.items() for stub in stubs]


class Header(NamedTuple):
    """The comment at the top of a Lua file, by parts."""

    purpose: str
    keys: str
    args: str
    rest: str


def header_of(name: str) -> Header:
    lines = itertools.takewhile(
        lambda line: line.startswith("--"), (LUA / f"{name}.lua").read_text().splitlines()
    )
    text = "\n".join(line[2:].removeprefix(" ") for line in lines)
    found = re.fullmatch(
        r"(?P<purpose>.*?)\n\nKEYS  (?P<keys>.*?)\nARGV  (?P<args>.*?)\n(?P<rest>Returns .*)",
        text,
        re.DOTALL,
    )
    assert found, f"{name}.lua: expected purpose, KEYS, ARGV and Returns"
    return Header(**found.groupdict())


def body_of(name: str) -> str:
    lines = (LUA / f"{name}.lua").read_text().splitlines()
    return "\n".join(re.sub(r"--.*", "", line) for line in lines)


def fixed(listing: str) -> int:
    """How many numbered positions a KEYS or ARGV line describes; `5…` may be repeated."""
    return len(numbered(listing))


def numbered(listing: str) -> list[int]:
    return [int(number) for number in re.findall(r"(?:^|· |\s)(\d+)…? ", listing)]


def bound() -> list[Script]:
    """Every `Script` that any module binds."""
    modules: list[ModuleType] = [answer_scripts, queue_scripts, quota_scripts]
    return [
        value for module in modules for value in vars(module).values() if isinstance(value, Script)
    ]


def test_every_lua_file_is_bound_by_exactly_one_script() -> None:
    assert Counter(script.name for script in bound()) == dict.fromkeys(SCRIPTS, 1)
    assert set(STUBS) == set(SCRIPTS)


def test_nothing_else_binds_scripts() -> None:
    """Call sites never count arguments: only the stubs make calls."""
    for module in (answer_scripts, queue_scripts, quota_scripts):
        calls = Counter(re.findall(r"\bCall\(\s*(_[A-Z_]+),", inspect.getsource(module)))
        scripts_here = {name for name, value in vars(module).items() if isinstance(value, Script)}
        assert calls == dict.fromkeys(scripts_here, 1)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_header_says_it_all(name: str) -> None:
    header = header_of(name)
    assert re.match(r"[A-Z].*\.", header.purpose, re.DOTALL)
    assert re.search(r"\bO\([^)]+\)", header.rest), "its complexity"
    allowed = "allow-oom" in header.rest and "Not allow-oom" not in header.rest
    assert allowed == (name not in REFUSED_WITHOUT_MEMORY)
    (script,) = (script for script in bound() if script.name == name)
    assert script.source.splitlines()[0] == (b"#!lua flags=allow-oom" if allowed else b"#!lua")


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_header_covers_every_position_the_script_reads(name: str) -> None:
    header, body = header_of(name), body_of(name)
    for array, listing in (("KEYS", header.keys), ("ARGV", header.args)):
        positions = [int(number) for number in re.findall(rf"\b{array}\[(\d+)\]", body)]
        described = fixed(listing)
        assert max(positions, default=0) <= described
        assert numbered(listing) == list(range(1, described + 1))
        open_ended = f"#{array}" in body or re.search(rf"\b{array}\[[a-z]", body) is not None
        if not open_ended:
            assert len(set(positions)) == described, f"{array} that nobody reads"


@pytest.mark.parametrize(("name", "stub"), ALL_STUBS)
def test_the_stub_gives_what_the_header_describes(name: str, stub: Stub) -> None:
    one, two = stub.call(1), stub.call(2)
    assert one.script.name == name
    assert (len(one.keys), len(one.args)) == (stub.keys, stub.args)
    assert (len(two.keys), len(two.args)) == (
        stub.keys + stub.keys_more,
        stub.args + stub.args_more,
    )
    header = header_of(name)
    assert stub.keys == fixed(header.keys)
    if not stub.args_more:
        assert stub.args == fixed(header.args)
    else:
        assert "then" in header.args or "per" in header.args or "…" in header.args


@pytest.mark.parametrize(("name", "stub"), ALL_STUBS)
def test_all_keys_of_a_call_are_of_one_slot(name: str, stub: Stub) -> None:
    """And their names come from `names.py`: the part before the tag is one of its table."""
    del name
    known = set(re.findall(r"^\| `(\w+):", str(names.__doc__), re.MULTILINE))
    keys = stub.call(2).keys
    if keys == [names.META]:
        return  # alone, and of no shard
    assert {re.findall(rb"\{(.*?)\}", key)[0] for key in keys} == {b"0"}
    assert {key.split(b":")[0].decode() for key in keys} <= known


@pytest.mark.parametrize(("name", "stub"), ALL_STUBS)
async def test_it_runs_on_the_real_server(
    store: redis.asyncio.Redis, name: str, stub: Stub
) -> None:
    del name
    if stub.call is enqueue_of:
        await run(store, queue_scripts.claim_name("0", "c", HOLDER, 60_000))
    await store.xgroup_create(LANE.stream.decode(), names.GROUP.decode(), "0", mkstream=True)
    for count in (1, 2):
        await run(store, stub.call(count))  # on an empty store, and on what that left
    keys = await all_keys(store)
    assert {key.split(b":")[0] for key in keys} <= {
        key.split(b":")[0]
        for key in [
            *(*stub.call(1).keys, LANE.stream),
            *(names.clients("0"), names.windows("0"), names.window_prefix("0")),
        ]
    }


# --- running ---------------------------------------------------------------------------------


async def test_a_server_that_forgot_its_scripts_is_told_again(store: redis.asyncio.Redis) -> None:
    call = answer_scripts.read_stamps("0", seen_inv=0, most_tags=5)
    await run(store, call)
    for _ in range(2):
        await store.script_flush()
        assert await store.script_exists(call.script.sha) == [False]
        assert len(await run(store, call)) == 2
        assert await store.script_exists(call.script.sha) == [True]


async def test_several_calls_heal_in_one_more_round_trip(store: redis.asyncio.Redis) -> None:
    """Each gets its own result, in order, whether its script was known or not."""
    await store.script_flush()
    stamps = answer_scripts.read_stamps("0", seen_inv=0, most_tags=5)
    await run(store, stamps)
    calls = [
        look_up_of(1),
        stamps,
        look_up_of(1),
        queue_scripts.count_solo(LANE, b"1-1", "t"),
        stamps,
    ]
    first, second, third, fourth, fifth = await run_many(store, calls)
    assert first[2] == third[2]
    assert first[2][:1] == b"L"
    assert second == fifth
    assert fourth == 0


async def test_a_call_that_fails_stands_in_its_place(store: redis.asyncio.Redis) -> None:
    await store.set(names.solo("0", "default").decode(), "not a hash")
    calls = [look_up_of(1), queue_scripts.count_solo(LANE, b"1-1", "t"), look_up_of(1)]
    first, second, third = await run_many(store, calls)
    assert isinstance(second, ResponseError)
    assert first[2] == third[2]
    (alone,) = await run_many(store, calls[1:2])
    assert isinstance(alone, ResponseError)


@pytest.mark.parametrize("count", [1, 2])
async def test_a_lost_connection_is_raised(count: int) -> None:
    client = redis.asyncio.Redis.from_url("unix:///nowhere.sock")
    try:
        with pytest.raises(RedisConnectionError):
            await run_many(client, [look_up_of(1)] * count)
    finally:
        await client.aclose()


async def test_a_server_that_hangs_is_an_error_in_time(state_folder: Path) -> None:
    """It accepts connections and answers nothing, as a stopped or swapping one does."""
    async with EmbeddedStore(state_folder, maxmemory="64mb") as embedded:
        pid = await asyncio.to_thread(server_pid, embedded.url)
        config = StoreConfig(url=embedded.url, timeout_s=0.1, wait_timeout_s=0.05)
        client = connect(config, role="commands")
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(RedisConnectionError):
                await asyncio.wait_for(run(client, look_up_of(1)), 8)
        finally:
            os.kill(pid, signal.SIGCONT)
            await client.aclose()


@pytest.mark.usefixtures("store")
def test_synchronous_calls_heal_too(store_url: str) -> None:
    client = connect_sync(store_url, role="commands")
    try:
        client.script_flush()
        calls = [queue_scripts.count_solo(LANE, b"1-1", token) for token in "abbc"]
        assert [run_sync(client, call) for call in calls] == [0, 1, 1, 2]
    finally:
        client.close()


async def test_the_prelude_is_the_servers_clock(store: redis.asyncio.Redis) -> None:
    before = await server_us(store)
    result = await run(store, answer_scripts.read_stamps("0", seen_inv=0, most_tags=5))
    assert before <= int(result[0]) <= await server_us(store)


async def server_us(store: redis.asyncio.Redis) -> int:
    seconds, micros = await store.time()
    return seconds * 1_000_000 + micros


def test_a_script_of_another_prelude_is_another_script() -> None:
    usual = Script("beat", allow_oom=True)
    other = Script("beat", allow_oom=True, prelude="local function now_ms() return 1 end\n")
    assert usual.sha != other.sha
    assert scripts.Call(usual, [b"k"], ["a", 1]).command("EVALSHA") == (
        "EVALSHA",
        usual.sha,
        1,
        b"k",
        "a",
        1,
    )


@pytest.mark.parametrize(("name", "stub"), ALL_STUBS)
def test_arguments_are_of_types_that_the_wire_knows(name: str, stub: Stub) -> None:
    del name
    assert {type(arg) for arg in stub.call(2).args} <= {bytes, str, int, float}
