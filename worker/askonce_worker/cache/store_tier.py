"""The store tier: answers and fill leases in Redis, many keys in one round trip.

Speaks in keys and results; knows no flights. Every method raises `StoreUnavailable` when the store
cannot be asked; what it refused comes back as `None`. A call is about one shard.
"""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
import structlog
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from askonce_queue import answer_scripts, names
from askonce_queue.answer_scripts import Fill, Release
from askonce_queue.errors import StoreUnavailable
from askonce_queue.reply import ErrorInfo
from askonce_queue.scripts import Call
from askonce_queue.store import SECOND_CHANCE_S, Store
from askonce_worker.cache.entry import Entry, decode_entry
from askonce_worker.clock import Clock

log = structlog.get_logger("askonce.store_tier")

UNCANCELLED_S = 1.0
"""How long a call whose outcome must be known may take beyond all that a store waits for."""

MOST_LOST = 1_000
"""Tokens remembered whose leases nobody knows of; those of older ones run out."""

_LEASED = struct.Struct("<dB")
_error_decoder = msgspec.json.Decoder(ErrorInfo)


class Hit(NamedTuple):
    """The store has what was asked for; if it is stale, somebody else refreshes it."""

    entry: Entry


class Leased(NamedTuple):
    """Ours to compute. `token` is the right to fill; `until` its monotonic deadline.

    `stale` will do for those who ask; `spare` will not, but may stand in for an error.
    """

    token: bytes
    built: float
    attempt: int
    until: float
    takeover: bool
    stale: Entry | None = None
    spare: Entry | None = None


class Busy(NamedTuple):
    """Another leader, alive, computes it."""

    token: bytes


class Free(NamedTuple):
    """Nobody computes it, and we asked for no more leases. `spare` may stand in for an error."""

    spare: Entry | None = None


class Rejected(NamedTuple):
    """It failed a moment ago in a way that would repeat; so does asking."""

    error: ErrorInfo
    spare: Entry | None = None


class Uncacheable(NamedTuple):
    """Its answers cannot be kept: everyone asks for themselves."""


class Spared(NamedTuple):
    """Not ours to compute now, and here is what may be served meanwhile if the model is down."""

    result: Busy | Free | Uncacheable
    spare: Entry


Result = Hit | Leased | Busy | Free | Rejected | Uncacheable | Spared | None


class Batch(NamedTuple):
    """Keys of one shard to look up. `asker_tags` are joined by line breaks, one text a key.

    `demands`: the number of a key → its packed `Demand`.
    """

    shard: int
    keys: Sequence[bytes]
    asker_tags: Sequence[str]
    memory_ttls_s: Sequence[float]
    max_new_leases: int
    demands: Mapping[int, bytes]


class StoreTier:
    """Answers and leases of all shards. `lease_ttl_s` is how long a lease holds unrenewed."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        rng: random.Random,
        *,
        lease_ttl_s: float,
    ) -> None:
        self._store = store
        self._shard_tags = store.tags
        self._clock = clock
        self.lease_ttl_s = lease_ttl_s
        self.uncancelled_s = store.config.timeout_s + SECOND_CHANCE_S + UNCANCELLED_S
        """How long a call whose outcome must be known may outlive its caller's cancellation."""
        self._lease_ms = int(lease_ttl_s * 1000)
        self._token_prefix = rng.randbytes(8)
        self._tokens = itertools.count(1)
        self._lost: dict[bytes, None] = {}
        """Tokens of look-ups without an answer, the oldest first."""

    async def look_up(self, batches: Sequence[Batch]) -> list[list[Result]]:
        """Look up or lease on one shard, one round trip; results are in the order of the keys."""
        tokens = [self._new_token() for _ in batches]
        calls = [
            answer_scripts.look_up(
                self._shard_tags[batch.shard],
                token=token,
                lease_ms=self._lease_ms,
                max_new_leases=batch.max_new_leases,
                digests=batch.keys,
                asker_tags=batch.asker_tags,
                demands=batch.demands,
            )
            for batch, token in zip(batches, tokens, strict=True)
        ]
        asked_at = self._clock.monotonic()
        results: list[list[Result]] = []
        raws = await self._run_leasing(calls, tokens)
        for batch, token, raw in zip(batches, tokens, raws, strict=True):
            if raw is None:
                results.append([None] * len(batch.keys))
                continue
            results.append(await self._read(batch, token, raw, asked_at))
        return results

    async def _read(
        self, batch: Batch, token: bytes, raw: list[bytes], asked_at: float
    ) -> list[Result]:
        now_ms, now = float(raw[0]), asked_at  # it is no younger, however long the reply took
        results: list[Result] = []
        ghosts: list[Release] = []
        for key, memory_ttl_s, data in zip(batch.keys, batch.memory_ttls_s, raw[2:], strict=True):
            try:
                results.append(
                    self._result(
                        data, token, asked_at, _Reading(now_ms, now, memory_ttl_s, batch.shard)
                    )
                )
            except (struct.error, msgspec.MsgspecError, ValueError, RecursionError) as error:
                # Written by another version, or damaged: drop it, ask again.
                log.warning("entry cannot be read", key=key.hex()[:16], error=str(error))
                with suppress(StoreUnavailable):
                    await self.forget(batch.shard, key)
                kind = data[:1]
                # A remembered error that nobody can read is none to wait for.
                results.append(Uncacheable() if kind in {b"R", b"E"} else None)
                if kind in {b"L", b"S", b"X"}:
                    ghosts.append(Release(key, token))
            if self._lost and data[:1] == b"B" and data[1:] in self._lost:
                ghosts.append(Release(key, data[1:]))
                results[-1] = None
        if ghosts:
            with suppress(StoreUnavailable):  # then they run out
                await self.release(batch.shard, ghosts)
        return results

    def _result(self, data: bytes, token: bytes, asked_at: float, reading: _Reading) -> Result:
        result: Result = Uncacheable()
        match data[:1]:
            case b"\x01":
                result = Hit(reading.entry(data))
            case b"L" | b"S" | b"X" as kind:
                built, attempt = _LEASED.unpack_from(data, 1)
                result = Leased(
                    token,
                    built,
                    attempt,
                    asked_at + self.lease_ttl_s,
                    takeover=kind != b"S" and data[10:11] == b"\x01",
                    stale=reading.entry(data[10:]) if kind == b"S" else None,
                    spare=reading.entry(data[11:]) if kind == b"X" else None,
                )
            case b"B":
                result = Busy(data[1:])
            case b"F":
                result = Free(reading.entry(data[1:]) if len(data) > 1 else None)
            case b"R":
                result = Rejected(_error_decoder.decode(data[1:]))
            case b"T":
                end = 5 + int.from_bytes(data[1:5], "little")
                then = self._result(data[5:end], token, asked_at, reading)
                assert isinstance(then, Busy | Free | Uncacheable)
                result = Spared(then, reading.entry(data[end:]))
            case b"E":
                end = 5 + int.from_bytes(data[1:5], "little")
                result = Rejected(_error_decoder.decode(data[5:end]), reading.entry(data[end:]))
            case _:
                pass
        return result

    async def take_over(self, shard: int, seen: Sequence[tuple[bytes, bytes]]) -> list[Result]:
        """Take live leases (key, token seen as busy) over; `None` for those that moved on."""
        token = self._new_token()
        asked_at = self._clock.monotonic()
        call = answer_scripts.take_over(
            self._shard_tags[shard], token=token, lease_ms=self._lease_ms, seen=seen
        )
        (raw,) = await self._run_leasing([call], [token])
        return [
            Leased(token, float(r[0]), int(r[1]), asked_at + self.lease_ttl_s, takeover=True)
            if r
            else None
            for r in raw or [None] * len(seen)
        ]

    async def renew(self, shard: int, held: Sequence[tuple[bytes, bytes]]) -> str | None:
        """Renew leases (key, token): one letter each, r renewed · l lost."""
        call = answer_scripts.renew(self._shard_tags[shard], lease_ms=self._lease_ms, held=held)
        (letters,) = await self._run([call])
        return letters.decode() if letters is not None else None

    async def fill(self, shard: int, fills: Sequence[Fill]) -> tuple[float, str] | None:
        """Write answers: the server's time in ms and one letter an answer.

        f filled · x fenced · i invalidated meanwhile. `None` when the shard took nothing.
        """
        (result,) = await self._run([answer_scripts.fill(self._shard_tags[shard], fills)])
        return None if result is None else (float(result[0]), result[1].decode())

    async def release(self, shard: int, releases: Sequence[Release]) -> None:
        """Give leases back without an answer."""
        await self._run([answer_scripts.release(self._shard_tags[shard], releases)])

    async def note_attempt(
        self, shard: int, key: bytes, token: bytes, attempt: int, remember_s: float
    ) -> int:
        """Count that `attempt` failed; the next one's number, or 0 when the lease is not ours."""
        call = answer_scripts.note_attempt(
            self._shard_tags[shard],
            digest=key,
            token=token,
            attempt=attempt,
            remember_ms=int(remember_s * 1000),
        )
        (counted,) = await self._run([call])
        if counted is None:
            raise StoreUnavailable("the attempt could not be counted: the store refused it")
        return int(counted)

    async def forget(self, shard: int, key: bytes) -> None:
        """Drop the stored answer of a key, whatever it is."""
        try:
            answer = names.answer_prefix(self._shard_tags[shard]) + key
            await self._store.send(answer, "UNLINK", answer)
        except (RedisError, OSError) as error:
            raise StoreUnavailable(f"the store cannot be reached: {error}") from error

    async def _run_leasing(self, calls: Sequence[Call], tokens: Sequence[bytes]) -> list[Any]:
        """`_run`. Leases whose news is lost are nobody's: they are given back when they turn up."""
        try:
            return await self._run(calls)
        except BaseException:
            self._lost.update(dict.fromkeys(tokens))
            while len(self._lost) > MOST_LOST:
                del self._lost[next(iter(self._lost))]
            raise

    async def _run(self, calls: Sequence[Call]) -> list[Any]:
        """One result a call of one shard; `None` for one that the store refused (memory)."""
        results = await self._store.run_many(calls)
        for call, result in zip(calls, results, strict=True):
            if not isinstance(result, Exception):
                continue
            if not isinstance(result, ResponseError):
                raise StoreUnavailable(f"the store cannot be reached: {result}") from result
            if not isinstance(result, OutOfMemoryError):
                log.warning("a shard refused", script=call.script.name, error=str(result))
        return [None if isinstance(result, Exception) else result for result in results]

    def _new_token(self) -> bytes:
        return self._token_prefix + next(self._tokens).to_bytes(8, "big")


class _Reading(NamedTuple):
    """Under which clocks and for which shard an entry is read."""

    now_ms: float
    monotonic: float
    memory_ttl_s: float
    shard: int

    def entry(self, data: bytes) -> Entry:
        return decode_entry(
            data,
            now_ms=self.now_ms,
            monotonic=self.monotonic,
            memory_ttl_s=self.memory_ttl_s,
            shard=self.shard,
        )
