"""What is left when everybody has drained: nothing but answers, stamps and counters should be."""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import anyio

from askonce_loadtest.chaos.evidence import Violation
from askonce_loadtest.chaos.malformed import POOL
from askonce_loadtest.chaos.processes import Process
from askonce_loadtest.chaos.store import DRIVER, StoreUnderTest
from askonce_queue import answer_scripts, names, queue_scripts
from askonce_queue.queue_scripts import LANES, Lane
from askonce_queue.scripts import Call
from askonce_queue.shards import shard_tags

KNOWN_KEYS = re.compile(
    rb"askonce:meta"
    rb"|(jobs|due|ids|owed|reply|beat|solo|dead|clients|a|stamp|last|lease|tries|memory|stats|windows?"
    rb"|budgets|hits|reviews|rules|quotas?)"
    rb":\{\d+\}(:.*)?",
    re.DOTALL,
)
"""Every key of `askonce_queue.names`."""
SOCKETS = 64
SOCKETS_PER_SERVER = 32
"""Sockets of a worker at rest: its pools (16 commands and some blocking reads to each server that
holds keys), its idle connections to the model (at most its 32 slots), the event loop's own, and
some on their way out."""
GONE_S = 5.0
"""How long connections of processes that have ended may take to disappear."""
JANITORS_S = 20.0
"""How long the sweep of live workers may take to remove what dead ones have left."""
REMEMBERED_MS = 61_000
"""The longest time that a failure is remembered."""
PAGE = 500


class Leftovers:
    """Looks for what should be gone."""

    def __init__(self, store: StoreUnderTest) -> None:
        self._store = store
        self._tags = shard_tags(store.shards)

    # While workers still run

    async def work(self) -> str:
        """What is not settled, or not handed over; "" when there is nothing."""
        for lane in self._lanes():
            if count := int(await self._store.ask(lane.stream, "XLEN", lane.stream)):
                return f"{count} jobs in {lane.stream.decode()}"
        for tag in self._tags:
            if owed := await self._store.ask(names.owed(tag), "HGETALL", names.owed(tag)):
                return f"replies owed on shard {tag}: {owed}"
        return ""

    async def until_swept(self, alive: int) -> None:
        """Wait until the janitors have removed dead consumers: `alive` are left in every group."""
        deadline = time.monotonic() + JANITORS_S
        while time.monotonic() < deadline:
            groups = [await self._consumers(lane) for lane in self._lanes()]
            beats = [await self._beating(tag) for tag in self._tags]
            if all(len(found) <= alive for found in (*groups, *beats)):
                return
            await anyio.sleep(0.1)

    # When all have ended

    async def account(self) -> list[Violation]:
        """Everything that is there and should not be."""
        found: list[Violation] = []
        for lane in self._lanes():
            for name, pending in (await self._consumers(lane)).items():
                what = f"consumer {name.decode()} of {lane.stream.decode()} ({pending} pending)"
                found.append(Violation("consumers", what))
        for tag in self._tags:
            found += [
                Violation("consumers", f"heartbeat of {name.decode()} on shard {tag}")
                for name in await self._beating(tag)
            ]
            found += await self._leases(tag)
            found += await self._records(tag)
        found += await self._keys()
        found += await self._connections()
        return found

    def _lanes(self) -> list[Lane]:
        lanes = [Lane(tag, POOL, lane) for tag in self._tags for lane in LANES]
        return [*lanes, *(lane.deferred for lane in lanes)]

    async def _consumers(self, lane: Lane) -> dict[bytes, int]:
        """The consumers of a stream's group, with what is pending to each."""
        if not await self._store.ask(lane.stream, "EXISTS", lane.stream):
            return {}
        if not await self._store.ask(lane.stream, "XINFO", "GROUPS", lane.stream):
            return {}
        words = ("XINFO", "CONSUMERS", lane.stream, names.GROUP)
        found: dict[bytes, int] = {}
        for row in await self._store.ask(lane.stream, *words):
            fields = dict(zip(row[::2], row[1::2], strict=True))
            if fields[b"name"] != names.RETURNED or fields[b"pending"]:
                found[fields[b"name"]] = int(fields[b"pending"])
        return found

    async def _beating(self, tag: str) -> list[bytes]:
        beats = names.beats(tag, POOL)
        return list(await self._store.ask(beats, "HKEYS", beats))

    async def _leases(self, tag: str) -> list[Violation]:
        """Leases that still live though nobody is there, and dead ones that no sweep removes."""
        key = names.leases(tag)
        now_ms = await self._now_ms(key)
        live = [
            digest
            for digest, lease in (await self._hash(key)).items()
            if struct.unpack_from("<16sd", lease)[1] >= now_ms
        ]
        await self._sweep(
            lambda cursor: answer_scripts.sweep_leases(tag, cursor=cursor, count=PAGE, grace_ms=0)
        )
        left = set(await self._hash(key)) - set(live)
        found = [Violation("leases", f"{digest.hex()}: lives, without a holder") for digest in live]
        found += [Violation("leases", f"{digest.hex()}: expired, and not swept") for digest in left]
        return found

    async def _records(self, tag: str) -> list[Violation]:
        """Records of jobs, clients and questions that are settled."""
        lanes = [lane for lane in self._lanes() if lane.tag == tag]
        solo, tries = names.solo(tag, POOL), names.tries(tag)
        # These may outlive what they are about, by as long as a sweep lets them.
        await self._sweep(
            lambda cursor: queue_scripts.sweep_records(
                solo, lanes, cursor=cursor, count=PAGE, where="field", grace_ms=0
            )
        )
        await self._sweep(
            lambda cursor: answer_scripts.sweep_tries(tag, cursor=cursor, count=PAGE, grace_ms=0)
        )
        found = [
            Violation("records", f"{key.decode()}: {field!r} = {value!r}")
            for key in (names.ids(tag, POOL), names.owed(tag), names.clients(tag), solo)
            for field, value in (await self._hash(key)).items()
        ]
        latest_ms = await self._now_ms(tries) + REMEMBERED_MS
        found += [
            Violation("records", f"{tries.decode()}: {digest.hex()} is remembered for too long")
            for digest, value in (await self._hash(tries)).items()
            if struct.unpack_from("<cBd", value)[2] > latest_ms
        ]
        for lane in lanes:
            if count := int(await self._store.ask(lane.stream, "XLEN", lane.stream)):
                found.append(Violation("records", f"{lane.stream.decode()}: {count} entries"))
        return found

    async def _keys(self) -> list[Violation]:
        """Keys that `names.py` does not know, unread reply streams, and TTLs of non-answers."""
        found: list[Violation] = []
        for key in await self._store.keys("*"):
            shown = key.decode(errors="backslashreplace")
            if not KNOWN_KEYS.fullmatch(key):
                found.append(Violation("keys", f"{shown}: not one of ours"))
            elif key.startswith(b"reply:"):
                found.append(Violation("records", f"{shown}: replies that nobody will read"))
            elif key.startswith(b"quota:") and (held := set(await self._hash(key)) - {b"."}):
                found.append(Violation("leases", f"{shown}: still shared by {sorted(held)}"))
            elif not key.startswith(b"a:") and await self._store.ask(key, "PTTL", key) != -1:
                found.append(Violation("keys", f"{shown}: has a TTL, and is no answer"))
        return found

    async def _connections(self) -> list[Violation]:
        """Connections to the store that are not the driver's."""
        deadline = time.monotonic() + GONE_S
        while True:
            lists: list[bytes] = await self._store.ask_all("CLIENT", "LIST")
            others = [
                line
                for text in lists
                for line in text.decode().splitlines()
                if f" name={DRIVER} " not in line
            ]
            if not others or time.monotonic() > deadline:
                return [Violation("connections", line) for line in others]
            await anyio.sleep(0.1)

    async def _hash(self, key: bytes) -> dict[bytes, bytes]:
        flat: list[bytes] = await self._store.ask(key, "HGETALL", key)
        return dict(zip(flat[::2], flat[1::2], strict=True))

    async def _now_ms(self, key: bytes) -> float:
        seconds, micros = await self._store.ask(key, "TIME")
        return int(seconds) * 1000 + int(micros) / 1000

    async def _sweep(self, call: Callable[[int], Call]) -> None:
        """Run a sweep over a whole hash."""
        cursor = 0
        while True:
            swept = call(cursor)
            reply = await self._store.ask(swept.keys[0], *swept.command("EVAL"))
            cursor = int(reply[0])
            if cursor == 0:
                return


def sockets(running: Mapping[str, Process], servers: int) -> list[Violation]:
    """Processes at rest that hold more sockets than their pools allow; unknown without /proc."""
    found: list[Violation] = []
    for name, process in running.items():
        try:
            links = [link.readlink() for link in Path(f"/proc/{process.pid}/fd").iterdir()]
        except OSError:
            continue
        count = sum(str(link).startswith("socket:") for link in links)
        if count > SOCKETS + SOCKETS_PER_SERVER * servers:
            found.append(Violation("connections", f"{name} holds {count} sockets at rest", name))
    return found
