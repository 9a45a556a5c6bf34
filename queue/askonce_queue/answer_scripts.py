"""Typed stubs of the scripts that look up, lease, fill and invalidate answers.

Keys, arguments and results are described in the header of each Lua file.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Literal, NamedTuple

from askonce_queue import names, pressure
from askonce_queue.scripts import Arg, Call, Script

_LUA = files("askonce_queue") / "lua"
_NOW = (_LUA / "now.lua").read_text()
VALIDITY = (_LUA / "validity.lua").read_text()
GLOBS = (_LUA / "globs.lua").read_text()
MOST_GLOBS = 100
"""Globs remembered a shard; the oldest give way, and take with them all that is older."""
KEY_MARK, GLOB_MARK = b"\0", b"\1"
"""What stands before a key, and before a glob, among the tags: no tag begins so."""

_LOOK_UP = Script("look_up", allow_oom=True, prelude=_NOW + VALIDITY)
_MARK_READ = Script("mark_read", allow_oom=True)
_TAKE_OVER = Script("take_over", allow_oom=True)
_RENEW = Script("renew", allow_oom=True)
_FILL = Script("fill", allow_oom=False, prelude=pressure.PRELUDE + VALIDITY)
_RELEASE = Script("release", allow_oom=True)
_NOTE_ATTEMPT = Script("note_attempt", allow_oom=True)
_READ_STAMPS = Script("read_stamps", allow_oom=True)
_PEEK_STAMPS = Script("peek_stamps", allow_oom=True)
_SURVEY = Script("survey", allow_oom=True, prelude=_NOW + VALIDITY)
_INVALIDATE = Script("invalidate", allow_oom=True, prelude=_NOW + GLOBS)
_SWEEP_FILLS = Script("sweep_fills", allow_oom=True)
_SWEEP_TAGS = Script("sweep_tags", allow_oom=True, prelude=_NOW + GLOBS)


class Fill(NamedTuple):
    """One answer to write. `fresh_ms` ≤ `keep_ms`, both from now; tags joined by line breaks."""

    digest: bytes
    token: bytes
    fresh_ms: int
    keep_ms: int
    tags: str
    body: bytes


class Release(NamedTuple):
    """One lease to give back; kind '' remembers nothing new, 'R' a rejection, 'U' uncacheable; 'A'
    that a model was asked, and forgets the attempts that were counted.
    """

    digest: bytes
    token: bytes
    kind: Literal["", "A", "R", "U"] = ""
    remember_ms: int = 0
    error: bytes = b""


_DEMAND = struct.Struct("<Bdd")
NO_LIMIT_MS = 1e18


class Demand(NamedTuple):
    """What an asker demands of a stored answer, beyond that it is valid; times in ms.

    `cached_only`: it is not to be computed. `anew`: whatever there is, it is to be computed, also
    if somebody does so already. `spare`: an answer that does not do is told all the same where it
    may stand in for an error. `least_left_ms`: more than that of its freshness must be left; below
    0: it may be stale by less than that.
    """

    cached_only: bool = False
    anew: bool = False
    spare: bool = False
    max_age_ms: float = NO_LIMIT_MS
    least_left_ms: float = 0.0

    def pack(self) -> bytes:
        """As `look_up.lua` reads it."""
        flags = self.cached_only + 2 * self.anew + 4 * self.spare
        return _DEMAND.pack(flags, self.max_age_ms, self.least_left_ms)


def at_once(demand: bytes) -> bytes:
    """A packed demand of somebody whose model is down: a spare is told also without a lease."""
    return bytes([demand[0] | 8]) + demand[1:] if demand[0] & 4 else demand


def look_up(
    tag: str,
    *,
    token: bytes,
    lease_ms: int,
    max_new_leases: int,
    digests: Sequence[bytes],
    asker_tags: Sequence[str],
    demands: Mapping[int, bytes] | None = None,
) -> Call:
    """`demands`: number of a key, from 0 → its packed `Demand`."""
    prefix = names.answer_prefix(tag)
    args: list[Arg] = [token, lease_ms, max_new_leases, *asker_tags]
    if demands:
        for number, demand in demands.items():
            args += (number + 1, demand)
    return Call(
        _LOOK_UP,
        [
            names.stamps(tag),
            names.last(tag),
            names.leases(tag),
            names.tries(tag),
            *[prefix + digest for digest in digests],
        ],
        args,
    )


def mark_read(tag: str, read: Sequence[tuple[bytes, float]]) -> Call:
    """`read`: digests with the time of their creation, in ms."""
    prefix = names.answer_prefix(tag)
    return Call(
        _MARK_READ,
        [prefix + digest for digest, _ in read],
        [f"{created_ms:.0f}" for _, created_ms in read],
    )


def take_over(
    tag: str, *, token: bytes, lease_ms: int, seen: Sequence[tuple[bytes, bytes]]
) -> Call:
    args: list[Arg] = [token, lease_ms]
    for pair in seen:
        args += pair
    return Call(_TAKE_OVER, [names.stamps(tag), names.leases(tag)], args)


def renew(tag: str, *, lease_ms: int, held: Sequence[tuple[bytes, bytes]]) -> Call:
    args: list[Arg] = [lease_ms]
    for pair in held:
        args += pair
    return Call(_RENEW, [names.leases(tag)], args)


def fill(tag: str, fills: Sequence[Fill]) -> Call:
    prefix = names.answer_prefix(tag)
    keys = [
        names.stamps(tag),
        names.last(tag),
        names.leases(tag),
        names.tries(tag),
        names.memory(tag),
    ]
    args: list[Arg] = [pressure.STOP_FILLS_AT]
    for one in fills:
        keys.append(prefix + one.digest)
        args += one[1:]
    return Call(_FILL, keys, args)


def release(tag: str, releases: Sequence[Release]) -> Call:
    args: list[Arg] = []
    for one in releases:
        args += one
    return Call(_RELEASE, [names.leases(tag), names.tries(tag)], args)


def note_attempt(tag: str, *, digest: bytes, token: bytes, attempt: int, remember_ms: int) -> Call:
    keys = [names.leases(tag), names.tries(tag)]
    return Call(_NOTE_ATTEMPT, keys, [digest, token, attempt, remember_ms])


def read_stamps(tag: str, *, seen_inv: int, most_tags: int) -> Call:
    return Call(_READ_STAMPS, [names.stamps(tag), names.last(tag)], [seen_inv, most_tags])


def invalidate(tag: str, *, everything: bool, tags: Sequence[bytes | str]) -> Call:
    keys = [names.stamps(tag), names.last(tag)]
    return Call(_INVALIDATE, keys, ["1" if everything else "0", MOST_GLOBS, *tags])


def peek_stamps(tag: str, tags: Sequence[bytes | str]) -> Call:
    return Call(_PEEK_STAMPS, [names.stamps(tag), names.last(tag)], tags)


def survey(
    tag: str,
    digests: Sequence[bytes],
    *,
    base: bytes = b"",
    before: Sequence[tuple[bytes | str, bytes]] = (),
) -> Call:
    """`base` and `before` (tag, key or glob → its stamp): as `peek_stamps` told them."""
    prefix = names.answer_prefix(tag)
    args: list[Arg] = [base]
    for member, stamp in before:
        args += (member, stamp)
    return Call(
        _SURVEY,
        [names.stamps(tag), names.last(tag), *[prefix + digest for digest in digests]],
        args,
    )


def sweep_leases(tag: str, *, cursor: int, count: int, grace_ms: int) -> Call:
    return _sweep(names.leases(tag), cursor, count, "<c8c8d", grace_ms)


def sweep_tries(tag: str, *, cursor: int, count: int, grace_ms: int) -> Call:
    return _sweep(names.tries(tag), cursor, count, "<c1Bd", grace_ms)


def _sweep(key: bytes, cursor: int, count: int, where: str, grace_ms: int) -> Call:
    return Call(_SWEEP_FILLS, [key], [cursor, count, where, grace_ms])


def sweep_tags(tag: str, *, count: int, most: int) -> Call:
    return Call(_SWEEP_TAGS, [names.stamps(tag), names.last(tag)], [count, most, MOST_GLOBS])
