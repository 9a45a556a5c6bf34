"""Typed stubs of the scripts that look up, lease, fill and invalidate answers.

Keys, arguments and results are described in the header of each Lua file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from askonce_queue import names, pressure
from askonce_queue.scripts import Arg, Call, Script

_LOOK_UP = Script("look_up", allow_oom=True)
_TAKE_OVER = Script("take_over", allow_oom=True)
_RENEW = Script("renew", allow_oom=True)
_FILL = Script("fill", allow_oom=False, prelude=pressure.PRELUDE)
_RELEASE = Script("release", allow_oom=True)
_NOTE_ATTEMPT = Script("note_attempt", allow_oom=True)
_READ_STAMPS = Script("read_stamps", allow_oom=True)
_INVALIDATE = Script("invalidate", allow_oom=True)
_SWEEP_FILLS = Script("sweep_fills", allow_oom=True)
_SWEEP_TAGS = Script("sweep_tags", allow_oom=True)


class Fill(NamedTuple):
    """One answer to write. `fresh_ms` ≤ `keep_ms`, both from now; tags joined by line breaks."""

    digest: bytes
    token: bytes
    fresh_ms: int
    keep_ms: int
    tags: str
    body: bytes


class Release(NamedTuple):
    """One lease to give back; kind '' remembers nothing, 'R' a rejection, 'U' uncacheable."""

    digest: bytes
    token: bytes
    kind: Literal["", "R", "U"] = ""
    remember_ms: int = 0
    error: bytes = b""


def look_up(
    tag: str,
    *,
    token: bytes,
    lease_ms: int,
    max_new_leases: int,
    digests: Sequence[bytes],
    asker_tags: Sequence[str],
) -> Call:
    prefix = names.answer_prefix(tag)
    return Call(
        _LOOK_UP,
        [
            names.stamps(tag),
            names.last(tag),
            names.leases(tag),
            names.tries(tag),
            *[prefix + digest for digest in digests],
        ],
        [token, lease_ms, max_new_leases, *asker_tags],
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


def invalidate(tag: str, *, everything: bool, tags: Sequence[str]) -> Call:
    keys = [names.stamps(tag), names.last(tag)]
    return Call(_INVALIDATE, keys, ["1" if everything else "0", *tags])


def sweep_leases(tag: str, *, cursor: int, count: int, grace_ms: int) -> Call:
    return _sweep(names.leases(tag), cursor, count, "<c8c8d", grace_ms)


def sweep_tries(tag: str, *, cursor: int, count: int, grace_ms: int) -> Call:
    return _sweep(names.tries(tag), cursor, count, "<c1Bd", grace_ms)


def _sweep(key: bytes, cursor: int, count: int, where: str, grace_ms: int) -> Call:
    return Call(_SWEEP_FILLS, [key], [cursor, count, where, grace_ms])


def sweep_tags(tag: str, *, count: int, most: int) -> Call:
    return Call(_SWEEP_TAGS, [names.stamps(tag), names.last(tag)], [count, most])
