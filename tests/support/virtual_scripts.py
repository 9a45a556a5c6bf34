"""The real scripts on the real server, driven by a virtual clock; and their results, decoded."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import redis

from askonce_queue import answer_scripts, names, pressure
from askonce_queue.answer_scripts import NO_LIMIT_MS, Demand, Fill, Release
from askonce_queue.scripts import Call, Script, run_sync

CLOCK_FIELD = "virtual_us"
PRELUDE = f"""
local function now_us()
  return tonumber(redis.call('HGET', '{names.META.decode()}', '{CLOCK_FIELD}'))
end
local function now_ms()
  return math.floor(now_us() / 1000)
end
{pressure.FUNCTIONS}
{answer_scripts.VALIDITY}
{answer_scripts.GLOBS}"""
ANY = Demand(least_left_ms=-NO_LIMIT_MS)
"""Whatever there is will do, stale or not."""
START_MS = 1_800_000_000_000
TAG = "0"
LEASE = struct.Struct("<16sddB")
HEADER = struct.Struct("<BBddddH")
TRIES = struct.Struct("<c1Bd")
"""Written down again, so that a change of the layout fails a test."""


class Told(NamedTuple):
    """One result of a look-up: its letter (`+` for a hit), and what came with it."""

    kind: str
    built: float = 0.0
    attempt: int = 0
    taken_over: bool = False
    token: bytes = b""
    entry: bytes = b""
    error: bytes = b""

    @property
    def body(self) -> bytes:
        tag_bytes: int = HEADER.unpack_from(self.entry)[6]
        return self.entry[HEADER.size + tag_bytes :]


class VirtualShard:
    """One answer shard, and the time on its server."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self._scripts: dict[str, Script] = {}
        self.now_ms: float = START_MS
        self.advance(0)

    def advance(self, ms: float) -> None:
        self.now_ms += ms
        self.client.hset(names.META.decode(), CLOCK_FIELD, str(round(self.now_ms * 1000)))

    def run(self, call: Call) -> Any:
        name = call.script.name
        if name not in self._scripts:
            allow_oom = b"allow-oom" in call.script.source.splitlines()[0]
            self._scripts[name] = Script(name, allow_oom=allow_oom, prelude=PRELUDE)
        return run_sync(self.client, call._replace(script=self._scripts[name]))

    def look_up(
        self,
        *digests: bytes,
        token: bytes,
        tags: Sequence[str] | str = "",
        lease_ms: int = 10_000,
        max_new_leases: int = 100,
        demand: Demand = ANY,
    ) -> list[Told]:
        """`tags`: the asker's, joined by line breaks; one text for all keys, or one a key."""
        raw = self.run(
            answer_scripts.look_up(
                TAG,
                token=token,
                lease_ms=lease_ms,
                max_new_leases=max_new_leases,
                digests=digests,
                asker_tags=[tags] * len(digests) if isinstance(tags, str) else tags,
                demands=dict.fromkeys(range(len(digests)), demand.pack()),
            )
        )
        assert float(raw[0]) == self.now_ms // 1
        return [read_result(one) for one in raw[2:]]

    def look_up_one(
        self, digest: bytes, *, token: bytes, tags: str = "", demand: Demand = ANY
    ) -> Told:
        (told,) = self.look_up(digest, token=token, tags=tags, demand=demand)
        return told

    def fill(
        self,
        digest: bytes,
        token: bytes,
        body: bytes = b"body",
        *,
        tags: str = "",
        fresh_ms: int = 60_000,
        keep_ms: int = 60_000,
    ) -> str:
        call = answer_scripts.fill(TAG, [Fill(digest, token, fresh_ms, keep_ms, tags, body)])
        return cast("bytes", self.run(call)[1]).decode()

    def release(self, release: Release) -> str:
        return cast("bytes", self.run(answer_scripts.release(TAG, [release]))).decode()

    def invalidate(self, *tags: str | bytes, everything: bool = False) -> float:
        return float(self.run(answer_scripts.invalidate(TAG, everything=everything, tags=tags)))

    def lease(self, digest: bytes) -> tuple[bytes, float, float, int] | None:
        """Token, deadline in ms, built, attempt, leaders that died."""
        data = cast(
            "bytes | None", self.client.hget(names.leases(TAG).decode(), cast("str", digest))
        )
        return None if data is None else LEASE.unpack_from(data)

    def entry(self, digest: bytes) -> bytes | None:
        return cast("bytes | None", self.client.get(names.answer_prefix(TAG) + digest))


def read_result(data: bytes) -> Told:
    """Decode one result of `look_up.lua`, as its header describes them."""
    kind = chr(data[0])
    told = Told(kind)
    match kind:
        case "\x01":
            told = Told("+", entry=data)
        case "L":
            built, attempt, taken_over = struct.unpack("<dBB", data[1:])
            told = Told("L", built=built, attempt=attempt, taken_over=bool(taken_over))
        case "S":
            built, attempt = struct.unpack_from("<dB", data, 1)
            told = Told("S", built=built, attempt=attempt, entry=data[10:])
        case "X":
            built, attempt, taken_over = struct.unpack_from("<dBB", data, 1)
            told = Told("X", built, attempt, bool(taken_over), entry=data[11:])
        case "B":
            assert len(data) == 17
            told = Told("B", token=data[1:])
        case "R":
            told = Told("R", error=data[1:])
        case "E":
            (size,) = struct.unpack_from("<I", data, 1)
            told = Told("E", error=data[5 : 5 + size], entry=data[5 + size :])
        case "F":
            told = Told("F", entry=data[1:])
        case _:
            assert data == b"U"
    return told
