"""Which shard a job or an answer belongs to, and the hash tags that spread shards over slots.

Slot function: CRC16 (XMODEM) modulo 16384, Redis Cluster specification, "Hash slot".
"""

from __future__ import annotations

import binascii
import functools
import itertools
import zlib

SLOTS = 16384
MAX_SHARDS = 256


def slot_of(tag: str) -> int:
    """The cluster slot (0 to 16383) of a hash tag."""
    return binascii.crc_hqx(tag.encode(), 0) % SLOTS


@functools.cache
def shard_tags(count: int) -> tuple[str, ...]:
    """The hash tags of `count` shards (1 to `MAX_SHARDS`).

    Shard i gets the smallest number whose slot lies in the i-th of `count` equal parts of the slot
    range, so any even split of slots over primaries is an even split of shards.
    """
    if not 1 <= count <= MAX_SHARDS:
        raise ValueError(f"shards must be from 1 to {MAX_SHARDS}, not {count}")
    tags: list[str] = []
    for index in range(count):
        for candidate in itertools.count():
            tag = str(candidate)
            if slot_of(tag) * count // SLOTS == index:
                tags.append(tag)
                break
    return tuple(tags)


def shard_of_digest(digest: bytes, count: int) -> int:
    """The answer shard of a cache key (32 bytes)."""
    return 0 if count == 1 else int.from_bytes(digest[:4], "big") % count


def shard_of_job(job_id: str, count: int) -> int:
    """The job shard of a job id: as it carries (`s3-…`, made by a client), else by its hash."""
    if count == 1:
        return 0
    head, dash, _ = job_id.partition("-")
    if dash and head[:1] == "s" and head[1:].isdecimal() and int(head[1:]) < count:
        return int(head[1:])
    return zlib.crc32(job_id.encode()) % count


def shard_of_model(name: str, count: int) -> int:
    """The shard that keeps the quota of a model."""
    return zlib.crc32(name.encode()) % count
